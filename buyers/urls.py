"""Where buyers' pages, their REST API and the live page's socket are."""

from django.urls import path

from buyers import api, libraryviews, modelviews, recipeviews, secretviews, views
from buyers.consumers import JobConsumer
from buyers.shells import ShellConsumer

page_urls = [
    path("", views.buy, name="buy"),
    path("wallet/", views.wallet, name="wallet"),
    path("secrets/", secretviews.secrets, name="secrets"),
    path("secrets/<uuid:pk>/forget/", secretviews.forget_secret, name="forget_secret"),
    path("datasets/", libraryviews.dataset_list, name="datasets"),
    path("datasets/<uuid:pk>/", libraryviews.dataset, name="dataset"),
    path("datasets/<uuid:pk>/check/", libraryviews.check_again, name="check_dataset"),
    path("datasets/<uuid:pk>/discard/", libraryviews.discard, name="discard_dataset"),
    path("bases/", libraryviews.bases, name="bases"),
    path("fetches/<uuid:pk>/cancel/", libraryviews.cancel_fetch, name="cancel_fetch"),
    path("jobs/new/", views.new_job, name="new_job"),
    path("quotes/<uuid:pk>/", views.quote, name="quote"),
    path("quotes/<uuid:pk>/again/", views.quote_again, name="quote_again"),
    path("quotes/<uuid:pk>/take/", views.take, name="take"),
    path("quotes/<uuid:pk>/bid/", views.bid, name="bid"),
    path("jobs/<uuid:pk>/", views.job, name="job"),
    path("jobs/<uuid:pk>/proof/", views.proof, name="job_proof"),
    path("jobs/<uuid:pk>/cancel/", views.cancel, name="cancel_job"),
    path("jobs/<uuid:pk>/stop/", views.stop, name="stop_job"),
    path("jobs/<uuid:pk>/resume/", views.resume, name="resume_job"),
    path("jobs/<uuid:pk>/accept/", views.accept, name="accept_change"),
    path("artifacts/<uuid:pk>/", modelviews.model, name="model"),
    path("artifacts/<uuid:pk>/file/", modelviews.artifact_file, name="artifact_file"),
    path("artifacts/<uuid:pk>/card/", modelviews.card, name="model_card"),
    path("artifacts/<uuid:pk>/promote/", modelviews.promote, name="promote"),
    path("artifacts/<uuid:pk>/licence/", libraryviews.accept_licence, name="accept_licence"),
]

doc_urls = [path("recipes/", recipeviews.recipes, name="recipes")]

api_urls = api.urlpatterns

websocket_urls = [
    path("buy/jobs/<uuid:pk>/socket", JobConsumer.as_asgi()),
    path("api/v1/jobs/<uuid:pk>/shell", ShellConsumer.as_asgi()),
]
