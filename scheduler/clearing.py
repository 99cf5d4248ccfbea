"""A round: the book is read, cleared by the pure engine, and written down in one transaction.

Reading and clearing happen outside of any lock; the commit takes the market's lock, looks again
at every job, offer and GPU that it is about to use, and drops gangs of which anything has moved.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import transaction

from buyers.models import Job
from marketplace import locks
from marketplace.core.ids import uuid7
from marketplace.core.money import MICRO
from scheduler import archive, explaining, history, leases, prices, snapshots
from scheduler import book as market
from scheduler.book import Standing
from scheduler.drafting import Placement
from scheduler.explaining import Cleared
from scheduler.leases import MARKET_LOCK
from scheduler.matching.book import digest
from scheduler.matching.clear import clear
from scheduler.matching.matches import Matches
from scheduler.models import ClearingPrice, Round
from scheduler.snapshots import Snapshot
from scheduler.specs import Seat
from suppliers.models import Gpu

log = logging.getLogger(__name__)

_QUIET: Final = timedelta(minutes=1)
"""Rounds that match nothing are written down no more often than this."""


def clear_market(*, now: datetime) -> int:
    """One round; returns how many jobs it placed. Call it from one process at a time."""
    snapshot = snapshots.read(now)
    if not snapshot.jobs:
        return 0
    started = time.perf_counter()
    matches = clear(snapshot.book)
    seconds = time.perf_counter() - started
    matches = replace(matches, seconds=seconds)
    placed = 0
    if snapshot.rows:
        with transaction.atomic():
            locks.hold(MARKET_LOCK)
            placed = _commit(snapshot, matches, seconds=seconds, now=now)
    explaining.tell(_cleared(snapshot, matches, seconds), now=now)
    return placed


def _cleared(snapshot: Snapshot, matches: Matches, seconds: float) -> Cleared:
    """The round as it is explained to those who got nothing."""
    return Cleared(
        book=snapshot.book, matches=matches, jobs=snapshot.jobs, wanted=snapshot.wanted,
        rows=snapshot.rows, standing=snapshot.standing, seconds=seconds, clear=clear,
    )  # fmt: skip


def _commit(snapshot: Snapshot, matches: Matches, *, seconds: float, now: datetime) -> int:
    placements = _still_good(snapshot, matches, now)
    last = Round.objects.order_by("-at").first()
    if not placements and last is not None and now - last.at < _QUIET:
        return 0
    round = Round.objects.create(
        id=uuid7(),
        at=now,
        jobs=len(snapshot.jobs),
        gpus=int(snapshot.book.node_gpus.sum()),
        matched_jobs=len(placements),
        matched_gpus=sum(len(seat.gpus) for each in placements for seat in each.seats),
        welfare=float(matches.welfare),
        bound=float(matches.bound),
        make_whole=float(matches.make_whole),
        seconds=seconds,
        seed=snapshot.book.params.seed,
        book_sha256=digest(snapshot.book),
    )
    placed = leases.place(placements, round=round, now=now)
    kept = {lease.job_id for lease in placed}
    _publish(round, [each for each in placements if each.job.pk in kept], now)
    archive.keep(round, snapshot, matches, kept)
    return len(kept)


def _still_good(snapshot: Snapshot, matches: Matches, now: datetime) -> list[Placement]:
    """The matched gangs of which nothing has moved since the book was read, under the lock."""
    by_job: dict[int, list[tuple[int, int, float]]] = {}
    columns = (matches.job, matches.node, matches.gpus, matches.price)
    for job, node, gpus, price in zip(*(column.tolist() for column in columns), strict=True):
        by_job.setdefault(job, []).append((node, gpus, price))
    if not by_job:
        return []
    wanted = [snapshot.jobs[index].pk for index in by_job]
    queued = (
        Job.objects.queued().filter(pk__in=wanted).select_for_update(no_key=True).order_by("pk")
    )
    jobs = {job.pk: job for job in queued}
    among = {snapshot.rows[node].offer.pk for node in matches.node.tolist()}
    fresh = {row.offer.pk: row for row in market.standing(now, among=among)}
    # What is left of each offer as gang after gang takes its part.
    free = {offer: list(row.free) for offer, row in fresh.items()}
    placements = []
    # Numbers fall as they fall: whoever has waited longest has the first say where two can't both be.
    for index in sorted(by_job, key=lambda at: (snapshot.jobs[at].queued_at, snapshot.jobs[at].pk)):
        rows = by_job[index]
        job = jobs.get(snapshot.jobs[index].pk)
        if job and not job.gpus_min <= sum(gpus for _, gpus, _ in rows) <= job.gpus_max:
            job = None
        seats = _seats(snapshot, rows, fresh, free) if job else None
        if job is None or seats is None:
            moved = snapshot.jobs[index].pk
            log.info("job %s is left to the next round: it or its offer has moved", moved)
            continue
        for seat in seats:
            free[seat.offer.pk] = [gpu for gpu in free[seat.offer.pk] if gpu not in seat.gpus]
        gpu_class = seats[0].gpus[0].gpu_class
        cells = tuple(prices.cell_of(fresh[seat.offer.pk].stands) for seat in seats)
        level = int(matches.level[index])
        placements.append(Placement(job, gpu_class, level, seats, cells))
    return placements


def _seats(
    snapshot: Snapshot,
    rows: Sequence[tuple[int, int, float]],
    fresh: Mapping[UUID, Standing],
    free: Mapping[UUID, Sequence[Gpu]],
) -> tuple[Seat, ...] | None:
    """A gang's seats from its rows, or None if an offer has gone, changed or is let by now."""
    by_node: dict[int, list[tuple[int, float]]] = {}
    for node, gpus, price in rows:
        by_node.setdefault(node, []).append((gpus, price))
    seats = []
    for node, slots in by_node.items():
        row = fresh.get(snapshot.rows[node].offer.pk)
        count = sum(gpus for gpus, _ in slots)
        if row is None or len(free[row.offer.pk]) < count:
            return None
        exact = sum(gpus * price for gpus, price in slots) / count
        # Floats come back as micros. Below the ask, the fee makes up for it, as far as there is one.
        price = max(round(exact * MICRO), row.offer.ask_micros)
        seats.append(Seat(row.offer, tuple(free[row.offer.pk][:count]), price))
    return tuple(seats)


def _publish(round: Round, placements: Sequence[Placement], now: datetime) -> None:
    """What this round's GPUs were let for, cell by cell: a mean where sites are pooled."""
    let: dict[tuple[str, str, int], list[int]] = {}
    for placement in placements:
        for seat, cell in zip(placement.seats, placement.cells, strict=True):
            slot = 1 << (len(seat.gpus).bit_length() - 1)
            paid = let.setdefault((placement.gpu_class, cell, slot), [])
            paid += [seat.price_micros] * len(seat.gpus)
    ClearingPrice.objects.bulk_create(
        ClearingPrice(
            round=round, gpu_class=gpu_class, cell=cell, slot=slot,
            price_micros=-(-sum(paid) // len(paid)), gpus=len(paid), at=now,
        )
        for (gpu_class, cell, slot), paid in let.items()
    )  # fmt: skip
    history.record(round)
