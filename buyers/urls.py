"""Where buyers' pages, their REST API and the live page's socket are."""

from django.urls import path

from buyers import api, views
from buyers.consumers import JobConsumer
from buyers.shells import ShellConsumer

page_urls = [
    path("", views.buy, name="buy"),
    path("wallet/", views.wallet, name="wallet"),
    path("datasets/", views.datasets, name="datasets"),
    path("secrets/", views.secrets, name="secrets"),
    path("secrets/<uuid:pk>/forget/", views.forget_secret, name="forget_secret"),
    path("jobs/new/", views.new_job, name="new_job"),
    path("quotes/<uuid:pk>/", views.quote, name="quote"),
    path("quotes/<uuid:pk>/again/", views.quote_again, name="quote_again"),
    path("quotes/<uuid:pk>/take/", views.take, name="take"),
    path("quotes/<uuid:pk>/bid/", views.bid, name="bid"),
    path("jobs/<uuid:pk>/", views.job, name="job"),
    path("jobs/<uuid:pk>/cancel/", views.cancel, name="cancel_job"),
    path("jobs/<uuid:pk>/stop/", views.stop, name="stop_job"),
    path("jobs/<uuid:pk>/resume/", views.resume, name="resume_job"),
    path("artifacts/<uuid:pk>/file/", views.artifact_file, name="artifact_file"),
]

api_urls = api.urlpatterns

websocket_urls = [
    path("buy/jobs/<uuid:pk>/socket", JobConsumer.as_asgi()),
    path("api/v1/jobs/<uuid:pk>/shell", ShellConsumer.as_asgi()),
]
