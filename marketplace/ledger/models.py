"""Accounts and transfers. PostgreSQL keeps the books itself (migrations 0002 and 0003):

a transfer, once in, can be neither changed nor removed; a balance moves by the insertion of
transfers and by nothing else, whoever writes the SQL. So an account always equals its
transfers, and since a transfer takes from one account what it gives to another, the sum of all
balances is always 0. The last way past it is to drop the triggers, which takes the owner of
the tables and leaves a trace in the catalog.
"""

from typing import Final

from django.db import models
from django.db.models import F, Q


class AccountKind(models.TextChoices):
    """What an account is for. The comment says whose it is, and what its balance may be."""

    WALLET = "wallet"  # an org's; what it topped up and has not spent; never below 0
    ESCROW = "escrow"  # a job's; held for its next hour and its save; never below 0
    PAYABLE = "payable"  # an org's; earned, not yet paid out; never below 0
    IN_TRANSIT = "in_transit"  # an org's; on its way to the bank; never below 0
    RECEIVABLE = "receivable"  # an org's; what it owes us; never above 0
    VAT = "vat"  # a country's; tax collected for it; never below 0
    CASH = "cash"  # ours; below 0 by what came in from outside and has not gone back
    FEES = "fees"  # ours; the take, less what we made good out of it
    PROCESSOR_FEES = "processor_fees"  # ours; below zero by what cards have cost
    DISPUTES = "disputes"  # ours; paid by card and disputed since; never below 0


OURS: Final = (
    AccountKind.CASH, AccountKind.FEES, AccountKind.PROCESSOR_FEES, AccountKind.DISPUTES,
)  # fmt: skip
NEVER_NEGATIVE: Final = (
    AccountKind.WALLET, AccountKind.ESCROW, AccountKind.PAYABLE, AccountKind.IN_TRANSIT,
    AccountKind.VAT, AccountKind.DISPUTES,
)  # fmt: skip


class Account(models.Model):
    """A balance in micros. Opened ahead, or by the first `post` that names it, and kept for ever."""

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=20, choices=AccountKind)
    owner = models.UUIDField(null=True, help_text="An org, a job, a country; null where ours")
    balance = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "owner"], name="account_once", nulls_distinct=False
            ),
            models.CheckConstraint(
                name="account_not_overdrawn",
                condition=~Q(kind__in=NEVER_NEGATIVE) | Q(balance__gte=0),
            ),
            models.CheckConstraint(
                name="receivable_is_a_debt",
                condition=~Q(kind=AccountKind.RECEIVABLE) | Q(balance__lte=0),
            ),
            models.CheckConstraint(
                name="account_has_its_owner",
                condition=Q(kind__in=OURS, owner=None) | ~Q(kind__in=OURS) & Q(owner__isnull=False),
            ),
            models.CheckConstraint(
                name="account_kind_is_known", condition=Q(kind__in=AccountKind.values)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.owner or ''}".strip()


class Transfer(models.Model):
    """`amount` micros out of `debit` into `credit`, once and for ever."""

    id = models.UUIDField(primary_key=True, help_text="uuid5 of kind, reference and period")
    kind = models.CharField(max_length=40)
    debit = models.ForeignKey(
        Account, models.PROTECT, related_name="debits", db_index=False, db_constraint=False
    )
    credit = models.ForeignKey(
        Account, models.PROTECT, related_name="credits", db_index=False, db_constraint=False
    )
    amount = models.BigIntegerField()
    reference = models.UUIDField(help_text="The row that caused it: a job, a top-up, a payout")
    period = models.CharField(max_length=80, blank=True)
    at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(name="transfer_moves_money", condition=Q(amount__gt=0)),
            models.CheckConstraint(name="transfer_has_two_ends", condition=~Q(debit=F("credit"))),
            models.CheckConstraint(name="transfer_has_a_kind", condition=~Q(kind="")),
        ]
        indexes = [
            # For statements, and for the audit: both ends of an account, in time.
            models.Index(fields=["debit", "at"], name="transfer_out"),
            models.Index(fields=["credit", "at"], name="transfer_in"),
            # For receipts: everything that one job, top-up or payout moved.
            models.Index(fields=["reference", "at"], name="transfer_reference"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.amount} of {self.reference} {self.period}".strip()
