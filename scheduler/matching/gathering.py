"""GPUs for a gang of several nodes: of one place, or of the few places that gain most together.

Which places those are is decided by a toll that each GPU of the gang is worth anyway: by what each
place has to offer beyond the toll, the best of them are taken, so many as the gang accepts
(`weighing`). The higher the toll, the fewer GPUs they give, and the more each one counts; the right one
is that at which they give just as many as the gang needs (`beyond`). (That is the Lagrangian of the
gang's size.)

What a gang takes counts at what it gains as a whole, in which each GPU bears the risk of all.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.hoping import NOTHING
from scheduler.matching.supply import held, taken
from scheduler.matching.tables import NOWHERE, TIERS

_FEW: Final = 24
"""Of so many nodes each is put in its place; more are sorted afterwards."""

PIECE: Final = np.dtype([("gain", "f8"), ("at", "i4"), ("free", "i4"), ("taken", "i4")], align=True)
"""A seat on the shelf: what each of its free GPUs gains, were all of them taken."""
SPOT: Final = np.dtype(
    [
        ("keeps", "f8"), ("gain", "f8"), ("first", "i4"), ("end", "i4"), ("least", "i4"),
        ("most", "i4"), ("gives", "i4"), ("next", "i4"), ("owes", "i4"), ("place", "i4"),
        ("mean", "f8"), ("hope", "f8", (TIERS,)), ("there", "i4", (TIERS,)), ("few", "i4"),
    ],
    align=True,
)  # fmt: skip
"""A place, its pieces, and between how many GPUs it gives, if any; `gain` and `gives` at a toll.

