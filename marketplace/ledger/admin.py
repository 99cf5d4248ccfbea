"""The operator's view of the books: to read, never to write."""

from django.contrib import admin

from marketplace.admin import ReadOnlyAdmin
from marketplace.ledger.models import Account, Transfer


@admin.register(Account)
class AccountAdmin(ReadOnlyAdmin):
    list_display = ("kind", "owner", "balance")
    list_filter = ("kind",)
    search_fields = ("owner",)


@admin.register(Transfer)
class TransferAdmin(ReadOnlyAdmin):
    list_display = ("at", "kind", "debit", "credit", "amount", "reference", "period")
    list_filter = ("kind",)
    list_select_related = ("debit", "credit")
    search_fields = ("reference",)
    # Counting a table that only grows is dear, and tells nothing.
    show_full_result_count = False
