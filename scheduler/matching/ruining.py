"""Who is put out in a round of ruin, and in which order they choose anew.

A job that lacks much of what it could gain, who stands where it could go, who stands where those could
go, and so on.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints
from scheduler.matching.desks import Desk, chance, rank
from scheduler.matching.hoping import Hopes
from scheduler.matching.supply import NETS, Stock, Supply
from scheduler.matching.tables import NOWHERE, Tables, accepts

PUT_OUT: Final = 10
"""So many jobs at most, and one who waits."""
_TRIED: Final = 4
_OF: Final = 64
"""Among so many jobs one more is looked at for the next that lacks most."""
_PLACES: Final = 40
"""So many of the cheapest places may be ruined for a gang."""
_FALLS_BACK: Final = 16
"""So many kinds beyond those that it envies may be ruined for a job."""


class Market(NamedTuple):
    """A book while it is cleared."""

    of: Tables
    hoped: Hopes
    sold: Supply
    left: Stock
    room: Desk
    gangs: Array
    parts: Array


@njit(cache=True, nogil=True)
def any_guide(random: Array) -> float:
    """Mostly by asks; else by prices, or between the two."""
    drawn, guide = chance(random), 0.0
    if drawn >= 0.7:
        guide = chance(random)
    elif drawn >= 0.4:
        guide = 1.0
    return guide


@njit(cache=True, nogil=True)
def regretful(market: Market) -> int:
    """Of a few jobs the one that lacks most; NOWHERE if none lacks anything."""
    gangs, worst, found = market.gangs, 1e-9, NOWHERE
    for _ in range(_TRIED + len(gangs) // _OF):
        at = int(chance(market.room.random) * len(gangs))
        lacks = gangs[at].weight * (gangs[at].hope - gangs[at].surplus)
        if lacks > worst:
            worst, found = lacks, at
    return found


@njit(cache=True, nogil=True)
def pick(market: Market, at: int, picked: Ints) -> int:
    """Whom to put out: the job, who stands where it could go, and so on from each to the next; and now
    and then one who waits. How many."""
    gangs, jobs, random = market.gangs, market.of.jobs, market.room.random
    picked[0], gangs[at].is_out = at, 1
    count, one, most = 1, 0, 2 + int(chance(random) * (PUT_OUT - 1))
    while one < count < most:
        job = picked[one]
        if jobs[job].most > 1 and jobs[job].level > 0 and chance(random) < 0.5:
            count = _of_a_place(market, job, picked, count, most)
        else:
            count = _of_a_kind(market, job, picked, count, most)
        one += 1
    other = int(chance(random) * 2 * len(gangs))
    if other < len(gangs) and gangs[other].parts == 0 and not gangs[other].is_out:
        picked[count], gangs[other].is_out = other, 1
        count += 1
    return count


@njit(cache=True, nogil=True)
def _tenants(
    gangs: Array, tenants: Ints, there: int, picked: Ints, count: int, most: int
) -> int:  # fmt: skip
    """Picks the first `there` of these, up to `most` in all; how many are picked now."""
    for one in range(there):
        job = tenants[one]
        if count < most and not gangs[job].is_out:
            picked[count], gangs[job].is_out = job, 1
            count += 1
    return count


@njit(cache=True, nogil=True)
def _of_a_place(market: Market, at: int, picked: Ints, count: int, most: int) -> int:
    """Picks who is at one of the places that are cheapest for a gang of this size."""
    job, limit, sold, left = market.of.jobs[at], market.of.limit[at], market.sold, market.left
    random = market.room.random
    for _ in range(2 * _TRIED):
        gpu_class, net = int(chance(random) * len(limit)), int(chance(random) * NETS)
        where = rank(gpu_class, net, job.tier, job.least)
        first, end = sold.rank_start[where], sold.rank_start[where + 1]
        if limit[gpu_class] <= 0 or first == end:
            continue
        drawn = chance(random) * chance(random)
        place = sold.places[sold.ranked[first + int(drawn * min(end - first, _PLACES))].place]
        if not accepts(job, place):
            continue
        missing = job.least + 8
        for one in range(place.first, place.end):
            seat = sold.shelf[one].seat
            count = _tenants(
                market.gangs, left.tenants[seat], left.tenant_count[seat], picked, count, most
            )
            missing -= sold.seats[seat].gpus
            if missing <= 0:
                break
        break
    return count


@njit(cache=True, nogil=True)
def _of_a_kind(market: Market, at: int, picked: Ints, count: int, most: int) -> int:
    """Picks who is on a cheap node of a kind that promises more than the job has, or not much less."""
    hoped, left, gang, random = market.hoped, market.left, market.gangs[at], market.room.random
    first, end = hoped.start[at], hoped.start[at + 1]
    if first == end:
        return count
    size, envied = max(gang.size, market.of.jobs[at].least), first
    while envied < end and hoped.gain[envied] * size > gang.surplus:
        envied += 1
    drawn = chance(random)
    if chance(random) < 0.7:
        one = first + int(drawn * min(envied + 1 - first, end - first))
    else:
        one = min(envied + int(drawn * drawn * _FALLS_BACK), end - 1)
    kind = market.sold.kinds[hoped.kind[one]]
    seat = kind.first + int(chance(random) * chance(random) * (kind.end - kind.first))
    return _tenants(market.gangs, left.tenants[seat], left.tenant_count[seat], picked, count, most)


@njit(cache=True, nogil=True)
def shuffle(market: Market, picked: Ints, order: Floats, count: int) -> None:
    """In which order they choose: the least first."""
    random, drawn = market.room.random, chance(market.room.random)
    for one in range(count):
        job, gang = market.of.jobs[picked[one]], market.gangs[picked[one]]
        hope = gang.weight * gang.hope
        if drawn < 0.4:
            order[one] = -hope / np.sqrt(job.least) * (0.6 + 0.8 * chance(random))
        elif drawn < 0.6:
            order[one] = -job.least * (0.9 + 0.2 * chance(random))
        elif drawn < 0.8:
            order[one] = -hope / job.least * (0.6 + 0.8 * chance(random))
        else:
            order[one] = chance(random)
    if chance(random) < 0.3:
        order[0] = -np.inf
