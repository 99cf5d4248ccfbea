"""The operator's view of orgs, members, keys and stories. Stories are read only."""

from django.contrib import admin
from django.http import HttpRequest

from marketplace.models import ApiKey, Member, Org, StateChange


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows that only the market itself writes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


class MemberInline(admin.TabularInline):
    model = Member
    extra = 0


@admin.register(Org)
class OrgAdmin(admin.ModelAdmin):
    list_display = ("name", "slug", "created_at")
    search_fields = ("name", "slug")
    inlines = (MemberInline,)


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):
    list_display = ("name", "org", "start", "created_at", "last_used_at", "revoked_at")
    exclude = ("digest",)
    readonly_fields = ("org", "start", "scopes", "created_by", "created_at", "last_used_at")


@admin.register(StateChange)
class StateChangeAdmin(ReadOnlyAdmin):
    list_display = ("at", "machine", "subject", "event", "source", "target", "by", "reason")
    list_filter = ("machine", "event")
    search_fields = ("subject",)
