"""A gang over several sites for one order, among places that are all free: the class that promises most
comes first, and none is looked at that can't gain more than what is known already.

A place promises what its GPUs would gain at its uplink. As the places of a list stand by price, only
those matter that no cheaper one beats in uplink: a handful of a hundred.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.choosing import Desk, Mood, of_class, rank
from scheduler.matching.offers import FAR
from scheduler.matching.supply import NETS, Stock, Supply
from scheduler.matching.tables import Rules, kept

_FRONT: Final = np.dtype([("ask", "f8"), ("uplink", "f8")])


class Fronts(NamedTuple):
    """The places of each of the supply's lists that no cheaper one beats in uplink, and room for one
    order."""

    front: Array
    start: Ints
    """Where in `front` each list begins."""
    hope: Floats
    """[C]"""


def fronts(sold: Supply, classes: int) -> Fronts:
    """Those of what is sold."""
    front, start = np.zeros(len(sold.ranked), _FRONT), np.zeros_like(sold.rank_start)
    count = _collect(sold.ranked, sold.places, sold.rank_start, front, start)
    return Fronts(front[:count].copy(), start, np.zeros(classes))


@njit(cache=True, nogil=True)
def _collect(ranked: Array, places: Array, rank_start: Ints, front: Array, start: Ints) -> int:
    count = 0
    for list_of in range(len(rank_start) - 1):
        start[list_of], most = count, -1.0
        for one in range(rank_start[list_of], rank_start[list_of + 1]):
            uplink = places[ranked[one].place].uplink
            if uplink > most:
                front[count].ask, front[count].uplink = ranked[one].ask, uplink
                most = uplink
                count += 1
    start[len(rank_start) - 1] = count
    return count


@njit(cache=True, nogil=True)
def best_over_sites(
    job: Record, limit: Floats, size: int, rules: Rules, sold: Supply, left: Stock, room: Desk,
    mood: Mood, of: Fronts, score: float,
) -> tuple[float, int]:  # fmt: skip
    """`choosing.over_sites`, in less time."""
    hope, parts = of.hope, 0
    for gpu_class in range(len(limit)):
        hope[gpu_class] = -FAR
        if limit[gpu_class] > 0:
            hope[gpu_class] = size * _hope(job, limit[gpu_class], size, gpu_class, rules, of)
    for _ in range(len(limit)):
        best = int(np.argmax(hope))
        if hope[best] <= score:
            break
        score, count = of_class(job, limit[best], size, best, rules, sold, left, room, mood, score)
        if count:
            parts = count
        hope[best] = -FAR
    return score, parts


@njit(cache=True, nogil=True)
def _hope(job: Record, limit: float, size: int, gpu_class: int, rules: Rules, of: Fronts) -> float:
    """No GPU of a gang of just so many over sites of a class gains more (`choosing`)."""
    hope, risk = -FAR, rules.failures[0] * job.lost * size
    for net in range(NETS):
        list_of = rank(gpu_class, net, job.tier, job.site_least)
        for one in range(of.start[list_of], of.start[list_of + 1]):
            here = of.front[one]
            hope = max(hope, limit * (kept(job, here.uplink) - risk) - here.ask)
    return hope
