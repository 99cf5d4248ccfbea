"""Leases before they are written: matches become rows, and each start is held against its money.

Everything is read for all of a round's placements at once; nothing here writes.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import connection

from agent import protocol
from buyers.models import Checkpoint, Job
from marketplace.core.ids import uuid7
from marketplace.core.money import take_of
from marketplace.ledger import services as ledger
from marketplace.ledger.services import Move, Ref
from scheduler import book, escrow, specs
from scheduler.models import Assignment, Lease, Round
from scheduler.specs import Seat
from suppliers.models import Gpu


@dataclass(frozen=True)
class Placement:
    """A gang that was decided on: whole, of one GPU class, at prices the buyer has agreed to."""

    job: Job
    gpu_class: str
    level: int
    seats: tuple[Seat, ...]
    cells: tuple[str, ...] = ()
    """Of each seat, by the name that its prices are published under; empty outside of rounds."""


@dataclass(frozen=True)
class Draft:
    """A lease and its assignments, unsaved."""

    placement: Placement
    lease: Lease
    shares: list[Assignment]

    @property
    def job(self) -> Job:
        return self.placement.job

    @property
    def gpus(self) -> list[Gpu]:
        """All GPUs of the gang."""
        return [gpu for seat in self.placement.seats for gpu in seat.gpus]


@dataclass(frozen=True)
class Plan:
    """Who can start, who lacks what a start takes (in micros), and the moves of both."""

    funded: list[Draft] = field(default_factory=list)
    short: dict[Job, int] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)


@dataclass(frozen=True)
class _Known:
    """What is known of all jobs and nodes of a round's placements."""

    resumes: Mapping[UUID, Checkpoint]
    failures_per_hour: Mapping[object, float]
    fitted: Mapping[UUID, int]


def draft(placements: Sequence[Placement], *, round: Round | None, now: datetime) -> list[Draft]:
    """Leases with the next epochs, and their specs. A constant number of queries."""
    known = _known(placements, now)
    epochs = _epochs(len(placements))
    return [
        _draft(placement, epoch, round, known, now=now)
        for placement, epoch in zip(placements, epochs, strict=True)
    ]


def fund(drafts: Sequence[Draft], balances: Mapping[Ref, int], *, now: datetime) -> Plan:
    """Fills the escrows one start after the other, by `balances`; what a job that can't start has
    in escrow goes home, where the next may spend it. Pure but for `paid_through_s`."""
    plan, left = Plan(), dict(balances)
    for each in drafts:
        job, lease, shares = each.job, each.lease, each.shares
        rate = escrow.hourly(shares)
        needed = escrow.smallest(rate, len(shares), lease.save_s, settings.POLICY)
        moves = escrow.fill(job, lease, shares, left, now=now)
        held = left[ledger.escrow(job.pk)] + sum(move.amount for move in moves)
        if held >= needed:
            plan.funded.append(each)
        else:
            plan.short[job] = needed
            moves = escrow.rest(job, now=now, held=left[ledger.escrow(job.pk)])
        for move in moves:
            left[move.debit] -= move.amount
            left[move.credit] += move.amount
        plan.moves.extend(moves)
    return plan


def _known(placements: Sequence[Placement], now: datetime) -> _Known:
    jobs = [each.job for each in placements]
    nodes = {seat.node.pk: seat.node for each in placements for seat in each.seats}
    specs.read_inputs(jobs)
    fitted = Gpu.objects.filter(node__in=nodes, present=True).values_list("node_id", flat=True)
    reliability = book.reliability_of(list(nodes.values()), now=now)
    return _Known(
        specs.furthest_of(jobs),
        {node: known.failures_per_hour for node, known in reliability.items()},
        Counter(fitted),
    )


def _draft(
    placement: Placement, epoch: int, round: Round | None, known: _Known, *, now: datetime
) -> Draft:
    job, seats, policy = placement.job, placement.seats, settings.POLICY
    gpus = sum(len(seat.gpus) for seat in seats)
    total = sum(seat.price_micros * len(seat.gpus) for seat in seats)
    resume = known.resumes.get(job.pk)
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
        save_s=escrow.save_seconds(job, policy),
        created_at=now,
        until=now + timedelta(seconds=policy.lease_max_s),
        start_by=now + timedelta(seconds=patience),
    )
    shares = [_share(lease, seat, rank, now) for rank, seat in enumerate(seats)]
    gang = specs.gang_of(lease, seats)
    # A gang fails as soon as any of its machines does.
    failures = sum(known.failures_per_hour[seat.node.pk] for seat in seats)
    for share, seat in zip(shares, seats, strict=True):
        share.spec = specs.build(
            job, lease, share, seat, gang=gang, resume=resume, fitted=known.fitted[seat.node.pk],
            failures_per_hour=failures, policy=policy,
        )  # fmt: skip
        share.spec_sha256 = protocol.sha256_hex(share.spec)
    return Draft(placement, lease, shares)


def _share(lease: Lease, seat: Seat, rank: int, now: datetime) -> Assignment:
    return Assignment(
        id=uuid7(),
        lease=lease,
        node=seat.node,
        supplier_id=seat.node.site.org_id,
        offer=seat.offer,
        rank=rank,
        gpus_count=len(seat.gpus),
        price_micros=seat.price_micros,
        # A price below the ask is made up for out of the fee.
        take_bps=take_of(
            seat.price_micros, seat.offer.ask_micros, take_bps=settings.POLICY.take_bps
        ),
        state=Assignment.MACHINE.initial,
        state_since=now,
    )


def _epochs(count: int) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT nextval('scheduler_lease_epoch') FROM generate_series(1, %s)", [count]
        )
        return sorted(itertools.chain.from_iterable(cursor.fetchall()))
