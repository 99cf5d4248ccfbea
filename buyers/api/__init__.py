"""The REST API of buying, `/api/v1/…`: all that the pages do.

Views find through `.of(org)`, so a stranger's id is 404, and call one service.
"""

from django.urls import path

from buyers.api import bases, data, jobs, money, secrets

urlpatterns = [
    path("wallet/", money.WalletView.as_view(), name="wallet"),
    path("wallet/statement/", money.StatementView.as_view(), name="statement"),
    path("top-ups/", money.TopUpsView.as_view(), name="top_ups"),
    path("datasets/", data.DatasetsView.as_view(), name="datasets"),
    path("datasets/<uuid:pk>/", data.DatasetView.as_view(), name="dataset"),
    path("datasets/<uuid:pk>/commit/", data.CommitView.as_view(), name="commit_dataset"),
    path("datasets/<uuid:pk>/report/", data.ReportView.as_view(), name="dataset_report"),
    path("bases/", bases.BasesView.as_view(), name="bases"),
    path("fetches/", bases.FetchesView.as_view(), name="fetches"),
    path("fetches/<uuid:pk>/", bases.FetchView.as_view(), name="fetch"),
    path("fetches/<uuid:pk>/cancel/", bases.CancelView.as_view(), name="cancel_fetch"),
    path("artifacts/<uuid:pk>/licence/", bases.LicenceView.as_view(), name="accept_licence"),
    path("artifacts/", data.ArtifactsView.as_view(), name="artifacts"),
    path("artifacts/<uuid:pk>/", data.ArtifactView.as_view(), name="artifact"),
    path("artifacts/<uuid:pk>/model/", data.ModelView.as_view(), name="model"),
    path("artifacts/<uuid:pk>/promote/", data.PromoteView.as_view(), name="promote"),
    path("recipes/", data.RecipesView.as_view(), name="recipes"),
    path("secrets/", secrets.SecretsView.as_view(), name="secrets"),
    path("secrets/<uuid:pk>/", secrets.SecretView.as_view(), name="secret"),
    path("quotes/", jobs.QuotesView.as_view(), name="quotes"),
    path("quotes/<uuid:pk>/", jobs.QuoteView.as_view(), name="quote"),
    path("quotes/<uuid:pk>/take/", jobs.TakeView.as_view(), name="take"),
    path("jobs/", jobs.JobsView.as_view(), name="jobs"),
    path("jobs/<uuid:pk>/", jobs.JobView.as_view(), name="job"),
    path("jobs/<uuid:pk>/cancel/", jobs.CancelView.as_view(), name="cancel_job"),
    path("jobs/<uuid:pk>/stop/", jobs.StopView.as_view(), name="stop_job"),
    path("jobs/<uuid:pk>/resume/", jobs.ResumeView.as_view(), name="resume_job"),
    path("jobs/<uuid:pk>/accept/", jobs.AcceptView.as_view(), name="accept_change"),
    path("jobs/<uuid:pk>/metrics/", jobs.MetricsView.as_view(), name="job_metrics"),
    path("jobs/<uuid:pk>/log/", jobs.LogView.as_view(), name="job_log"),
    path("jobs/<uuid:pk>/story/", jobs.StoryView.as_view(), name="job_story"),
    path("jobs/<uuid:pk>/receipt/", jobs.ReceiptView.as_view(), name="job_receipt"),
    path("jobs/<uuid:pk>/proof/", jobs.ProofView.as_view(), name="job_proof"),
    path("jobs/<uuid:pk>/proof/<uuid:round>/", jobs.ProofView.as_view(), name="job_proof_in"),
    path("jobs/<uuid:pk>/checkpoints/", jobs.CheckpointsView.as_view(), name="job_checkpoints"),
    path(
        "jobs/<uuid:pk>/checkpoints/<uuid:checkpoint>/",
        jobs.CheckpointView.as_view(),
        name="job_checkpoint",
    ),
    path("jobs/<uuid:pk>/artifact/", jobs.ArtifactView.as_view(), name="job_artifact"),
]
