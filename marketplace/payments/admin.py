"""The operator's view of payments: to read, never to write."""

from django.contrib import admin

from marketplace.admin import ReadOnlyAdmin
from marketplace.payments.models import Payout, TopUp, WebhookEvent


@admin.register(TopUp)
class TopUpAdmin(ReadOnlyAdmin):
    list_display = ("created_at", "org", "amount", "cost", "state", "checkout_session_id")
    list_filter = ("state",)
    list_select_related = ("org",)
    search_fields = ("checkout_session_id", "payment_intent_id", "org__name")


@admin.register(Payout)
class PayoutAdmin(ReadOnlyAdmin):
    list_display = ("created_at", "org", "amount", "state")
    list_filter = ("state",)
    list_select_related = ("org",)


@admin.register(WebhookEvent)
class WebhookEventAdmin(ReadOnlyAdmin):
    list_display = ("received_at", "type", "subject", "applied_at", "outcome")
    list_filter = ("type",)
    search_fields = ("id", "subject")
