"""A lease's life: gangs are placed whole, followed by what their nodes report, drained, ended.

Load → decide → guarded apply. The job's row is the lock (`metering.locked_job`); functions that
take a `job` want it locked.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeAlias
from uuid import UUID

from django.conf import settings
from django.db import transaction

from agent.recipes.catalog import Exit
from buyers.models import Job
from marketplace import bulk, telemetry
from marketplace.bulk import Spelled
from marketplace.core.errors import Conflict
from marketplace.core.money import take_of
from marketplace.ledger import services as ledger
from marketplace.models import advance
from scheduler import credits, drafting, jobends, metering, restores
from scheduler.beside import Aside
from scheduler.drafting import Draft, Placement
from scheduler.models import Assignment, Lease, LeasedGpu, Round
from scheduler.seats import Seat

log = logging.getLogger(__name__)

MARKET_LOCK: Final = "market"
"""Held (`marketplace.locks.hold`) by whoever places: rounds and takes queue up behind it."""


def place(placements: Sequence[Placement], *, round: Round | None, now: datetime) -> list[Draft]:
    """Turns placements into leases, in the caller's transaction, under MARKET_LOCK and with the rows
    of the jobs locked."""
    return place_drafts(drafting.draft(placements, now=now), round=round, now=now)


def place_drafts(
    drafts: Sequence[Draft], *, round: Round | None, now: datetime, aside: Aside[Any] | None = None
) -> list[Draft]:
    """The same for placements that were drafted before; returns those that could be paid.

    The caller knows under that lock that the jobs (locked) are queued and the GPUs free
    (`seating.still_good`), so nothing here can have moved but money: a job whose wallet no longer
    covers a start is left out, and stopped with the reason. `gpu_let_once` is the last guard and fails
    loudly. The number of statements does not grow with the placements. `aside` is begun when only
    the database has anything left to do.
    """
    # 1. Money: every wallet and escrow at once, in one order.
    balances = ledger.hold(ref for each in drafts for ref in (each.wallet, each.escrow))
    plan = drafting.fund(drafts, balances, now=now)
    placed = plan.funded
    # 2. All that is written is spelled while the database takes in what comes before it.
    with ThreadPoolExecutor(1) as beside:
        tables = (_leases, _shares, _gpus) if placed else ()
        spelled = [beside.submit(_spelled, table, placed, round, now) for table in tables]
        moves = beside.submit(lambda: ledger.name(plan.moves()))
        where = beside.submit(_where, placed)
        if aside is not None:
            where.add_done_callback(lambda _: aside.begin())
        for rows in spelled:
            bulk.send(rows.result())
        ledger.post(moves.result(), now=now, held=balances)
        jobends.stop_unfunded(plan.short, now=now)
        jobs = [draft.job for draft in placed]
        moved = advance(jobs, "place", now=now, reason=where.result(), held=True)
    if len(moved) < len(placed):
        raise Conflict("one of these jobs has moved on; look again")
    # 3. The doorbells.
    _announce(
        (draft.job.id for draft in placed),
        (share.seat.machine.id for draft in placed for share in draft.shares),
    )
    return placed


_Rows: TypeAlias = Callable[[Sequence[Draft], Round | None, datetime], Spelled]


def _spelled(rows: _Rows, placed: Sequence[Draft], round: Round | None, now: datetime) -> Spelled:
    made = rows(placed, round, now)
    return made._replace(batches=list(made.batches))


def _leases(placed: Sequence[Draft], round: Round | None, now: datetime) -> Spelled:
    policy = settings.POLICY
    return bulk.spell(
        Lease,
        {
            "id": [draft.id for draft in placed],
            "job_id": [draft.job.id for draft in placed],
            "epoch": [draft.epoch for draft in placed],
            "gpu_class": [draft.placement.gpu_class for draft in placed],
            "level": [draft.placement.level for draft in placed],
            "gpus_count": [draft.gpus for draft in placed],
            "price_micros": [-(-draft.hourly // draft.gpus) for draft in placed],
            "save_s": [draft.save_s for draft in placed],
            "start_by": [draft.start_by for draft in placed],
        },
        {
            "round_id": round and round.pk, "state": Lease.MACHINE.initial, "state_since": now,
            "created_at": now,
            "until": now + timedelta(seconds=policy.lease_max_s),
        },
    )  # fmt: skip


def _shares(placed: Sequence[Draft], round: Round | None, now: datetime) -> Spelled:
    shares = [share for draft in placed for share in draft.shares]
    return bulk.spell(
        Assignment,
        {
            "id": [share.id for share in shares],
            "lease_id": [draft.id for draft in placed for _ in draft.shares],
            "node_id": [share.seat.machine.id for share in shares],
            "supplier_id": [share.seat.machine.supplier for share in shares],
            "offer_id": [share.seat.offer for share in shares],
            "rank": [rank for draft in placed for rank in range(len(draft.shares))],
            "gpus_count": [len(share.seat.gpus) for share in shares],
            "price_micros": [share.price_micros for share in shares],
            "take_bps": [_take(share.seat) for share in shares],
            "spec": [share.spec for share in shares],
            "spec_sha256": [share.spec_sha256 for share in shares],
            "paid_through_s": [share.paid_through_s for share in shares],
        },
        {"state": Assignment.MACHINE.initial, "state_since": now},
    )


def _gpus(placed: Sequence[Draft], round: Round | None, now: datetime) -> Spelled:
    let = [(draft.id, share.seat.gpus) for draft in placed for share in draft.shares]
    return bulk.spell(
        LeasedGpu,
        {
            "lease_id": [lease for lease, gpus in let for _ in gpus],
            "gpu_id": [gpu.id for _, gpus in let for gpu in gpus],
        },
        {},
    )


def _where(placed: Sequence[Draft]) -> dict[UUID, str]:
    """What the jobs' stories tell of it."""
    return {
        draft.job.id: f"on {', '.join([share.seat.machine.name for share in draft.shares])}"
        for draft in placed
    }


