"""Who gets which seats: matches become drafts of leases before the market's lock is taken, and under
it those are kept of which nothing has moved since.

1. Before the lock every offer and GPU of a match is read again, and the gang's lease is drafted
   (`seat`).
2. Under it one look says which jobs still wait as they were read, and another at which nodes anything
   has moved since 1 began (triggers write that down, `scheduler.following`). What is of such a node
   is read once more, and its gangs drafted anew or dropped (`still_good`).

`gpu_let_once` is the last guard, whatever this overlooks.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
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

Rows = Sequence[tuple[int, int, float]]
"""A gang as matched: node, GPUs, USD per GPU-hour."""


@dataclass(frozen=True)
class Gang:
    """One job's match, by its number in the book."""

    job: int
    level: int
    rows: Rows


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
    by_job: dict[int, list[tuple[int, int, float]]] = {}
    columns = (matches.job, matches.node, matches.gpus, matches.price)
    for job, node, gpus, price in zip(*(column.tolist() for column in columns), strict=True):
        by_job.setdefault(job, []).append((node, gpus, price))
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
    nodes = {node for gang in gangs for node, _, _ in gang.rows}
    free = _Free([snapshot.rows[node] for node in nodes], beside, now)
    able: list[Gang] = []
    placements: list[Placement] = []
    for gang in gangs:
        job, found = snapshot.jobs[gang.job], _seats(snapshot, gang.rows, free)
        if found is None:
            log.info("job %s is left to the next round: its offer has moved", job.pk)
            continue
        cells = tuple(prices.cell_of(snapshot.rows[node].stands) for node in _nodes(gang.rows))
        able.append(gang)
        placements.append(Placement(job, found[0].gpus[0].gpu_class, gang.level, found, cells))
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

    def __init__(self, rows: Collection[Lot], beside: Iterable[Draft], now: datetime) -> None:
        found = lots.read(now=now, offers=[row.offer_id for row in rows])
        found = lots.standing(found, now=now)
        self._now = {
            (lot.offer_id, lot.stands.held_for): lot for lot in (*found, *lots.held(found))
        }
        nodes = {UUID(lot.stands.node) for lot in found}
        self._machines, self._devices = seats.machines(nodes), seats.free(nodes)
        taken = {gpu.id for draft in beside for seat in draft.placement.seats for gpu in seat.gpus}
        if taken:
            self._devices = {
                key: [gpu for gpu in devices if gpu.id not in taken]
                for key, devices in self._devices.items()
            }

    def take(self, row: Lot, gpus: int, price: float) -> Seat | None:
        """So many GPUs of an offer as the book had it, at USD per GPU-hour; None if it has gone,
        changed or is let by now."""
        lot = self._now.get((row.offer_id, row.stands.held_for))
        if lot is None or not _is_alike(lot, row):
            return None
        devices = self._devices.get(_key(lot), [])
        if len(devices) < gpus:
            return None
        # Floats come back as micros. Below the ask, the fee makes up for it, as far as there is one.
        micros = max(round(price * MICRO), lot.ask_micros)
        machine = self._machines[UUID(lot.stands.node)]
        return Seat(lot.offer_id, machine, devices[:gpus], micros, lot.ask_micros)

    def keep(self, taken: Iterable[tuple[Lot, Seat]]) -> None:
        """These are a gang's."""
        for row, seat in taken:
            del self._devices[_key(row)][: len(seat.gpus)]


def _key(lot: Lot) -> tuple[str, str, str]:
    """By which its free GPUs are known."""
    return lot.stands.node, lot.stands.gpu_class, lot.stands.held_for


def _is_alike(lot: Lot, row: Lot) -> bool:
    """Whether an offer is what it was, but for what is let of it."""
    same = lot.stands == row.stands or replace(lot.stands, free=row.free) == row.stands
    return same and lot.windows == row.windows


def _seats(snapshot: Snapshot, rows: Rows, free: _Free) -> tuple[Seat, ...] | None:
    """A gang's seats from its rows, or None if one of its offers isn't there any more."""
    taken: list[tuple[Lot, Seat]] = []
    for node, slots in _nodes(rows).items():
        count = sum(gpus for gpus, _ in slots)
        exact = sum(gpus * price for gpus, price in slots) / count
        seat = free.take(snapshot.rows[node], count, exact)
        if seat is None:
            return None
        taken.append((snapshot.rows[node], seat))
    free.keep(taken)
    return tuple([seat for _, seat in taken])


def _nodes(rows: Rows) -> dict[int, list[tuple[int, float]]]:
    """Node → its slots of a gang: GPUs, and USD per GPU-hour."""
    by_node: dict[int, list[tuple[int, float]]] = {}
    for node, gpus, price in rows:
        by_node.setdefault(node, []).append((gpus, price))
    return by_node
