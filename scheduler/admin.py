"""The operator's view of the engine: to look at, never to change."""

from django.contrib import admin

from marketplace.admin import ReadOnlyAdmin
from scheduler.models import (
    Assignment,
    ClearingPrice,
    Credit,
    Lease,
    LeasedGpu,
    Round,
    UsageSlice,
)


@admin.register(Round)
class RoundAdmin(ReadOnlyAdmin):
    list_display = ("at", "jobs", "gpus", "matched_jobs", "matched_gpus", "welfare", "seconds")


@admin.register(Lease)
class LeaseAdmin(ReadOnlyAdmin):
    list_display = ("epoch", "job", "state", "gpu_class", "gpus_count", "end_reason", "created_at")
    list_filter = ("state", "end_reason")
    list_select_related = ("job",)


@admin.register(Assignment)
class AssignmentAdmin(ReadOnlyAdmin):
    list_display = ("id", "node", "state", "accrued_ms", "claimed_ms", "billed_s", "exit_why")
    list_filter = ("state",)
    list_select_related = ("node",)
    exclude = ("spec",)


for model in (ClearingPrice, Credit, LeasedGpu, UsageSlice):
    admin.site.register(model, ReadOnlyAdmin)
