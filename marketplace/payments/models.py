"""Top-ups, payouts, and what the card processor told us."""

from typing import ClassVar, Self

from django.conf import settings
from django.db import models
from django.db.models import Q

from marketplace.core.states import PAYOUT, TOP_UP, Machine
from marketplace.models import Org, Stateful


class TopUpQuerySet(models.QuerySet["TopUp"]):
    def of(self, org: Org) -> Self:
        return self.filter(org=org)

    def open(self) -> Self:
        return self.filter(state="open")

    def with_unknown_cost(self) -> Self:
        """Credited, and what the card cost is still to come."""
        return self.filter(state="credited", cost=None)


class TopUp(Stateful):
    """Money that an org wants to bring in by card. Amounts in micros."""

    MACHINE: ClassVar[Machine] = TOP_UP

    org = models.ForeignKey(Org, models.PROTECT, related_name="top_ups")
    amount = models.BigIntegerField()
    cost = models.BigIntegerField(null=True, help_text="What the processor kept, once known")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    created_at = models.DateTimeField()
    credited_at = models.DateTimeField(null=True)
    checkout_session_id = models.CharField(max_length=255, null=True, unique=True)  # noqa: DJ001
    payment_intent_id = models.CharField(max_length=255, null=True, unique=True)  # noqa: DJ001

    objects = TopUpQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(name="top_up_brings_money", condition=Q(amount__gt=0)),
            models.CheckConstraint(
                name="top_up_state_is_known", condition=Q(state__in=TOP_UP.states)
            ),
            models.CheckConstraint(
                name="top_up_credited_has_its_payment",
                condition=~Q(state="credited")
                | Q(credited_at__isnull=False, payment_intent_id__isnull=False),
            ),
        ]
        indexes = [
            # For the sweep: the few that wait for an answer.
            models.Index(
                fields=["created_at"], name="top_up_waiting",
                condition=Q(state="open") | Q(state="credited", cost=None),
            ),
            # For an org's page of payments.
            models.Index(fields=["org", "created_at"], name="top_up_of_org"),
        ]  # fmt: skip


class Payout(Stateful):
    """Earnings on their way to a supplier's bank. Amount in micros."""

    MACHINE: ClassVar[Machine] = PAYOUT

    org = models.ForeignKey(Org, models.PROTECT, related_name="payouts")
    amount = models.BigIntegerField()
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    created_at = models.DateTimeField()
    transfer_id = models.CharField(max_length=255, null=True, unique=True)  # noqa: DJ001
    payout_id = models.CharField(max_length=255, null=True, unique=True)  # noqa: DJ001

    class Meta:
        constraints = [
            models.CheckConstraint(name="payout_brings_money", condition=Q(amount__gt=0)),
            models.CheckConstraint(
                name="payout_state_is_known", condition=Q(state__in=PAYOUT.states)
            ),
        ]
        indexes = [models.Index(fields=["org", "created_at"], name="payout_of_org")]


class WebhookEvent(models.Model):
    """One event of the processor's, however often it was delivered: a ring of the doorbell."""

    id = models.CharField(primary_key=True, max_length=255, help_text="The processor's own id")
    type = models.CharField(max_length=100)
    subject = models.CharField(max_length=255, help_text="The id of the object it is about")
    received_at = models.DateTimeField()
    applied_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=200, blank=True)

    class Meta:
        indexes = [
            # For the sweep: those that could not be acted on when they came.
            models.Index(
                fields=["received_at"], name="webhook_waiting", condition=Q(applied_at=None)
            )
        ]
