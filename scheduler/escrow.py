"""What a job's escrow must hold, and how far it pays: the budget wall in figures.

A job's escrow covers at most an hour ahead and the save; it is filled when the job is placed
and topped up at each settlement. `paid_through_s` of an assignment follows from it, and the
node's keeper ends the job by itself there: nothing of ours has to be awake for the wall to hold.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from django.conf import settings

from buyers.models import Job
from marketplace.core import checkpoints
from marketplace.core.money import accrued, affordable_seconds
from marketplace.core.policy import Policy
from marketplace.ledger import services as ledger
from marketplace.ledger.services import Move, Ref
from scheduler.models import Assignment, Lease


class Funding(NamedTuple):
    """`amount` micros to move into escrow, which then pays for `seconds` of the whole gang."""

    amount: int
    seconds: int


def save_seconds(job: Job, policy: Policy) -> int:
    """Seconds held back for a last checkpoint, whose cost is measured or assumed."""
    return checkpoints.reserve_seconds(checkpoints.save_seconds(job.save_s, policy.save_default_s))


def plan(
    *, rate: int, parts: int, held: int, budget_left: int, wallet: int, save_s: int, policy: Policy
) -> Funding:
    """How much to add to an escrow of `held` micros, from a wallet, for `budget_left` in all.

    `rate` is the gang's price, micros per hour, over `parts` separately metered assignments
    (each may round up by one micro). Pure.
    """
    ahead = accrued(rate, 1, policy.escrow_s + save_s) + parts
    amount = max(0, min(ahead, budget_left) - held)
    amount = min(amount, wallet)
    return Funding(amount, affordable_seconds(rate, 1, max(0, held + amount - parts)))


def smallest(rate: int, parts: int, save_s: int, policy: Policy) -> int:
    """Micros without which a start makes no sense: the save, and one settlement of running."""
    return accrued(rate, 1, save_s + math.ceil(policy.settle_s)) + parts


def hourly(shares: Sequence[Assignment]) -> int:
    """What the assignments cost together, micros per hour."""
    return sum(share.price_micros * share.gpus_count for share in shares)


def top_up(job: Job, lease: Lease, shares: Sequence[Assignment], *, now: datetime) -> list[Move]:
    """The move that fills the escrow as far as budget and wallet go, and what it pays for.

    Sets `paid_through_s` on `shares`, unsaved. Call with the job locked and its wallet and
    escrow held.
    """
    wallet, escrow = ledger.wallet(job.org_id), ledger.escrow(job.pk)
    balances = ledger.balances([wallet, escrow])
    funding = plan(
        rate=hourly(shares),
        parts=len(shares),
        held=balances[escrow],
        budget_left=job.budget_left,
        wallet=balances[wallet],
        save_s=lease.save_s,
        policy=settings.POLICY,
    )
    for share in shares:
        share.paid_through_s = share.billed_s + funding.seconds
    return [filling(wallet, escrow, lease.epoch, funding, now=now)] if funding.amount else []


def filling(wallet: Ref, escrow: Ref, epoch: int, funding: Funding, *, now: datetime) -> Move:
    """The move into a job's escrow, for one lease and one moment. Its amount is not 0."""
    if escrow.owner is None:
        raise ValueError(f"{escrow} is nobody's escrow")
    period = f"{epoch}@{now.isoformat()}"
    return Move("escrow", wallet, escrow, funding.amount, escrow.owner, period)


def rest(job: Job, *, now: datetime, held: int | None = None) -> list[Move]:
    """What is left, or the `held` micros known to be, goes back to the wallet when a job comes to
    rest. Same locks as above."""
    escrow = ledger.escrow(job.pk)
    left = ledger.balance(escrow) if held is None else held
    if not left:
        return []
    return [Move("rest", escrow, ledger.wallet(job.org_id), left, job.pk, now.isoformat())]
