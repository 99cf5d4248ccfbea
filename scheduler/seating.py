"""Who gets which seats: matches become drafts of leases before the market's lock is taken, and under
it those are kept of which nothing has moved since.

1. Before the lock the free GPUs of all matched offers are read, with the versions of the offers' rows.
   An offer of the book's version is as the book has it; any other is read again. Each gang's lease is
   drafted (`seat`).
2. Under it one look says which jobs still wait as they were read, and another at which nodes anything
   has moved since 1 began (triggers write that down, `scheduler.following`). What is of such a node
   is read once more, and its gangs drafted anew or dropped (`still_good`).

`gpu_let_once` is the last guard, whatever this overlooks.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import connection

from marketplace import bulk
from marketplace.core.money import MICRO
from scheduler import drafting, following, lots, prices, seats
from scheduler.drafting import Draft, Placement
from scheduler.lots import Lot
from scheduler.matching.matches import Matches
from scheduler.seats import Seat
from scheduler.snapshots import Snapshot

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gang:
    """One job's match, by its number in the book."""

    job: int
    level: int
    rows: Mapping[int, tuple[int, float]]
    """Node → its GPUs, and what they cost together, USD per hour."""


@dataclass(frozen=True)
class Seated:
    """Gangs with their drafts, those first whose job has waited longest."""

    drafts: Sequence[tuple[Gang, Draft]]
    since: int
    """Whatever a transaction before this one wrote has been seen (`following.moved_since`)."""


def seat(snapshot: Snapshot, matches: Matches, *, now: datetime) -> Seated:
    """Drafts of all matches that can have their seats. Without a lock."""
    since = following.oldest_under_way()
    return Seated(_drafted(_gangs(snapshot, matches), snapshot, (), now), since)


def still_good(seated: Seated, snapshot: Snapshot, *, now: datetime) -> list[Draft]:
    """The drafts that hold, under MARKET_LOCK; their jobs are locked."""
    if not seated.drafts:
        return []
    queued = _unmoved(snapshot, [draft.job.pk for _, draft in seated.drafts])
    moved = set(following.moved_since(seated.since))
    kept: list[tuple[Gang, Draft]] = []
    again: list[Gang] = []
    for gang, draft in seated.drafts:
        if draft.job.pk not in queued:
            log.info("job %s is left to the next round: it has moved", draft.job.pk)
        elif moved.isdisjoint(draft.nodes):
            kept.append((gang, draft))
        else:
            again.append(gang)
    if again:
        kept += _drafted(again, snapshot, [draft for _, draft in kept], now)
        kept.sort(key=lambda each: _waiting(snapshot, each[0].job))
    return [draft for _, draft in kept]


def _gangs(snapshot: Snapshot, matches: Matches) -> list[Gang]:
    """Numbers fall as they fall: whoever has waited longest has the first say where two can't both
    be."""
    by_job: dict[int, dict[int, tuple[int, float]]] = {}
    columns = (matches.job, matches.node, matches.gpus, matches.price)
    for job, node, gpus, price in zip(*(column.tolist() for column in columns), strict=True):
        rows = by_job.setdefault(job, {})
        so_far, cost = rows.get(node, (0, 0.0))
        rows[node] = so_far + gpus, cost + gpus * price
    order = sorted(by_job, key=lambda job: _waiting(snapshot, job))
    return [Gang(job, int(matches.level[job]), by_job[job]) for job in order]


def _waiting(snapshot: Snapshot, job: int) -> tuple[datetime, UUID]:
    return snapshot.jobs[job].queued_at, snapshot.jobs[job].pk


def _drafted(
    gangs: Sequence[Gang], snapshot: Snapshot, beside: Iterable[Draft], now: datetime
) -> list[tuple[Gang, Draft]]:
    """Those gangs that can have their seats, beside those that have theirs."""
    if not gangs:
        return []
    rows = [snapshot.rows[node] for node in {node for gang in gangs for node in gang.rows}]
    free = _Free(rows, beside, now)
    able: list[Gang] = []
    placements: list[Placement] = []
    for gang in gangs:
        found = _seats(snapshot, gang, free)
        if found is None:
            job = snapshot.jobs[gang.job]
            log.info("job %s is left to the next round: its offer has moved", job.pk)
            continue
        able.append(gang)
        placements.append(found)
    return list(zip(able, drafting.draft(placements, now=now), strict=True))


