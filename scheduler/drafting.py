"""Leases before they are written: matches become rows, and each start is held against its money.

Everything is read for all of a round's placements at once; nothing here writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection

from agent import protocol
from buyers.models import Checkpoint, Job
from marketplace.core.ids import uuids7
from marketplace.core.money import with_premium
from marketplace.ledger import services as ledger
from marketplace.ledger.services import Move, Ref
from scheduler import escrow, records, specs
from scheduler.escrow import Funding
from scheduler.seats import Seat
from scheduler.specs import Files


class Placement(NamedTuple):
    """A gang that was decided on: whole, of one GPU class, at prices the buyer has agreed to."""

    job: Job
    gpu_class: str
    level: int
    seats: tuple[Seat, ...]
    cells: tuple[str, ...] = ()
    """Of each seat, by the name that its prices are published under; empty outside of rounds."""


@dataclass(slots=True)
class Share:
    """An assignment before it is written."""

    id: UUID
    seat: Seat
    price_micros: int
    """The seat's, with the job's premium: what the buyer pays per GPU-hour."""
    spec: bytes
    spec_sha256: str
    paid_through_s: int = 0


class Draft(NamedTuple):
    """A lease before it is written, and its assignments by rank."""

    id: UUID
    placement: Placement
    wallet: Ref
    escrow: Ref
    epoch: int
    save_s: int
    start_by: datetime
    shares: list[Share]
    gpus: int
    """In all of the gang."""
    hourly: int
    """What the gang costs, micros per hour."""

    @property
    def job(self) -> Job:
        return self.placement.job

    @property
    def nodes(self) -> list[UUID]:
        """By rank."""
        return [seat.machine.id for seat in self.placement.seats]


@dataclass(frozen=True)
class Plan:
    """Who can start, who lacks what a start takes (in micros), and the moves of both."""

    now: datetime
    funded: list[Draft] = field(default_factory=list)
    short: dict[Job, int] = field(default_factory=dict)
    home: list[Move] = field(default_factory=list)
    """What those who can't start had in escrow."""
    fundings: list[Funding] = field(default_factory=list)
    """Of the funded."""

    def moves(self) -> list[Move]:
        """All of them."""
        filled = zip(self.funded, self.fundings, strict=True)
        return self.home + [
            escrow.filling(each.wallet, each.escrow, each.epoch, funding, now=self.now)
            for each, funding in filled
            if funding.amount
        ]


@dataclass(frozen=True)
class Known:
    """What is known of all jobs and nodes of a round's placements."""

    placements: Sequence[Placement]
    epochs: Sequence[int]
    resumes: Mapping[UUID, Checkpoint]
    failures_per_hour: Mapping[UUID, float]
    usual_failures: float
    """Of a node that has no record."""
    wallets: Mapping[UUID, Ref]
    """Of the jobs' orgs."""
    files: Files = field(default_factory=dict)


def draft(placements: Sequence[Placement], *, now: datetime) -> list[Draft]:
    """Leases with the next epochs, and their specs. A constant number of queries."""
    return made(read(placements, now=now), now=now) if placements else []


def read(placements: Sequence[Placement], *, now: datetime) -> Known:
    """All that drafts of these are made of."""
    jobs = [each.job for each in placements]
    specs.read_inputs(jobs)
    nodes = {seat.machine.id for each in placements for seat in each.seats}
    return Known(
        placements,
        _epochs(len(placements)),
        specs.furthest_of(jobs),
        {node: it.failures_per_hour for node, it in records.known(nodes, now=now).items()},
        records.unknown().failures_per_hour,
        {org: ledger.wallet(org) for org in {job.org_id for job in jobs}},
    )


def made(known: Known, *, now: datetime) -> list[Draft]:
    """The drafts of what was read: asks the database nothing, whatever else it is asked meanwhile."""
    leases = uuids7(len(known.placements))
    shares = iter(uuids7(sum(len(each.seats) for each in known.placements)))
    return [
        _draft(placement, lease, list(islice(shares, len(placement.seats))), epoch, known, now=now)
        for placement, lease, epoch in zip(known.placements, leases, known.epochs, strict=True)
    ]  # fmt: skip


def fund(drafts: Sequence[Draft], balances: Mapping[Ref, int], *, now: datetime) -> Plan:
    """Fills the escrows one start after the other, by `balances`; what a job that can't start has
    in escrow goes home, where the next may spend it. Pure but for `paid_through_s`."""
    plan, left, policy = Plan(now), dict(balances), settings.POLICY
    for each in drafts:
        job, rate, parts = each.job, each.hourly, len(each.shares)
        wallet, held = each.wallet, each.escrow
        in_escrow = left[held]
        needed = escrow.smallest(rate, parts, each.save_s, policy)
        funding = escrow.plan(
            rate=rate, parts=parts, held=in_escrow, budget_left=job.budget_left,
            wallet=left[wallet], save_s=each.save_s, policy=policy,
        )  # fmt: skip
        if in_escrow + funding.amount >= needed:
            plan.funded.append(each)
            plan.fundings.append(funding)
            for share in each.shares:
                share.paid_through_s = funding.seconds
            left[wallet] -= funding.amount
            left[held] += funding.amount
        else:
            plan.short[job] = needed
            plan.home.extend(escrow.rest(job, now=now, held=in_escrow))
            left[wallet] += in_escrow
            left[held] -= in_escrow
    return plan


def _draft(
    placement: Placement, lease: UUID, ids: Sequence[UUID], epoch: int, known: Known, *,
    now: datetime,
) -> Draft:  # fmt: skip
    job, seats, policy = placement.job, placement.seats, settings.POLICY
    resume = known.resumes.get(job.id)
    brought = specs.brought(job)
    patience = specs.patience(brought, seats, resume, policy)
    of, usual = known.failures_per_hour, known.usual_failures
    failures = [of.get(seat.machine.id, usual) for seat in seats] if of else [usual] * len(seats)
    attempt = specs.Attempt(
        job=job,
        brought=brought,
        lease=lease,
        epoch=epoch,
        save_s=escrow.save_seconds(job, policy),
        # A gang fails as soon as any of its machines does.
        failures_per_hour=sum(failures),
        resume=resume,
        gang=specs.gang_of(job, epoch, seats, gather_s=max(patience)),
        patience=patience,
    )
    told = specs.build(attempt, seats, ids, files=known.files, policy=policy)
    shares = [
        Share(
            pk, seat, with_premium(seat.price_micros, job.premium_bps), spec,
            protocol.sha256_hex(spec),
        )
        for pk, seat, spec in zip(ids, seats, told, strict=True)
    ]  # fmt: skip
    start_by = now + timedelta(seconds=max(patience))
    wallet, escrowed = known.wallets[job.org_id], ledger.escrow(job.id)
    counts = [len(seat.gpus) for seat in seats]
    hourly = sum([share.price_micros * gpus for share, gpus in zip(shares, counts, strict=True)])
    return Draft(
        lease, placement, wallet, escrowed, epoch, attempt.save_s, start_by, shares, sum(counts),
        hourly,
    )  # fmt: skip


def _epochs(count: int) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT nextval('scheduler_lease_epoch') FROM generate_series(1, %s)", [count]
        )
        return sorted(chain.from_iterable(cursor.fetchall()))
