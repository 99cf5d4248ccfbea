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
from typing import Final, NamedTuple
from uuid import UUID

from django.db import connection

from marketplace import bulk
from marketplace.core.money import MICRO
from scheduler import drafting, following, lots, prices, seats
from scheduler.drafting import Draft, Placement
from scheduler.lots import Lot
from scheduler.matching.matches import Matches
from scheduler.seats import Device, Idle, Seat
from scheduler.snapshots import Snapshot

log = logging.getLogger(__name__)


class Gang(NamedTuple):
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
    queued = _unmoved(snapshot, [draft.job.id for _, draft in seated.drafts])
    moved = set(following.moved_since(seated.since))
    kept: list[tuple[Gang, Draft]] = []
    again: list[Gang] = []
    for gang, draft in seated.drafts:
        if draft.job.id not in queued:
            log.info("job %s is left to the next round: it has moved", draft.job.id)
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
    return snapshot.jobs[job].queued_at, snapshot.jobs[job].id


def _drafted(
    gangs: Sequence[Gang], snapshot: Snapshot, beside: Iterable[Draft], now: datetime
) -> list[tuple[Gang, Draft]]:
    """Those gangs that can have their seats, beside those that have theirs."""
    if not gangs:
        return []
    free = _Free(snapshot.rows, {node for gang in gangs for node in gang.rows}, beside, now)
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
    """What is free of some nodes of a book by now, less what gang after gang takes of it."""

    def __init__(
        self, book: Sequence[Lot], nodes: Iterable[int], beside: Iterable[Draft], now: datetime
    ) -> None:
        rows = {node: book[node] for node in nodes}
        idle = seats.idle([row.offer_id for row in rows.values()])
        found = {
            node: (row, of) for node, row in rows.items() if (of := idle.get(_key(row))) is not None
        }
        doubted = {node: row for node, (row, of) in found.items() if _is_doubted(row, of)}
        anew = _read_again(doubted.values(), now) if doubted else {}
        taken = {gpu.id for draft in beside for seat in draft.placement.seats for gpu in seat.gpus}
        self._left: dict[int, tuple[Lot, list[Device]]] = {}
        for node, (row, of) in found.items():
            lot = anew.get(_key(row)) if node in doubted else row
            if lot is not None and (lot is row or _is_alike(lot, row)):
                devices = (
                    [gpu for gpu in of.devices if gpu.id not in taken] if taken else of.devices
                )
                self._left[node] = lot, devices

    def take(self, node: int, gpus: int, price: float) -> Seat | None:
        """So many GPUs of an offer as the book had it, at USD per GPU-hour; None if it has gone,
        changed or is let by now."""
        lot, devices = self._left.get(node, _NOTHING)
        if lot is None or len(devices) < gpus:
            return None
        # Floats come back as micros. Below the ask, the fee makes up for it, as far as there is one.
        micros = max(round(price * MICRO), lot.ask_micros)
        return Seat(lot.offer_id, lot.machine, devices[:gpus], micros, lot.ask_micros)

    def keep(self, seats: Mapping[int, Seat]) -> None:
        """These are a gang's, node by node."""
        for node, seat in seats.items():
            del self._left[node][1][: len(seat.gpus)]


_NOTHING: Final[tuple[None, Sequence[Device]]] = None, ()


def _is_doubted(row: Lot, idle: Idle) -> bool:
    """Whether an offer may be other than the book has it. Of a hold no version tells whether all of
    it is still free, nor that a GPU has less memory than before: a node that comes back has its
    session a moment before its inventory."""
    if idle.version != row.version or row.stands.held_for:
        return True
    return any(gpu.memory_bytes < row.stands.memory_bytes for gpu in idle.devices)


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
    found: dict[int, Seat] = {}
    for node, (gpus, cost) in gang.rows.items():
        seat = free.take(node, gpus, cost / gpus)
        if seat is None:
            return None
        found[node] = seat
    free.keep(found)
    stands = [snapshot.rows[node].stands for node in found]
    cells = tuple(map(prices.cell_of, stands))
    job = snapshot.jobs[gang.job]
    return Placement(job, stands[0].gpu_class, gang.level, tuple(found.values()), cells)
