"""A lease's life: gangs are placed whole, followed by what their nodes report, drained, ended.

Load → decide → guarded apply. The job's row is the lock (`metering.locked_job`); functions that
take a `job` want it locked.
"""

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction

from agent import protocol
from agent.protocol import Gang
from agent.recipes.catalog import Exit
from buyers.models import Job
from marketplace import telemetry
from marketplace.core.ids import uuid7
from marketplace.ledger import services as ledger
from scheduler import book, credits, escrow, jobends, metering, restores, specs
from scheduler.models import Assignment, Lease, LeasedGpu, Round
from scheduler.specs import Seat

log = logging.getLogger(__name__)

MARKET_LOCK: Final = "market"
"""Held (`marketplace.locks.hold`) by whoever places: rounds and takes queue up behind it."""


@dataclass(frozen=True)
class Placement:
    """A gang that was decided on: whole, of one GPU class, at prices the buyer has agreed to."""

    job: Job
    gpu_class: str
    level: int
    seats: tuple[Seat, ...]
    cells: tuple[str, ...] = ()
    """Of each seat, by the name that its prices are published under; empty outside of rounds."""


def place(placements: Sequence[Placement], *, round: Round | None, now: datetime) -> list[Lease]:
    """Turns placements into leases, in the caller's transaction, under MARKET_LOCK.

    The caller has read jobs (locked, queued) and free GPUs under that lock, so nothing here can
    have moved but money: a job whose wallet no longer covers a start is left out, and stopped
    with the reason. `gpu_let_once` is the last guard and fails loudly.
    """
    # 1. Money: every wallet and escrow at once, in one order.
    ledger.hold(
        ref
        for placement in placements
        for ref in (
            ledger.wallet(placement.job.org_id),
            ledger.escrow(placement.job.pk),
        )
    )
    leases, shares, held_gpus = [], [], []
    epochs = _epochs(len(placements))
    rates = _failure_rates(placements, now)
    for placement, epoch, rate in zip(placements, epochs, rates, strict=True):
        lease, parts = _draft(placement, epoch, round, failures_per_hour=rate, now=now)
        if not _fund(placement.job, lease, parts, now):
            continue
        leases.append(lease)
        shares += parts
        held_gpus += [
            LeasedGpu(lease=lease, gpu=gpu) for seat in placement.seats for gpu in seat.gpus
        ]
    # 2. All rows of the round at once.
    Lease.objects.bulk_create(leases)
    Assignment.objects.bulk_create(shares)
    LeasedGpu.objects.bulk_create(held_gpus)
    for lease in leases:
        where = ", ".join(str(share.node) for share in shares if share.lease_id == lease.pk)
        lease.job.advance("place", now=now, reason=f"on {where}")
    # 3. The doorbells.
    _announce(leases, shares)
    return leases


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
    _announce([lease], shares)


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
    _announce([lease], [share])


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
    _announce([lease], list(lease.assignments.all()))


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


def _failure_rates(placements: Sequence[Placement], now: datetime) -> list[float]:
    """Failures an hour of each gang: it fails as soon as any of its machines does."""
    nodes = {seat.node.pk: seat.node for each in placements for seat in each.seats}
    known = book.reliability_of(list(nodes.values()), now=now)
    return [
        sum(known[seat.node.pk].failures_per_hour for seat in each.seats) for each in placements
    ]


def _draft(
    placement: Placement,
    epoch: int,
    round: Round | None,
    *,
    failures_per_hour: float,
    now: datetime,
) -> tuple[Lease, list[Assignment]]:
    job, seats, policy = placement.job, placement.seats, settings.POLICY
    gpus = sum(len(seat.gpus) for seat in seats)
    total = sum(seat.price_micros * len(seat.gpus) for seat in seats)
    resume = specs.furthest(job)
    patience = max(specs.start_timeout(job, seat.node, resume, policy) for seat in seats)
    lease = Lease(
        id=uuid7(),
        job=job,
        round=round,
        epoch=epoch,
        state=Lease.MACHINE.initial,
        state_since=now,
        gpu_class=placement.gpu_class,
        level=placement.level,
        gpus_count=gpus,
        price_micros=-(-total // gpus),
        take_bps=policy.take_bps,
        save_s=escrow.save_seconds(job, policy),
        created_at=now,
        until=now + timedelta(seconds=policy.lease_max_s),
        start_by=now + timedelta(seconds=patience),
    )
    gang = specs.gang_of(lease, seats)
    shares = [
        _draft_share(
            job, lease, seat, rank, gang=gang, failures_per_hour=failures_per_hour, now=now
        )
        for rank, seat in enumerate(seats)
    ]
    return lease, shares


def _draft_share(
    job: Job,
    lease: Lease,
    seat: Seat,
    rank: int,
    *,
    gang: Gang | None,
    failures_per_hour: float,
    now: datetime,
) -> Assignment:
    share = Assignment(
        id=uuid7(),
        lease=lease,
        node=seat.node,
        supplier_id=seat.node.site.org_id,
        offer=seat.offer,
        rank=rank,
        gpus_count=len(seat.gpus),
        price_micros=seat.price_micros,
        state=Assignment.MACHINE.initial,
        state_since=now,
    )
    share.spec = specs.build(
        job, lease, share, seat, gang=gang, failures_per_hour=failures_per_hour,
        policy=settings.POLICY,
    )  # fmt: skip
    share.spec_sha256 = protocol.sha256_hex(share.spec)
    return share


def _fund(job: Job, lease: Lease, shares: list[Assignment], now: datetime) -> bool:
    """Fills the escrow for a start; stops the job, with the reason, where that can't be done."""
    rate = escrow.hourly(shares)
    needed = escrow.smallest(rate, len(shares), lease.save_s, settings.POLICY)
    moves = escrow.top_up(job, lease, shares, now=now)
    held = ledger.balance(ledger.escrow(job.pk)) + sum(move.amount for move in moves)
    if held >= needed:
        ledger.post(moves, now=now)
        return True
    jobends.stop_unfunded(job, needed=needed, now=now)
    return False


def _epochs(count: int) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT nextval('scheduler_lease_epoch') FROM generate_series(1, %s)", [count]
        )
        return sorted(itertools.chain.from_iterable(cursor.fetchall()))


def _announce(leases: Iterable[Lease], shares: Iterable[Assignment]) -> None:
    """Rings at the nodes and the pages concerned, once this transaction has committed."""
    nodes: set[UUID] = {share.node_id for share in shares}
    jobs: set[UUID] = {lease.job_id for lease in leases}
    for node in nodes:
        transaction.on_commit(partial(telemetry.node_changed, node), robust=True)
    for job in jobs:
        transaction.on_commit(partial(telemetry.job_changed, job), robust=True)
