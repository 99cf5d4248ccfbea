"""What buyers do with jobs: bid, take, cancel, stop, resume; and what a job says of itself."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction

from buyers import services as buyers
from buyers.models import Job, Quote
from marketplace import locks, telemetry
from marketplace.core import words
from marketplace.core.errors import Conflict, Expired, Invalid, NotEnoughMoney
from marketplace.core.money import before_premium, format_amount, parse_amount
from marketplace.core.specs import JobRequest
from marketplace.ledger import services as ledger
from marketplace.models import Org
from scheduler import book, escrow, leases, limits, metering, timing
from scheduler.drafting import Placement
from scheduler.explaining import JobTold
from scheduler.holds import Held
from scheduler.leases import MARKET_LOCK
from scheduler.models import Lease
from scheduler.seats import Seat, seated
from suppliers.models import Offer

_WAITING = {
    "reserved": "waiting for the node to take it up",
    "starting": "being made ready on the node",
}


@transaction.atomic
def submit(org: Org, request: JobRequest, *, by: User, now: datetime) -> Job:
    """A bid: the job waits for a round to find it the best place within its limits.

    Raises Invalid for what can't run, NotEnoughMoney if the wallet doesn't cover a start.
    """
    plan = buyers.plan(org, request, now=now)
    capped = limits.of(request, plan, now=now)
    job = buyers.create_job(
        org, request, plan=plan, limits=capped, order=Job.Order.BID, by=by, now=now
    )
    require_start(job, min(capped.values()))
    # The round that places it with thousands of others then finds its escrow.
    ledger.open([ledger.escrow(job.pk)])
    transaction.on_commit(lambda: telemetry.job_changed(job.pk), robust=True)
    return job


@transaction.atomic
def take(quote: Quote, *, option: int, by: User, now: datetime) -> Job:
    """The quoted option, at once, at the price shown; all of its GPUs or none.

    Raises Expired when the quote is older than the hold, Conflict when the offer has changed or
    its GPUs are let by now, Invalid for an option that doesn't fit, NotEnoughMoney.
    """
    quote = Quote.objects.select_for_update().get(pk=quote.pk)
    chosen = _option(quote, option)
    if quote.taken_at is not None:
        raise Conflict("this quote has already been taken")
    if now > quote.expires_at:
        raise Expired("this quote's prices no longer hold; ask for a new one")
    request = JobRequest.from_json(quote.request)
    plan = buyers.plan(quote.org, request, now=now)
    price, premium = int(chosen["price_micros"]), settings.POLICY.premium_of(request.service)
    capped = limits.of(request, plan, now=now)
    capped[chosen["gpu_class"]] = max(price, capped.get(chosen["gpu_class"], 0))
    # From here on nobody else places anything.
    locks.hold(MARKET_LOCK)
    seats = _seats(chosen, before_premium(price, premium), now)
    job = buyers.create_job(
        quote.org, request, plan=plan, limits=capped, order=Job.Order.TAKE, by=by, now=now,
        quoted={
            **{name: chosen[name] for name in ("seconds_low", "seconds", "seconds_high")},
            "micros": chosen["total"],
        },
    )  # fmt: skip
    require_start(job, price)
    placement = Placement(job, chosen["gpu_class"], int(chosen["level"]), seats)
    if not leases.place([placement], round=None, now=now):
        raise NotEnoughMoney("the wallet doesn't cover the start of this job; top it up")
    quote.taken_at, quote.job = now, job
    quote.save(update_fields=["taken_at", "job"])
    return job


def cancel(job: Job, *, by: User, now: datetime) -> Job:
    """Ends a job for good and at once; what it had saved and paid stays.

    Raises Conflict if it has already come to rest.
    """
    return _end(job, "cancel", "cancelled", by=by, now=now)


def stop(job: Job, *, by: User, now: datetime) -> Job:
    """Checkpoints and stops a job, which can be resumed. Raises Conflict if it is at rest."""
    return _end(job, "stop", "stopped", by=by, now=now)


@transaction.atomic
def resume(job: Job, *, by: User, now: datetime, budget: str = "") -> Job:
    """Queues a stopped job again, from its last checkpoint, perhaps with a higher budget.

    `budget` is a decimal amount, in all; raises Invalid if it is below what is already spent,
    NotEnoughMoney if budget or wallet don't cover a start, Conflict if it isn't stopped or the
    org has too many jobs that wait or run.
    """
    job = metering.locked_job(job.pk)
    if job.state == "stopped":
        buyers.require_room(job.org)
    if job.deadline_at is not None and job.deadline_at <= now:
        raise Conflict("its deadline has passed; order it anew, with a later one or none")
    if budget:
        job.budget_micros = parse_amount(budget, field="budget")
        if job.budget_micros <= job.spent_micros:
            spent = format_amount(job.spent_micros)
            raise Invalid(f"the job has already spent {spent}; the budget must be more than that",
                          field="budget")  # fmt: skip
    require_start(job, min(job.limits.values()))
    job.fruitless, job.avoid_nodes = 0, []
    job.save(update_fields=["budget_micros", "fruitless", "avoid_nodes"])
    job.advance("resume", now=now, by=by.get_username(), queued_at=now)
    transaction.on_commit(lambda: telemetry.job_changed(job.pk), robust=True)
    return job


def current_lease(job: Job) -> Lease | None:
    """The job's live lease, else its last one."""
    return job.leases.order_by("-epoch").first()


