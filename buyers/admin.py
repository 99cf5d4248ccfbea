"""The operator's view of what buyers have. Read only: rows move by the services."""

from django.contrib import admin

from buyers.hub_models import Fetch, LicenceAcceptance
from buyers.models import Artifact, Checkpoint, Dataset, Job, Quote
from marketplace.admin import ReadOnlyAdmin


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin):
    list_display = ("name", "org", "recipe", "state", "state_since", "budget_micros",
                    "spent_micros")  # fmt: skip
    list_filter = ("state", "recipe", "order")
    search_fields = ("id", "name")


@admin.register(Dataset)
class DatasetAdmin(ReadOnlyAdmin):
    list_display = ("name", "version", "org", "bytes", "rows", "committed_at")
    search_fields = ("id", "name")


@admin.register(Artifact)
class ArtifactAdmin(ReadOnlyAdmin):
    list_display = ("name", "org", "public", "licence", "bytes", "committed_at")
    list_filter = ("public",)
    search_fields = ("id", "name")


@admin.register(Checkpoint)
class CheckpointAdmin(ReadOnlyAdmin):
    list_display = ("job", "epoch", "step", "bytes", "committed_at", "deleted_at")


@admin.register(Fetch)
class FetchAdmin(ReadOnlyAdmin):
    list_display = ("repo", "revision", "org", "state", "bytes_done", "bytes_total", "detail")
    list_filter = ("state", "hub")
    exclude = ("token",)


@admin.register(LicenceAcceptance)
class LicenceAcceptanceAdmin(ReadOnlyAdmin):
    list_display = ("org", "repository", "licence", "statement", "by", "at")


@admin.register(Quote)
class QuoteAdmin(ReadOnlyAdmin):
    list_display = ("id", "org", "created_at", "expires_at", "taken_at", "job")
