"""A gang over several sites: the class that promises most comes first, and none is looked at that can't
gain more than what is known already.
"""

from typing import Final

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Record
from scheduler.matching.desks import Desk, Fronts, Mood, free_for, rank
from scheduler.matching.gathering import Bench, gather
from scheduler.matching.offers import FAR
from scheduler.matching.supply import DOUBLINGS, NETS, Stock, Supply
from scheduler.matching.tables import Rules, accepts, kept
from scheduler.matching.weighing import ROUNDING, hope_for, lay_out_best, lay_out_spot, weigh

_TOLLS: Final = 6
_CLOSE: Final = 1e-9
"""USD per hour, for which no more tolls are tried."""
_BESIDE: Final = 1e-12
"""So near to the lowest toll, as a share of the way to the highest, is the first below nought."""


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
            job, limit[best], size, known, rules.failures, sold.places, left.shelf, room,
            mood.guide, score,
        )  # fmt: skip
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
    least, mean, known = job.site_least, size // min(job.sites_most, size), 0
    room.work.known[-1] += 1
    for net in range(NETS):
        large = rank(gpu_class, net, job.tier, max(mean, least))
        every = rank(gpu_class, net, job.tier, least)
        known, seen = _spots_of(large, job, worth, size, rules, sold, left, room, mood, known, 0)
        if every != large:
            known, seen = _spots_of(
                every, job, worth, size, rules, sold, left, room, mood, known, seen
            )
    return known


@njit(cache=True, nogil=True)
def _spots_of(
    list_of: int, job: Record, worth: float, size: int, rules: Rules, sold: Supply, left: Stock,
    room: Desk, mood: Mood, known: int, seen: int,
) -> tuple[int, int]:  # fmt: skip
    """(spots, spots of this network) that are known, with those of one list of places."""
    places, ranked, rank_start, work = sold.places, sold.ranked, sold.rank_start, room.work
    spots, least, failures, looked = work.spots, job.site_least, rules.failures, work.known[-1]
    least_risk = failures[0] * job.lost * size
    few = (1 << list_of % DOUBLINGS) - 1
    for one in range(rank_start[list_of], rank_start[list_of + 1]):
        here = ranked[one]
        if worth * (1 - least_risk) <= here.ask or seen > mood.look:
            break
        if not accepts(job, here):
            continue
        keeps = kept(job, here.uplink)
        if worth * (keeps - least_risk) <= here.ask:
            continue
        there = left.there[here.place]
        gpus = min(free_for(job, there), size - least)
        if gpus < least or known == len(spots) or work.known[here.place] == looked:
            continue
        work.known[here.place] = looked
        seen += 1
        spot = spots[known]
        spot.keeps, spot.least, spot.most, spot.place, spot.end = keeps, least, gpus, here.place, 0
        spot.mean, spot.few = worth * (keeps - least_risk) - here.ask + ROUNDING, few
        hope_for(job, worth, size, places[here.place], there, failures, spot)
        known += 1
    return known, seen


@njit(cache=True, nogil=True)
def _together(
    job: Record, limit: float, size: int, known: int, failures: Floats, places: Array,
    shelf: Array, room: Desk, guide: float, score: float,
) -> tuple[float, int]:  # fmt: skip
    """(score, parts) of the spots put together, in `room.chosen`; no parts if that scores no more.

    What the best sites gain beyond a toll is convex in it and made of straight lines. Where those on
    either side meet, the next toll is, until there is nothing below them."""
    work, sites, parts = room.work, min(job.sites_most, size // room.work.spots[0].least), 0
    end = lay_out_best(
        job, size, limit, known, sites, score + _CLOSE, places, shelf, failures, guide, work
    )
    toll, most, count, wanted, least = 0.0, np.inf, 0, size, -np.inf
    low, high = (0.0, 0.0, 0), (FAR, 0.0, 0)
    for turn in range(_TOLLS if end else 0):
        total, count, gpus, same, end = weigh(
            job, size, limit, known, toll, sites, count, places, shelf, failures, guide, end, work
        )
        if turn == 0 and gpus < job.least:
            wanted = job.least
            below = _lowest(job, size, limit, known, places, shelf, failures, guide, end, work)
            low, high = (below, 0.0, 0), (0.0, total, gpus)
        # No gang of so many gains more, whatever the toll.
        most = min(most, total + toll * wanted)
        if most > score + _CLOSE and count > 1 and not same:
            score, some = _tried(job, limit, size, count, failures, shelf, guide, room, score)
            parts = some or parts
        # Nothing better is left, or no toll lies below, or all that gains anything is not too much.
        if most <= score + _CLOSE or total <= least + _CLOSE or gpus == wanted:
            break
        if gpus > wanted:
            low = (toll, total, gpus)
        elif toll == 0 and gpus >= job.least:
            break
        else:
            high = (toll, total, gpus)
        toll, least = _crossing(low, high)
        if not low[0] < toll < high[0]:
            break
    return score, parts


@njit(cache=True, nogil=True)
def _tried(
    job: Record, limit: float, size: int, count: int, failures: Floats, shelf: Array, guide: float,
    room: Desk, score: float,
) -> tuple[float, int]:  # fmt: skip
    """(score, parts in `room.chosen`) of a gang over the spots that are picked; no parts if that scores
    no more."""
    found, gpus, parts = gather(
        job, size, limit, room.work.picked[:count], shelf, failures, guide, room.work, room.trial
    )
    if gpus < job.least or found <= score:
        return score, 0
    room.chosen[:parts] = room.trial[:parts]
    return found, parts


@njit(cache=True, nogil=True)
def _crossing(
    low: tuple[float, float, int], high: tuple[float, float, int]
) -> tuple[float, float]:  # fmt: skip
    """(toll, what is gained beyond it) where two lines meet: each by its toll, what is gained there, and
    how many GPUs give it. Of a low one that isn't known, right beside it."""
    if low[2] == 0:
        return low[0] + _BESIDE * (high[0] - low[0]), -np.inf
    toll = (low[1] + low[0] * low[2] - high[1] - high[0] * high[2]) / (low[2] - high[2])
    return toll, low[1] - (toll - low[0]) * low[2]


@njit(cache=True, nogil=True)
def _lowest(
    job: Record, size: int, limit: float, known: int, places: Array, shelf: Array,
    failures: Floats, guide: float, end: int, work: Bench,
) -> float:  # fmt: skip
    """A toll at which all spots give all that they have, which are laid out for that, and those that
    have most gain most: what else a GPU gains is less."""
    spots, pieces, low, high = work.spots, work.pieces, np.inf, -np.inf
    for one in range(known):
        spot = spots[one]
        if spot.end == 0:
            end = lay_out_spot(job, size, limit, places, shelf, failures, guide, end, spot, work)
        high = max(high, pieces[spot.first].gain)
        low = min(low, pieces[spot.end - 1].gain)
    return min(low, 0.0) - size * (high - low)
