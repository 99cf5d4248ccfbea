"""Pay for progress: what was billed and then lost through the supplier's side comes back."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings

from buyers.models import Job
from marketplace.core.money import charge, fee
from marketplace.ledger import services as ledger
from marketplace.ledger.services import FEES, Move
from scheduler.models import Assignment, Credit, Lease

_BROKEN: Final = "the node ended it before a checkpoint could be saved"
_REASONS: Final = {
    "node_lost": "the node was lost, and with it what ran since the last checkpoint",
    "reclaimed": "the owner took the node back before a checkpoint could be saved",
    "start_timeout": "the node did not start the job in time",
    "displaced": "the market moved the job before a checkpoint could be saved",
    "grown": "the market moved the job before a checkpoint could be saved",
}


def give(job: Job, lease: Lease, *, now: datetime) -> int:
    """Credits the buyer for running time since the last checkpoint; returns micros.

    The supplier at fault gives back what it earned for it, the platform its fee, and the
    platform also stands in for innocent ranks, which keep theirs. Call when the lease has been
    settled, with its accounts held (`metering.settle_lease` holds them).
    """
    shares = list(lease.assignments.order_by("pk"))
    reason = _REASONS.get(lease.end_reason)
    if reason is None and any(share.at_fault and not share.spared_at for share in shares):
        # The buyer's word came after the node's fault, and does not excuse it.
        reason = _BROKEN
    if reason is None:
        return 0
    # The gang's checkpoint is rank 0's: all ranks lose what came after it.
    saved = max(share.saved_ms for share in shares) // 1000
    lost = [
        _Lost(
            share,
            max(saved, share.waited_s),
            share.billed_s,
            at_fault=share.at_fault and not share.spared_at,
        )
        for share in shares
        if share.billed_s > max(saved, share.waited_s)
    ]
    return _give_back(job, lost, reason=reason, period="", now=now)


def take_back(job: Job, lease: Lease, *, saved_ms: int, step: int, now: datetime) -> int:
    """Credits what an ended lease was paid after `saved_ms`: what it saved later at `step` can't
    be read, by whatever reason it ended. Returns micros. The job must be locked. Once its pay may
    have been paid out nothing is taken back any more: there is nobody left to take it from.

    Rank 0 wrote it, and its supplier gives back what it earned for it; what has been credited
    before is not credited again.
    """
    hold = timedelta(seconds=settings.POLICY.payout_hold_s)
    if lease.ended_at is not None and lease.ended_at < now - hold:
        return 0
    shares = list(lease.assignments.select_for_update(no_key=True).order_by("pk"))
    ledger.hold(
        [ledger.wallet(job.org_id), FEES, *(ledger.payable(share.supplier_id) for share in shares)]
    )
    before = max(share.saved_ms for share in shares) // 1000
    lost = []
    for share in shares:
        until = min(before, share.billed_s) if share.credits.exists() else share.billed_s
        since = max(saved_ms // 1000, share.waited_s)
        if until > since:
            lost.append(_Lost(share, since, until, at_fault=share.rank == 0))
        share.saved_ms = min(share.saved_ms, saved_ms)
    Assignment.objects.bulk_update(shares, ["saved_ms"])
    reason = f"its checkpoint of step {step} can't be read: the bytes are not what it declared"
    return _give_back(job, lost, reason=reason, period=f" {step}", now=now)


def unsaved_ms(shares: Sequence[Assignment]) -> int:
    """Milliseconds that a gang has run, as far as they are billed, since its last checkpoint: lost if
    it ends so. Of no shares, none."""
    ran = max((share.accrued_ms for share in shares), default=0)
    saved = max((share.saved_ms for share in shares), default=0)
    return max(0, ran - saved)


def unsaved_s(shares: Sequence[Assignment]) -> int:
    """The same in whole seconds."""
    return unsaved_ms(shares) // 1000


@dataclass(frozen=True)
class _Lost:
    """Billed seconds of one node that brought no progress."""

    share: Assignment
    since_s: int
    until_s: int
    at_fault: bool


def _give_back(job: Job, lost: Sequence[_Lost], *, reason: str, period: str, now: datetime) -> int:
    wallet = ledger.wallet(job.org_id)
    payable = ledger.balances({ledger.payable(each.share.supplier_id) for each in lost})
    moves, given = [], []
    for each in lost:
        share, span = each.share, (each.since_s, each.until_s)
        paid = charge(share.price_micros, share.gpus_count, *span)
        kept = fee(share.price_micros, share.gpus_count, *span, take_bps=share.take_bps)
        supplier = ledger.payable(share.supplier_id)
        # Whoever lends to himself gets back what he has not taken out: no fee, and nobody stands in.
        is_own = share.supplier_id == job.org_id
        own = min(paid - kept, payable[supplier]) if each.at_fault or is_own else 0
        back = own if is_own else paid
        payable[supplier] -= own
        if own:
            moves.append(Move("credit", supplier, wallet, own, share.pk, f"supplier{period}"))
        if back - own:
            moves.append(Move("credit", FEES, wallet, back - own, share.pk, f"platform{period}"))
        if back:
            given.append(Credit(assignment=share, micros=back, from_supplier_micros=own,
                                reason=reason, at=now))  # fmt: skip
    _write(job, moves, given, now)
    return sum(credit.micros for credit in given)


def _write(job: Job, moves: Sequence[Move], given: Sequence[Credit], now: datetime) -> None:
    if not given:
        return
    ledger.post(moves, now=now)
    Credit.objects.bulk_create(given)
    # What came back may be spent again: the budget is a wall around what was paid in the end.
    job.spent_micros -= sum(credit.micros for credit in given)
    job.save(update_fields=["spent_micros"])
