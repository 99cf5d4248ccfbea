"""The operator's view of supply. Read-mostly: states move by the services, trust by hand here."""

from django.contrib import admin
from django.http import HttpRequest

from marketplace.admin import ReadOnlyAdmin
from suppliers.models import Benchmark, EnrolmentToken, Gpu, Node, Offer, Pulse, Site


@admin.register(Site)
class SiteAdmin(admin.ModelAdmin):
    """Where the operator raises a site's trust, after having looked."""

    list_display = ("name", "org", "region", "trust", "network", "created_at")
    list_filter = ("trust", "region")
    list_select_related = ("org",)
    search_fields = ("name", "org__name")
    readonly_fields = ("org", "created_at")

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


@admin.register(Node)
class NodeAdmin(ReadOnlyAdmin):
    list_display = ("name", "site", "state", "last_seen_at", "lost_at", "owner_busy", "sandbox")
    list_filter = ("state", "owner_busy")
    list_select_related = ("site",)
    search_fields = ("name", "site__name", "site__org__name", "fingerprint")
    exclude = ("public_key",)


@admin.register(Gpu)
class GpuAdmin(ReadOnlyAdmin):
    list_display = ("name", "gpu_class", "uuid", "node", "present")
    list_filter = ("present", "gpu_class")
    list_select_related = ("node",)
    search_fields = ("uuid", "name")


@admin.register(Benchmark)
class BenchmarkAdmin(ReadOnlyAdmin):
    list_display = ("node", "asked_at", "finished_at", "passed", "verdict", "tflops")
    list_filter = ("passed",)
    list_select_related = ("node",)


@admin.register(Offer)
class OfferAdmin(ReadOnlyAdmin):
    list_display = ("node", "state", "ask_micros", "notice_s", "audience", "scripts")
    list_filter = ("state", "audience")
    list_select_related = ("node",)


@admin.register(EnrolmentToken)
class EnrolmentTokenAdmin(ReadOnlyAdmin):
    list_display = ("site", "node", "nodes_left", "expires_at", "created_by")
    list_select_related = ("site", "node")
    exclude = ("digest",)


@admin.register(Pulse)
class PulseAdmin(ReadOnlyAdmin):
    list_display = ("process", "at", "gapless_since")
