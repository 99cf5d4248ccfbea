"""Under /stripe/."""

from django.urls import URLPattern, path

from marketplace.payments import views

urlpatterns: list[URLPattern] = [path("webhook", views.webhook, name="stripe_webhook")]