def _take(seat: Seat) -> int:
    """A price below the ask is made up for out of the fee. Of a premium the same share is kept as of
    the price that it is on."""
    return take_of(seat.price_micros, seat.ask_micros, take_bps=settings.POLICY.take_bps)


def follow(job: Job, lease: Lease, *, now: datetime) -> None:
    """Takes a lease as far as its assignments have come, and its job with it."""
    shares = list(lease.assignments.order_by("rank"))
    needed = [share for share in shares if share.spared_at is None]
    if lease.state == "reserved" and any(share.state != "reserved" for share in shares):
        lease.advance("start", now=now)
    if lease.state == "starting" and all(share.running_at for share in shares):
        metering.begin(lease)
        lease.advance("run", now=now, running_at=max(s.running_at for s in shares if s.running_at))
        restores.prove(lease, now=now)
        if job.state == "placed":
            job.advance("start", now=now)
    # One rank that ended badly takes the gang with it, unless that can do without.
    broken = [share for share in needed if share.gone_at and share.exit_code != 0]
    if broken and not lease.end_reason and any(not share.gone_at for share in needed):
        if jobends.verdict(job, lease, broken)[0] != "failed" and can_spare(job, lease, broken):
            needed = _go_on_without(lease, needed, broken, now=now)
        else:
            _break_up(job, lease, broken, now=now)
    leaving = lease.end_reason or any(share.state in ("draining", "gone") for share in needed)
    if lease.state == "running" and leaving:
        lease.advance("drain", now=now, reason=lease.end_reason)
    if all(share.settled_at for share in shares) and lease.state != "ended":
        # What it has cost decides what it can still afford.
        metering.settle_lease(job, lease, now=now)
        reason, detail = jobends.verdict(job, lease, needed)
        _end(job, lease, reason, detail, now=now)


def drain(
    job: Job, lease: Lease, reason: str, *, detail: str, grace_s: float, now: datetime
) -> None:
    """Asks all nodes of a lease to checkpoint and leave.

    The first reason stays, but the buyer's word overrules: what they stop or cancel while it is
    leaving for another reason does not go on elsewhere.
    """
    if lease.state == "ended":
        return
    if not lease.end_reason or _weight(reason) > _weight(lease.end_reason):
        lease.end_reason, lease.end_detail = reason, detail[:300]
        lease.save(update_fields=["end_reason", "end_detail"])
    _ask_to_leave(lease, reason, grace_s=grace_s, now=now)


