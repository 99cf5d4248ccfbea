"""A round: the book is read, cleared by the pure engine, and written down in one transaction.

Reading and clearing happen outside of any lock; the commit takes the market's lock, looks again
at every job, offer and GPU that it is about to use, and drops gangs of which anything has moved.
"""

import gc
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import numpy as np
from django.db import connection, transaction

from marketplace import bulk, locks
from marketplace.core.ids import uuid7
from marketplace.core.money import MICRO
from scheduler import (
    archive,
    displacing,
    explaining,
    history,
    leases,
    lots,
    prices,
    seats,
    snapshots,
)
from scheduler.drafting import Placement
from scheduler.explaining import Cleared
from scheduler.following import Followed
from scheduler.leases import MARKET_LOCK
from scheduler.lots import Lot
from scheduler.matching.arrays import Array
from scheduler.matching.book import digest
from scheduler.matching.cells import SLOTS
from scheduler.matching.clear import clear, follow
from scheduler.matching.matches import Matches
from scheduler.matching.synthetic import Plan, make
from scheduler.models import ClearingPrice, Round
from scheduler.seats import Seat
from scheduler.snapshots import Snapshot

log = logging.getLogger(__name__)

_QUIET: Final = timedelta(minutes=1)
"""Rounds that match nothing are written down no more often than this."""

_NO_PRICES: Final = (0.0,) * len(SLOTS)

FOLLOWED: Final = Followed()
"""The book of this process, if it is the worker that clears."""


def clear_market(*, now: datetime, followed: Followed | None = None) -> int:
    """One round; returns how many jobs it placed. Call it from one process at a time.

    A worker that clears round after round keeps its book in `followed`.
    """
    with _undisturbed():
        try:
            if followed is None:
                return _clear_market(snapshots.read(now), {}, now)
            return _clear_market(followed.read(now), followed.ladders, now)
        except BaseException:
            if followed is not None:
                followed.forget()
            raise


def warm_up() -> None:
    """Loads the engine's compiled loops, which takes a second, or half a minute where they have to
    be compiled."""
    clear(make(Plan(jobs=4, nodes=4, seed=0)), lambda: False)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the collector of cycles: a round makes a million objects and no cycle among them, and
    looking through them again and again took half of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _clear_market(snapshot: Snapshot, ladders: dict[str, Array], now: datetime) -> int:
    """`ladders`: what balanced each node's cell in the round before, and then in this one."""
    if not snapshot.jobs:
        return 0
    nodes = [snapshots.name_of(row) for row in snapshot.rows]
    last = np.array([ladders.get(node, _NO_PRICES) for node in nodes]).reshape(-1, len(SLOTS))
    started = time.perf_counter()
    matches, balance = follow(snapshot.book, last if ladders else None)
    seconds = time.perf_counter() - started
    matches = replace(matches, seconds=seconds)
    placed = 0
    if snapshot.rows:
        with transaction.atomic():
            locks.hold(MARKET_LOCK)
            placed = _commit(snapshot, matches, seconds=seconds, now=now)
    displacing.displace_market(snapshot, matches, now=now)
    explaining.tell(_cleared(snapshot, matches, seconds), now=now)
    ladders.clear()
    ladders.update(zip(nodes, balance, strict=True))
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
    kept = {draft.job.pk for draft in placed}
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
    queued = _unmoved(snapshot, by_job)
    free = _Free([snapshot.rows[node] for node in set(matches.node.tolist())], now)
    placements = []
    # Numbers fall as they fall: whoever has waited longest has the first say where two can't both be.
    for index in sorted(by_job, key=lambda at: (snapshot.jobs[at].queued_at, snapshot.jobs[at].pk)):
        rows = by_job[index]
        job = snapshot.jobs[index]
        seats = _seats(snapshot, rows, free) if job.pk in queued else None
        if seats is None:
            log.info("job %s is left to the next round: it or its offer has moved", job.pk)
            continue
        cells = tuple(prices.cell_of(snapshot.rows[node].stands) for node in _nodes(rows))
        level = int(matches.level[index])
        placements.append(Placement(job, seats[0].gpus[0].gpu_class, level, seats, cells))
    return placements


def _unmoved(snapshot: Snapshot, jobs: Iterable[int]) -> set[UUID]:
    """Those that still wait and whose row is as it was read; their rows are locked, in one order."""
    ids = bulk.ids(snapshot.jobs[index].pk for index in jobs)
    with connection.cursor() as cursor:
        cursor.execute(_HOLD_QUEUED, [ids])
        return {pk for pk, version in cursor.fetchall() if snapshot.versions[pk] == version}


_HOLD_QUEUED: Final = """
    SELECT id, xmin::text::bigint FROM buyers_job
    WHERE id = ANY(%s::uuid[]) AND state = 'queued' ORDER BY id FOR NO KEY UPDATE
"""


class _Free:
    """What is free of some offers by now, less what gang after gang takes of it."""

    def __init__(self, rows: Collection[Lot], now: datetime) -> None:
        found = lots.read(now=now, offers=[row.offer_id for row in rows])
        found = lots.standing(found, now=now)
        self._now = {
            (lot.offer_id, lot.stands.held_for): lot for lot in (*found, *lots.held(found))
        }
        nodes = {UUID(lot.stands.node) for lot in found}
        self._machines, self._devices = seats.machines(nodes), seats.free(nodes)

    def take(self, row: Lot, gpus: int, price: float) -> Seat | None:
        """So many GPUs of an offer as the book had it, at USD per GPU-hour; None if it has gone,
        changed or is let by now."""
        lot = self._now.get((row.offer_id, row.stands.held_for))
        if lot is None or not _is_alike(lot, row):
            return None
        node = UUID(lot.stands.node)
        devices = self._devices.get(_key(lot), [])
        if len(devices) < gpus:
            return None
        # Floats come back as micros. Below the ask, the fee makes up for it, as far as there is one.
        micros = max(round(price * MICRO), lot.ask_micros)
        return Seat(lot.offer_id, self._machines[node], devices[:gpus], micros, lot.ask_micros)

    def keep(self, taken: Mapping[Lot, Seat]) -> None:
        """These are a gang's."""
        for row, seat in taken.items():
            del self._devices[_key(row)][: len(seat.gpus)]


def _key(lot: Lot) -> tuple[str, str, str]:
    """By which its free GPUs are known."""
    return lot.stands.node, lot.stands.gpu_class, lot.stands.held_for


def _is_alike(lot: Lot, row: Lot) -> bool:
    """Whether an offer is what it was, but for what is let of it."""
    same = lot.stands == row.stands or replace(lot.stands, free=row.free) == row.stands
    return same and lot.windows == row.windows


def _seats(
    snapshot: Snapshot, rows: Sequence[tuple[int, int, float]], free: _Free
) -> tuple[Seat, ...] | None:
    """A gang's seats from its rows, or None if one of its offers isn't there any more."""
    taken: dict[Lot, Seat] = {}
    for node, slots in _nodes(rows).items():
        count = sum(gpus for gpus, _ in slots)
        exact = sum(gpus * price for gpus, price in slots) / count
        seat = free.take(snapshot.rows[node], count, exact)
        if seat is None:
            return None
        taken[snapshot.rows[node]] = seat
    free.keep(taken)
    return tuple(taken.values())


def _nodes(rows: Sequence[tuple[int, int, float]]) -> dict[int, list[tuple[int, float]]]:
    """Node → its slots of a gang: GPUs, and USD per GPU-hour."""
    by_node: dict[int, list[tuple[int, float]]] = {}
    for node, gpus, price in rows:
        by_node.setdefault(node, []).append((gpus, price))
    return by_node


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
