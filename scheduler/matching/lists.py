"""Where a gang of several nodes looks: wherever it could gain, or the most promising spots.

At good prices a gang's best choice is nearly always among the few that were best a little earlier.
So prices move by short lists, which are drawn up anew from time to time; what is published is
reckoned with all. A class of which no sites, so many as the gang accepts, have the GPUs that it
needs is left out.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.halves import Halves, joined
from scheduler.matching.lending import lent
from scheduler.matching.tables import NOWHERE, Tables, accepts, kept

ALL: Final = 2**31 - 1


class Lists(NamedTuple):
    """The places at which each job looks for one site, and the spots for several (places, and
    sources, which are numbered after them; class by class): those of job j stand from start[j] on."""

    place_start: Ints
    place: Ints
    spot_start: Ints
    spot: Ints


class Length(NamedTuple):
    """How many places and spots of each class are listed at most, and that only each first, second,
    fourth … job's are."""

    places: int = ALL
    spots: int = ALL
    each: int = 1


def lists(of: Tables, price: Floats, halves: Halves, length: Length) -> Lists:
    """At these prices: the most promising places of each job, and spots of each class."""
    cheapest = np.empty(len(of.places))
    find_cheapest(of.places, price, cheapest)

    def half(_: int, first: int, end: int) -> tuple[Ints, Ints, Ints, Ints]:
        return (
            *_places(of, cheapest, length, first, end),
            *_spots(of, price, cheapest, length, first, end),
        )

    found = list(zip(*halves.each(half), strict=True))
    return Lists(*joined(found[0], found[1]), *joined(found[2], found[3]))


@njit(cache=True, nogil=True)
def find_cheapest(places: Array, price: Floats, cheapest: Floats) -> None:
    """Fills `cheapest` [places]: the least price of a GPU at each."""
    for at in range(len(places)):
        cheapest[at] = np.inf
        for cell in places[at].cells:
            if cell != NOWHERE:
                cheapest[at] = min(cheapest[at], price[cell, 0])


@njit(cache=True, nogil=True)
def _places(
    of: Tables, cheapest: Floats, length: Length, first: int, end: int
) -> tuple[Ints, Ints]:
    """(how many of each job, all of them) for the jobs from `first` to `end`."""
    of, cheapest = lent((of, cheapest))
    jobs, limits, places, place_start = of.jobs, of.limit, of.places, of.place_start
    in_site, failures = of.rules.in_site, of.rules.failures
    counts, total = np.zeros(end - first, np.int64), 0
    found: Ints = np.empty(1024, np.int32)
    hope, which = np.empty(len(places)), np.empty(len(places), np.int32)
    for at in range(first, end, length.each):
        count, before = 0, total
        if jobs[at].most > 1 and jobs[at].level >= 1:
            count = _promising_places(
                jobs[at], limits[at], places, place_start, in_site, failures, cheapest, hope, which
            )
        found, total = _keep_best(hope[:count], which[:count], length.places, found, total)
        counts[at - first] = total - before
    return counts, found[:total].copy()


@njit(cache=True, nogil=True)
def _promising_places(
    job: Record, limit: Floats, places: Array, place_start: Ints, in_site: Floats, failures: Floats,
    cheapest: Floats, hope: Floats, which: Ints,
) -> int:  # fmt: skip
    """How many places could gain anything, with no less than they could."""
    least, count = max(job.least, 2), 0
    safest = failures[0] * job.lost * least
    for gpu_class in range(len(limit)):
        worth = limit[gpu_class]
        if worth <= 0:
            continue
        for one in range(place_start[gpu_class], place_start[gpu_class + 1]):
            place = places[one]
            gain = worth * (1 - job.kappa * in_site[place.net] - safest) - cheapest[one]
            if gain <= 0 or not accepts(job, place):
                continue
            found = there(job, place)
            if found >= least:
                hope[count], which[count] = -gain * min(found, job.most), one
                count += 1
    return count


@njit(cache=True, nogil=True)
def there(job: Record, place: Record) -> int:
    """How many GPUs a place has that the job accepts."""
    return int(place.there[2 * job.tier + job.long])


