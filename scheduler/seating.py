"""Who gets which seats: matches become drafts of leases before the market's lock is taken, and under
it those are kept of which nothing has moved since.

1. Before the lock each gang's lease is drafted on the GPUs that the book has as free. Beside that the
   database is asked what is free by now, and for the versions of the offers' rows: where they are not
   those of the book, the offers are read again and their gangs drafted anew (`seat`).
2. Under it one look says which jobs still wait as they were read, and another at which nodes anything
   has moved since 1 began (triggers write that down, `scheduler.following`). What is of such a node
   is read once more, and its gangs drafted anew or dropped (`still_good`).

`gpu_let_once` is the last guard, whatever this overlooks.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple
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
    gangs = _gangs(snapshot, matches)
    if not gangs:
        return Seated([], since)
    rows = {node: snapshot.rows[node] for gang in gangs for node in gang.rows}
    able = _placed(gangs, snapshot, _Free(rows, frozenset()))
    known = drafting.read([placement for _, placement in able], now=now)
    with ThreadPoolExecutor(1) as beside:
        # Which waits for the database alone; the drafts wait for nobody.
        asked = beside.submit(seats.idle, [row.offer_id for row in rows.values()], _session())
        drafts = drafting.made(known, now=now)
        idle = asked.result()
    doubted = {node for node, row in rows.items() if _is_doubted(row, idle.get(_key(row)))}
    drafted = list(zip([gang for gang, _ in able], drafts, strict=True))
    if not doubted:
        return Seated(drafted, since)
    kept = [each for each in drafted if doubted.isdisjoint(each[0].rows)]
    again = [gang for gang in gangs if not doubted.isdisjoint(gang.rows)]
    return Seated(_with_more(kept, again, snapshot, now), since)


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
        elif not moved or moved.isdisjoint(draft.nodes):
            kept.append((gang, draft))
        else:
            again.append(gang)
    if again:
        kept = _with_more(kept, again, snapshot, now)
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


def _with_more(
    kept: Sequence[tuple[Gang, Draft]], again: Sequence[Gang], snapshot: Snapshot, now: datetime
) -> list[tuple[Gang, Draft]]:
    """And those of these gangs that can have their seats, read again, beside those that have theirs."""
    book = {node: snapshot.rows[node] for gang in again for node in gang.rows}
    anew = _read_again(book.values(), now)
    found = {
        node: lot
        for node, row in book.items()
        if (lot := anew.get(_key(row))) is not None and _is_alike(lot, row)
    }
    taken = {gpu.id for _, draft in kept for seat in draft.placement.seats for gpu in seat.gpus}
    able = _placed(again, snapshot, _Free(found, taken))
    drafts = drafting.draft([placement for _, placement in able], now=now)
    more = zip([gang for gang, _ in able], drafts, strict=True)
    return sorted([*kept, *more], key=lambda each: _waiting(snapshot, each[0].job))


def _placed(
    gangs: Sequence[Gang], snapshot: Snapshot, free: "_Free"
) -> list[tuple[Gang, Placement]]:
    """Those gangs that can have their seats of what is free."""
    able: list[tuple[Gang, Placement]] = []
    for gang in gangs:
        found = _seats(snapshot, gang, free)
        if found is None:
            job = snapshot.jobs[gang.job]
            log.info("job %s is left to the next round: its offer has moved", job.pk)
        else:
            able.append((gang, found))
    return able


def _session() -> Any:
    """The database session that we are in."""
    connection.ensure_connection()
    return connection.connection


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
    """What is free of some nodes of a book, less what gang after gang takes of it."""

    def __init__(self, rows: Mapping[int, Lot], taken: Collection[UUID]) -> None:
        self._left: dict[int, tuple[Lot, list[Device]]] = {}
        for node, row in rows.items():
            devices = row.devices.of(row.stands.gpu_class)
            if taken:
                devices = [gpu for gpu in devices if gpu.id not in taken]
            self._left[node] = row, devices

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


def _is_doubted(row: Lot, idle: Idle | None) -> bool:
    """Whether an offer may be other than the book has it. Of a hold no version tells whether all of
    it is still free, nor that a GPU has less memory than before: a node that comes back has its
    session a moment before its inventory."""
    if idle is None or idle.version != row.version or idle.mark != row.devices.mark:
        return True
    return bool(row.stands.held_for) or idle.memory_bytes < row.stands.memory_bytes


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