def _ask_to_leave(lease: Lease, why: str, *, grace_s: float, now: datetime) -> None:
    shares = [share for share in lease.assignments.order_by("rank") if share.gone_at is None]
    for share in shares:
        sooner = share.drain_at is None or grace_s < share.drain_grace_s
        if sooner:
            share.drain_why = share.drain_why or why
            share.drain_grace_s, share.drain_at = grace_s, share.drain_at or now
    Assignment.objects.bulk_update(shares, ["drain_why", "drain_grace_s", "drain_at"])
    _announce([lease.job_id], [share.node_id for share in shares])


def can_spare(job: Job, lease: Lease, lost: Sequence[Assignment]) -> bool:
    """Whether a gang goes on without these ranks: the first one, which writes, and enough GPUs
    are left."""
    if lease.state != "running" or lease.end_reason:
        return False
    others = lease.assignments.exclude(pk__in=[share.pk for share in lost])
    left = list(others.filter(spared_at=None, gone_at=None, drain_at=None))
    gpus = sum(share.gpus_count for share in left)
    return gpus >= job.gpus_min and any(share.rank == 0 for share in left)


def spare(lease: Lease, share: Assignment, why: str, *, grace_s: float, now: datetime) -> None:
    """Asks one node to leave while the rest of its gang goes on; see `can_spare`."""
    _go_on_without(lease, [share], [share], now=now)
    share.drain_why, share.drain_grace_s, share.drain_at = why, grace_s, now
    share.save(update_fields=["drain_why", "drain_grace_s", "drain_at"])
    _announce([lease.job_id], [share.node_id])


def _go_on_without(
    lease: Lease, shares: Sequence[Assignment], lost: Sequence[Assignment], *, now: datetime
) -> list[Assignment]:
    for share in lost:
        share.spared_at = now
    Assignment.objects.bulk_update(lost, ["spared_at"])
    nodes = ", ".join(str(share.node) for share in lost)
    log.info("lease %s goes on without %s", lease.pk, nodes)
    return [share for share in shares if share not in lost]


def release(share: Assignment, *, now: datetime) -> None:
    """The process is reported gone: the GPUs may be let again."""
    LeasedGpu.objects.filter(
        lease=share.lease_id, gpu__node=share.node_id, released_at=None
    ).update(released_at=now)


def _end(job: Job, lease: Lease, reason: str, detail: str, *, now: datetime) -> None:
    """Ends a lease that has been billed: credits what was lost, and moves its job on."""
    lease.advance(
        "end", now=now, reason=f"{reason}: {detail}" if detail else reason,
        end_reason=reason, end_detail=detail[:300], ended_at=now,
    )  # fmt: skip
    Assignment.objects.filter(lease=lease, settled_at=None).update(settled_at=now)
    credits.give(job, lease, now=now)
    jobends.move_on(job, lease, now=now)
    _announce([lease.job_id], lease.assignments.values_list("node_id", flat=True))


def _break_up(job: Job, lease: Lease, broken: Sequence[Assignment], *, now: datetime) -> None:
    """The rest of a gang leaves for those that broke, whose word is not always the last: a rank
    that has left for another's sake says so, and the other's own word is still to come."""
    reason, detail = jobends.verdict(job, lease, broken)
    # Those who are left may hold all that was learnt: time to save it, unless the job failed.
    grace_s = 0.0 if reason == "failed" else float(lease.save_s)
    if any(share.exit_code != Exit.PEER_LOST for share in broken):
        drain(job, lease, reason, detail=detail, grace_s=grace_s, now=now)
    else:
        _ask_to_leave(lease, "parted", grace_s=grace_s, now=now)


def _weight(reason: str) -> int:
    return {"cancelled": 2, "stopped": 1}.get(reason, 0)


def _announce(jobs: Iterable[UUID], nodes: Iterable[UUID]) -> None:
    """Rings at the nodes and the pages concerned, once this transaction has committed."""
    transaction.on_commit(partial(telemetry.node_changed, *set(nodes)), robust=True)
    transaction.on_commit(partial(telemetry.job_changed, *set(jobs)), robust=True)
