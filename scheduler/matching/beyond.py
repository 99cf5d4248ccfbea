"""A gang over several sites: the class that promises most comes first, and none is looked at that can't
gain more than what is known already.
"""

from typing import Final

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Record
from scheduler.matching.desks import Desk, Fronts, Mood, free_for, rank
from scheduler.matching.gathering import gather, lay_out, weigh
from scheduler.matching.offers import FAR
from scheduler.matching.supply import NETS, Stock, Supply
from scheduler.matching.tables import Rules, accepts, kept

_TOLLS: Final = 6
_CLOSE: Final = 1e-9
"""USD per hour, for which no more tolls are tried."""


@njit(cache=True, nogil=True)
def over_sites(
    job: Record, limit: Floats, size: int, rules: Rules, sold: Supply, left: Stock, room: Desk,
    mood: Mood, score: float,
) -> tuple[float, int]:  # fmt: skip
    """(score, parts) of up to `size` GPUs over several sites, in `room.chosen`; no parts if that scores
    no more than so much."""
    hope, parts = room.fronts.hope, 0
    for gpu_class in range(len(limit)):
        hope[gpu_class] = -FAR
        if limit[gpu_class] > 0:
            hope[gpu_class] = size * _hope(
                job, limit[gpu_class], size, gpu_class, rules, room.fronts
            )
    for _ in range(len(limit)):
        best = int(np.argmax(hope))
        if hope[best] <= max(score, mood.floor):
            break
        hope[best] = -FAR
        known = _spots(job, limit[best], size, best, rules, sold, left, room, mood)
        if known < 2:
            continue
        score, count = _together(
            job, limit[best], size, known, rules.failures, left.shelf, room, mood.guide, score
        )
        if count:
            parts = count
    return score, parts


@njit(cache=True, nogil=True)
def _hope(job: Record, limit: float, size: int, gpu_class: int, rules: Rules, of: Fronts) -> float:
    """No GPU of a gang of just so many over sites of a class gains more, at asks. One that ends up smaller
    bears less risk, and may gain a little more."""
    hope, risk = -FAR, rules.failures[0] * job.lost * size
    for net in range(NETS):
        list_of = rank(gpu_class, net, job.tier, job.site_least)
        for one in range(of.start[list_of], of.start[list_of + 1]):
            here = of.front[one]
            hope = max(hope, limit * (kept(job, here.uplink) - risk) - here.ask)
    return hope


@njit(cache=True, nogil=True)
def _spots(
    job: Record, worth: float, size: int, gpu_class: int, rules: Rules, sold: Supply, left: Stock,
    room: Desk, mood: Mood,
) -> int:  # fmt: skip
    """How many places of a class could be a part of it; they stand on the bench. Of each network those
    come first that have what a site must give in the mean: a gang of 64 that accepts eight sites has
    no use for the cheapest, of one GPU each."""
    least, mean, known, end = job.site_least, size // min(job.sites_most, size), 0, 0
    for net in range(NETS):
        large = rank(gpu_class, net, job.tier, max(mean, least))
        every = rank(gpu_class, net, job.tier, least)
        known, end, seen = _spots_of(
            large, job, worth, size, rules, sold, left, room, mood, known, end, 0
        )
        if every != large:
            known, end, seen = _spots_of(
                every, job, worth, size, rules, sold, left, room, mood, known, end, seen
            )
    return known


@njit(cache=True, nogil=True)
def _spots_of(
    list_of: int, job: Record, worth: float, size: int, rules: Rules, sold: Supply, left: Stock,
    room: Desk, mood: Mood, known: int, end: int, seen: int,
) -> tuple[int, int, int]:  # fmt: skip
    """(spots, pieces, spots of this network) that are known, with those of one list of places."""
    places, ranked, rank_start = sold.places, sold.ranked, sold.rank_start
    spots, least, first = room.work.spots, job.site_least, known - seen
    least_risk = rules.failures[0] * job.lost * size
    for one in range(rank_start[list_of], rank_start[list_of + 1]):
        if worth * (1 - least_risk) <= ranked[one].ask or seen > mood.look:
            break
        number = ranked[one].place
        gpus = min(free_for(job, left.there[number]), size - least)
        if gpus < least or known == len(spots):
            continue
        place = places[number]
        keeps = kept(job, place.uplink)
        if worth * (keeps - least_risk) <= ranked[one].ask or not accepts(job, place):
            continue
        if _stands(number, spots, first, known):
            continue
        seen += 1
        spot = spots[known]
        spot.keeps, spot.first, spot.least, spot.most = keeps, end, least, gpus
        spot.place = number
        end = lay_out(
            job, size, worth, keeps, place, left.shelf, rules.failures, mood.guide, spot.first,
            room.work,
        )  # fmt: skip
        spot.end = end
        known += 1
    return known, end, seen


@njit(cache=True, nogil=True)
def _stands(place: int, spots: Array, first: int, known: int) -> bool:
    """Whether a place is known already."""
    one = first
    while one < known and spots[one].place != place:
        one += 1
    return one < known


@njit(cache=True, nogil=True)
def _together(
    job: Record, limit: float, size: int, known: int, failures: Floats, shelf: Array, room: Desk,
    guide: float, score: float,
) -> tuple[float, int]:  # fmt: skip
    """(score, parts) of the spots put together, in `room.chosen`; no parts if that scores no more."""
    spots, pieces, work, parts = room.work.spots, room.work.pieces, room.work, 0
    low, high = pieces[0].gain, pieces[0].gain
    for one in range(known):
        low = min(low, pieces[spots[one].end - 1].gain)
        high = max(high, pieces[spots[one].first].gain)
    low, toll, most, count = 2 * low - high, 0.0, np.inf, 0
    sites = min(job.sites_most, size // spots[0].least)
    for _ in range(_TOLLS):
        total, count, gpus, same = weigh(known, toll, sites, count, work)
        # No gang of so many gains more, whatever the toll.
        most = min(most, total + toll * (job.least if toll < 0 else size))
        if most <= score + _CLOSE:
            break
        if gpus >= job.least:
            low = toll
        else:
            high = toll
        toll = (low + high) / 2
        if count < 2 or same:
            continue
        found, gpus, some = gather(
            job, size, limit, work.picked[:count], shelf, failures, guide, work, room.trial
        )
        if gpus >= job.least and found > score:
            score, parts = found, some
            room.chosen[:some] = room.trial[:some]
            if most <= score + _CLOSE:
                break
    return score, parts