def describe(job: Job, told: JobTold | None = None, held: Held | None = None) -> str:
    """The job's state in words that tell a buyer what is going on, and why it waits, as the last
    round has `told`, or what it waits for: what is `held` for it."""
    lease = current_lease(job)
    if job.state == "queued" and held is not None:
        return f"waiting: {held.words}"
    if job.state == "queued":
        return f"waiting: {told.words}" if told else "waiting for the next round"
    if job.state == "placed" and lease is not None:
        shares = list(lease.assignments.select_related("node__site"))
        details = "; ".join(share.detail for share in shares if share.detail)
        where = ", ".join(share.node.name for share in shares)
        return f"on {where}: {details or _WAITING.get(lease.state, lease.state)}"
    if job.state == "running" and lease is not None:
        return _how_running(job, lease)
    last = job.story().last()
    return f"{job.state}: {last.reason}" if last and last.reason else job.state


def require_start(job: Job, price: int) -> None:
    """Raises NotEnoughMoney or Invalid unless budget and wallet cover a start at `price`."""
    rate = price * job.gpus_min
    needed = escrow.smallest(
        rate, job.gpus_min, escrow.save_seconds(job, settings.POLICY), settings.POLICY
    )
    if job.budget_left < needed:
        raise Invalid(
            f"the budget must leave at least {format_amount(needed)}: the reserve for one "
            "checkpoint and a minute of running at the limit",
            field="budget",
        )
    held = ledger.balance(ledger.wallet(job.org_id)) + ledger.balance(ledger.escrow(job.pk))
    if held < needed:
        raise NotEnoughMoney(
            f"a start takes {format_amount(needed)} and the wallet holds {format_amount(held)}; "
            "top it up first"
        )


def _end(job: Job, event: str, reason: str, *, by: User, now: datetime) -> Job:
    with transaction.atomic():
        job = metering.locked_job(job.pk)
        said = f"asked for by {by.get_username()}"
        lease = job.leases.live().first()
        if lease is None:
            job.advance(event, now=now, by=by.get_username(), reason=said)
            metering.rest(job, now=now)
        else:
            job.MACHINE.after(job.state, event)
            grace = 0.0 if event == "cancel" else float(lease.save_s)
            leases.drain(job, lease, reason, detail=said, grace_s=grace, now=now)
        transaction.on_commit(lambda: telemetry.job_changed(job.pk), robust=True)
        return job


def _option(quote: Quote, index: int) -> Mapping[str, Any]:
    if not 0 <= index < len(quote.options):
        raise Invalid(f"this quote has no option {index}", field="option")
    chosen: Mapping[str, Any] = quote.options[index]
    if not chosen["fits"]:
        raise Invalid(f"this option doesn't fit: {chosen['why']}", field="option")
    return chosen


def _seats(chosen: Mapping[str, Any], price: int, now: datetime) -> tuple[Seat, ...]:
    """The option's GPUs at a price before premium, read anew under the market lock. Raises Conflict
    if any is let."""
    seats = []
    for wanted in chosen["seats"]:
        offer = (
            Offer.objects.open()
            .filter(pk=wanted["offer"], node__in=book.lettable(now))
            .select_related("node__site")
            .first()
        )
        if offer is None:
            raise Conflict("this offer is no longer open; ask for a new quote")
        free = list(book.free_gpus(offer.node.pk, chosen["gpu_class"])[: int(wanted["gpus"])])
        if len(free) < int(wanted["gpus"]):
            raise Conflict("somebody was first: these GPUs are let; ask for a new quote")
        seats.append(seated(offer, free, price))
    return tuple(seats)


def _how_running(job: Job, lease: Lease) -> str:
    where = ", ".join(share.node.name for share in lease.assignments.select_related("node"))
    if lease.end_reason:
        return f"leaving {where} ({lease.end_reason.replace('_', ' ')}), saving first"
    if all(share.gone_at for share in lease.assignments.all()):
        return f"done on {where}, sending the result"
    steps = f", step {job.step} of {job.total_steps}" if job.total_steps else ""
    left = timing.left(job, lease)
    return f"running on {where}{steps}{f', about {words.duration(left)} left' if left else ''}"
