"""Money from outside and back: top-ups by card, payouts, and the webhooks that announce them."""

from django.apps import AppConfig


class PaymentsConfig(AppConfig):
    name = "marketplace.payments"
    label = "payments"
    default_auto_field = "django.db.models.BigAutoField"