If it is not laid out yet, `end` is 0. So many GPUs as are `there` gain at most as much as is `hope`d of
them, the best first; more than a `few` gain at most `mean` each."""


class Bench(NamedTuple):
    """Room to gather in."""

    pieces: Array
    spots: Array
    picked: Ints
    """Which spots the gang takes."""
    best: Ints
    """The best of them at a toll."""
    known: Ints
    """In which look each place was found last, and at the end how many looks there were."""
    key: Floats
    spare: Array


def bench(pieces: int, spots: int, places: int) -> Bench:
    """For so many."""
    most = max(pieces, spots, 1)
    return Bench(
        np.zeros(pieces + 1, PIECE), np.zeros(spots, SPOT), np.zeros(spots, np.int32),
        np.zeros(spots + 1, np.int32), np.zeros(places + 1, np.int64), np.zeros(most), np.zeros(pieces + 1, PIECE),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def lay_out(
    job: Record, size: int, limit: float, keeps: float, place: Record, shelf: Array,
    failures: Floats, guide: float, first: int, most: int, work: Bench,
) -> int:  # fmt: skip
    """Lays out what a place has, the best first, from piece `first` on; where they end. A gang of so
    many bears the risk. By asks, at which any GPU of a node does, no more than the best `most` need."""
    pieces, lost, end, gpus = work.pieces, job.lost * size * limit, first, 0
    worth, tier, long, few = limit * keeps, job.tier, job.long, place.end - place.first <= _FEW
    for at in range(place.first, place.end):
        one = shelf[at]
        if one.free == 0 or one.tier > tier or one.long < long:
            continue
        paid = one.ask if guide == 0 else held(one, guide, one.free) / one.free
        # They stand by ask: the rest gains less than each that is laid out.
        enough = few and guide == 0 and gpus >= most
        if enough and worth - failures[0] * lost - paid <= pieces[end - 1].gain:
            break
        gain, to = worth - failures[one.tier] * lost - paid, end
        # They stand by ask, which is nearly that.
        while few and to > first and pieces[to - 1].gain < gain:
            pieces[to] = pieces[to - 1]
            to -= 1
        pieces[to].gain, pieces[to].at, pieces[to].free = gain, at, one.free
        end += 1
        gpus += one.free
        while few and guide == 0 and gpus - pieces[end - 1].free >= most:
            end -= 1
            gpus -= pieces[end].free
    if not few:
        _sort(pieces[first:end], work)
    return end


@njit(cache=True, nogil=True)
def _sort(pieces: Array, work: Bench) -> None:
    """The best first."""
    key, spare = work.key, work.spare
    for at in range(len(pieces)):
        key[at], spare[at] = -pieces[at].gain, pieces[at]
    order = np.argsort(key[: len(pieces)], kind="mergesort")
    for at in range(len(pieces)):
        pieces[at] = spare[order[at]]


@njit(cache=True, nogil=True)
def promises(size: int, spot: Record, work: Bench) -> float:
    """What so many GPUs of a spot gain, were no node cut; or all of it, if it has fewer."""
    total, gpus, at = 0.0, 0, spot.first
    while gpus < size and at < spot.end:
        take = min(work.pieces[at].free, size - gpus)
        total += take * work.pieces[at].gain
        gpus += take
        at += 1
    return total


@njit(cache=True, nogil=True)
def gather(
    job: Record, most: int, limit: float, picked: Ints, shelf: Array, failures: Floats,
    guide: float, work: Bench, parts: Array,
) -> tuple[float, int, int]:  # fmt: skip
    """(score, GPUs, parts) of a gang over the picked spots: the best GPUs of each that it must take
    there; then the best of all, as many as the job needs whatever they gain, and up to `most` that
    gain something."""
    pieces, spots, risk = work.pieces, work.spots, job.lost * limit
    owed, total, gpus, exposed = _owed(pieces, spots, picked), 0.0, 0, 0.0
    while gpus < most:
        where, best = _next(pieces, spots, picked, owed > 0)
        if where == NOWHERE:
            break
        take = min(pieces[best].free - pieces[best].taken, most - gpus)
        if owed > 0:
            take = min(take, spots[where].owes)
        elif guide > 0 and take < pieces[best].free - pieces[best].taken:
            where, best = _cheapest(
                pieces, spots, picked, shelf, failures, guide, limit, risk * most, take
            )
        one, piece, spot = shelf[pieces[best].at], pieces[best], spots[where]
        free, failure, worth = piece.free - piece.taken, failures[one.tier], limit * spot.keeps
        must = take if owed > 0 else min(take, max(job.least - gpus, 0))
        gain = _adds(one, guide, free, take, worth, risk, failure, gpus, exposed)
        while take > must:
            less = _adds(one, guide, free, take - 1, worth, risk, failure, gpus, exposed)
            if gain - less > NOTHING:
                break
            take, gain = take - 1, less
        if take == 0:
            break
        total, gpus, exposed = total + gain, gpus + take, exposed + take * failure
        piece.taken += take
        if owed > 0:
            spot.owes -= take
            owed -= take
    return total, gpus, _cut(pieces, spots, picked, shelf, parts)


@njit(cache=True, nogil=True)
def _owed(pieces: Array, spots: Array, picked: Ints) -> int:
    """What the picked spots must give together; nothing is taken yet."""
    owed = 0
    for which in picked:
        spot = spots[which]
        spot.next, spot.owes = spot.first, spot.least
        owed += spot.least
        for at in range(spot.first, spot.end):
            pieces[at].taken = 0
    return owed


@njit(cache=True, nogil=True)
def _next(pieces: Array, spots: Array, picked: Ints, owed: bool) -> tuple[int, int]:
    """(spot, piece) of the best piece that has any GPUs left; of spots that give too little yet, if
    there are such."""
    where, best = NOWHERE, NOWHERE
    for which in picked:
        spot = spots[which]
        if owed and spot.owes == 0:
            continue
        while spot.next < spot.end and pieces[spot.next].taken == pieces[spot.next].free:
            spot.next += 1
        if spot.next < spot.end and (best == NOWHERE or pieces[spot.next].gain > pieces[best].gain):
            where, best = which, spot.next
    return where, best


@njit(cache=True, nogil=True)
def _cheapest(
    pieces: Array, spots: Array, picked: Ints, shelf: Array, failures: Floats, guide: float,
    limit: float, risk: float, gpus: int,
) -> tuple[int, int]:  # fmt: skip
    """(spot, piece) of the one from which so few GPUs gain most: each leaves others different slots."""
    where, best, most = NOWHERE, NOWHERE, 0.0
    for which in picked:
        spot = spots[which]
        for at in range(spot.next, spot.end):
            one, free = shelf[pieces[at].at], pieces[at].free - pieces[at].taken
            if free >= gpus:
                gain = gpus * (limit * spot.keeps - failures[one.tier] * risk)
                gain -= taken(one, guide, free, gpus)
                if best == NOWHERE or gain > most:
                    where, best, most = which, at, gain
    return where, best


@njit(cache=True, nogil=True)
def _adds(
    one: Record, guide: float, free: int, take: int, worth: float, risk: float, failure: float,
    gpus: int, exposed: float,
) -> float:  # fmt: skip
    """What so many GPUs more add to a gang: all bear the risk that any of them fails."""
    more = (gpus + take) * (exposed + take * failure) - gpus * exposed
    return float(take * worth - taken(one, guide, free, take) - risk * more)


@njit(cache=True, nogil=True)
def _cut(pieces: Array, spots: Array, picked: Ints, shelf: Array, parts: Array) -> int:
    """How many nodes the gang has; they stand in `parts`."""
    found = 0
    for which in picked:
        spot = spots[which]
        for at in range(spot.first, spot.end):
            if pieces[at].taken:
                parts[found].seat, parts[found].gpus = shelf[pieces[at].at].seat, pieces[at].taken
                found += 1
    return found
