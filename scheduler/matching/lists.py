"""Which places and sources a gang looks at: all in which it could gain, or the most promising.

At good prices a gang's best choice is nearly always among the few that were best a little earlier.
So prices move by short lists, which are drawn up anew from time to time; what is published is
reckoned with all.
"""

from typing import Final

import numpy as np
from numba import njit

from scheduler.matching.alone import Lists, accepts, kept
from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.tables import NOWHERE, TIERS, Tables

ALL: Final = 2**31 - 1


def lists(of: Tables, price: Floats, places: int = ALL, sources: int = ALL) -> Lists:
    """At these prices: the most promising places of each job, and sources of each class."""
    rules = of.rules
    place_start, place = _places(
        of.jobs, of.limit, of.places, rules.in_site, rules.failures, price, places
    )
    source_start, source = _sources(of.jobs, of.limit, of.cells, of.sources, price, sources)
    return Lists(place_start, place, source_start, source)


@njit(cache=True, nogil=True)
def _places(
    jobs: Array, limits: Floats, places: Array, in_site: Floats, failures: Floats, price: Floats,
    most: int,
) -> tuple[Ints, Ints]:  # fmt: skip
    start = np.zeros(len(jobs) + 1, np.int32)
    found: Ints = np.empty(1024, np.int32)
    hope, which = np.empty(len(places)), np.empty(len(places), np.int32)
    total = 0
    for at in range(len(jobs)):
        job, count = jobs[at], 0
        for one in range(len(places) if job.most > 1 and job.level >= 1 else 0):
            place = places[one]
            limit = limits[at, place.gpu_class]
            if limit <= 0 or not accepts(job, place):
                continue
            gain = _hope(job, place, limit, in_site, failures, price)
            if gain > 0:
                hope[count], which[count] = -gain, one
                count += 1
        found, total = _keep_best(hope[:count], which[:count], most, found, total)
        start[at + 1] = total
    return start, found[:total].copy()


@njit(cache=True, nogil=True)
def _hope(
    job: Record, place: Record, limit: float, in_site: Floats, failures: Floats, price: Floats
) -> float:
    """No less than the job could gain on a place that it accepts."""
    least = max(job.least, 2)
    worth = limit * (1 - job.kappa * in_site[place.net])
    best, there = 0.0, 0
    for at in range(2 * TIERS):
        cell = place.cells[at]
        if cell != NOWHERE and at // 2 <= job.tier and at % 2 >= job.long:
            there += place.gpus[at]
            risk = failures[at // 2] * job.lost * limit * least
            best = max(best, worth - price[cell, 0] - risk)
    return best * min(there, job.most) if there >= least else 0.0


@njit(cache=True, nogil=True)
def _sources(
    jobs: Array, limits: Floats, cells: Array, sources: Array, price: Floats, most: int
) -> tuple[Ints, Ints]:
    start = np.zeros(len(jobs) + 1, np.int32)
    found: Ints = np.empty(1024, np.int32)
    hope, which = np.empty(len(sources)), np.empty(len(sources), np.int32)
    total = 0
    for at in range(len(jobs)):
        job, count, gpu_class = jobs[at], 0, -1
        goes = job.most > 1 and job.level >= 2 and job.sites_most > 1
        for one in range(len(sources) if goes else 0):
            source = sources[one]
            cell = cells[source.cell]
            if cell.gpu_class != gpu_class:
                found, total = _keep_best(hope[:count], which[:count], most, found, total)
                count, gpu_class = 0, cell.gpu_class
            limit = limits[at, gpu_class]
            if limit <= 0 or cell.tier > job.tier or cell.long < job.long:
                continue
            if source.gpus == 0 or not accepts(job, cell):
                continue
            gain = limit * kept(job, source.uplink) - price[source.cell, 0]
            if gain > 0:
                hope[count], which[count] = -gain, one
                count += 1
        found, total = _keep_best(hope[:count], which[:count], most, found, total)
        start[at + 1] = total
    return start, found[:total].copy()


@njit(cache=True, nogil=True)
def _keep_best(hope: Floats, which: Ints, most: int, found: Ints, total: int) -> tuple[Ints, int]:
    """Appends the best of them (the least of `hope`) to what was found, which grows as it must."""
    take = min(len(hope), most)
    while total + take > len(found):
        larger: Ints = np.empty(2 * len(found), np.int32)
        larger[:total] = found[:total]
        found = larger
    if take < len(hope):
        chosen = np.argpartition(hope, take)
        for at in range(take):
            found[total + at] = which[chosen[at]]
    else:
        found[total : total + take] = which
    return found, total + take