@njit(cache=True, nogil=True)
def _spots(
    of: Tables, price: Floats, cheapest: Floats, length: Length, first: int, end: int
) -> tuple[Ints, Ints]:
    of, price, cheapest = lent((of, price, cheapest))
    jobs, limits, places, sources, cells = of.jobs, of.limit, of.places, of.sources, of.cells
    place_start, source_start = of.place_start, of.source_start
    counts, total = np.zeros(end - first, np.int64), 0
    found: Ints = np.empty(1024, np.int32)
    longest = len(places) + len(sources)
    hope, which, gpus = np.empty(longest), np.empty(longest, np.int32), np.empty(longest, np.int32)
    sites = np.zeros(max(jobs["least"].max(), 2) + 1 if len(jobs) else 3, np.int64)
    for at in range(first, end, length.each):
        job, before = jobs[at], total
        goes = job.most > 1 and job.level >= 2 and job.sites_most > 1
        for gpu_class in range(limits.shape[1] if goes else 0):
            limit = limits[at, gpu_class]
            if limit <= 0:
                continue
            count = promising_sites(
                job, limit, places, place_start[gpu_class], place_start[gpu_class + 1], cheapest, hope,
                which, gpus,
            )  # fmt: skip
            count = promising_sources(
                job, limit, cells, sources, source_start[gpu_class], source_start[gpu_class + 1],
                len(places), price, hope, which, gpus, count,
            )  # fmt: skip
            if enough(job, sources, len(places), which[:count], gpus[:count], sites):
                count = gainful(hope, which, count)
                found, total = _keep_best(hope[:count], which[:count], length.spots, found, total)
        counts[at - first] = total - before
    return counts, found[:total].copy()


@njit(cache=True, nogil=True)
def promising_sites(
    job: Record, limit: float, places: Array, first: int, end: int, cheapest: Floats, hope: Floats,
    which: Ints, gpus: Ints,
) -> int:  # fmt: skip
    """How many places could be a part of the gang, whatever they gain."""
    count = 0
    for one in range(first, end):
        place = places[one]
        if not accepts(job, place):
            continue
        found, keeps = there(job, place), kept(job, place.uplink)
        if found >= job.site_least and keeps > 0:
            hope[count] = -(limit * keeps - cheapest[one]) * min(found, job.most)
            which[count], gpus[count] = one, found
            count += 1
    return count


@njit(cache=True, nogil=True)
def promising_sources(
    job: Record, limit: float, cells: Array, sources: Array, first: int, end: int, number: int,
    price: Floats, hope: Floats, which: Ints, gpus: Ints, count: int,
) -> int:  # fmt: skip
    for one in range(first, end):
        source = sources[one]
        cell = cells[source.cell]
        if cell.tier > job.tier or cell.long < job.long or not accepts(job, cell):
            continue
        keeps = kept(job, source.uplink)
        if source.each >= job.site_least and keeps > 0:
            gain = limit * keeps - price[source.cell, 0]
            hope[count] = -gain * min(source.gpus, job.most)
            which[count], gpus[count] = number + one, source.each
            count += 1
    return count


@njit(cache=True, nogil=True)
def enough(
    job: Record, sources: Array, number: int, which: Ints, gpus: Ints, sites: Ints
) -> bool:  # fmt: skip
    """Whether the largest sites, as many as the gang accepts, have the GPUs that it needs. `sites`
    is room to count them by size."""
    least = max(job.least, 2)
    sites[: least + 1] = 0
    for one in range(len(which)):
        times = 1
        if which[one] >= number:
            source = sources[which[one] - number]
            times = source.gpus // source.each
        sites[min(gpus[one], least)] += times
    missing, most = least, job.sites_most
    for size in range(least, 0, -1):
        times = min(sites[size], most)
        missing -= times * size
        most -= times
        if missing <= 0 or most == 0:
            break
    return bool(missing <= 0)


@njit(cache=True, nogil=True)
def gainful(hope: Floats, which: Ints, count: int) -> int:
    """Moves those that promise anything to the front; how many."""
    kept_on = 0
    for at in range(count):
        if hope[at] < 0:
            hope[kept_on], which[kept_on] = hope[at], which[at]
            kept_on += 1
    return kept_on


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