def _unmoved(snapshot: Snapshot, jobs: Iterable[UUID]) -> set[UUID]:
    """Those that still wait and whose row is as it was read; their rows are locked, in one order."""
    with connection.cursor() as cursor:
        cursor.execute(_HOLD_QUEUED, [bulk.ids(jobs)])
        return {pk for pk, version in cursor.fetchall() if snapshot.versions[pk] == version}


_HOLD_QUEUED: Final = """
    SELECT id, xmin::text::bigint FROM buyers_job
    WHERE id = ANY(%s::uuid[]) AND state = 'queued' ORDER BY id FOR NO KEY UPDATE
"""


class _Free:
    """What is free of some offers by now, less what gang after gang takes of it."""

    def __init__(self, rows: Sequence[Lot], beside: Iterable[Draft], now: datetime) -> None:
        self._idle = seats.idle([row.offer_id for row in rows])
        doubted = [row for row in rows if self._is_doubted(row)]
        self._anew = _read_again(doubted, now) if doubted else {}
        taken = {gpu.id for draft in beside for seat in draft.placement.seats for gpu in seat.gpus}
        if taken:
            for each in self._idle.values():
                each.devices[:] = [gpu for gpu in each.devices if gpu.id not in taken]

    def take(self, row: Lot, gpus: int, price: float) -> Seat | None:
        """So many GPUs of an offer as the book had it, at USD per GPU-hour; None if it has gone,
        changed or is let by now."""
        idle = self._idle.get(_key(row))
        if idle is None or len(idle.devices) < gpus:
            return None
        lot = self._anew.get(_key(row)) if self._is_doubted(row) else row
        if lot is None or not (lot is row or _is_alike(lot, row)):
            return None
        # Floats come back as micros. Below the ask, the fee makes up for it, as far as there is one.
        micros = max(round(price * MICRO), lot.ask_micros)
        return Seat(lot.offer_id, lot.machine, idle.devices[:gpus], micros, lot.ask_micros)

    def keep(self, taken: Iterable[tuple[Lot, Seat]]) -> None:
        """These are a gang's."""
        for row, seat in taken:
            del self._idle[_key(row)].devices[: len(seat.gpus)]

    def _is_doubted(self, row: Lot) -> bool:
        """Whether it may be other than the book has it. Of a hold no version tells whether all of it
        is still free."""
        idle = self._idle.get(_key(row))
        return bool(row.stands.held_for) or idle is None or idle.version != row.version


def _read_again(rows: Iterable[Lot], now: datetime) -> dict[tuple[UUID, str, str], Lot]:
    """What of these stands by now."""
    found = lots.read(now=now, offers=[row.offer_id for row in rows])
    found = lots.standing(found, now=now)
    return {_key(lot): lot for lot in (*found, *lots.held(found))}


def _key(lot: Lot) -> tuple[UUID, str, str]:
    """By which what is free of it is known."""
    return lot.offer_id, lot.stands.gpu_class, lot.stands.held_for


def _is_alike(lot: Lot, row: Lot) -> bool:
    """Whether an offer is what it was, but for what is let of it."""
    same = lot.stands == row.stands or replace(lot.stands, free=row.free) == row.stands
    return same and lot.windows == row.windows


def _seats(snapshot: Snapshot, gang: Gang, free: _Free) -> Placement | None:
    """A gang's seats, or None if one of its offers isn't there any more."""
    taken: list[tuple[Lot, Seat]] = []
    for node, (gpus, cost) in gang.rows.items():
        row = snapshot.rows[node]
        seat = free.take(row, gpus, cost / gpus)
        if seat is None:
            return None
        taken.append((row, seat))
    free.keep(taken)
    found = tuple([seat for _, seat in taken])
    cells = tuple([prices.cell_of(row.stands) for row, _ in taken])
    return Placement(
        snapshot.jobs[gang.job], taken[0][0].stands.gpu_class, gang.level, found, cells
    )
