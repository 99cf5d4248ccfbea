"""The most that a gang over several sites could gain at given prices, or a little more.

Which few sites it should take and how much of each is a puzzle of its own. Two answers are never too
little, and the lesser of them is hardly ever far off: the GPUs that gain most, on however many sites;
and the sites that gain most, each with as many GPUs as the gang needs.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.tables import NOWHERE, TIERS, kept

_SPOT: Final = np.dtype(
    [("gain", "f8"), ("sites", "i4"), ("largest", "i4"), ("left", "i4"), ("taken", "i4")],
    align=True,
)
"""A place, or all the sites of a source: how many, the most that one has, the most that one could
gain the gang, and how many of them it takes."""
_PIECE: Final = np.dtype([("gain", "f8"), ("cell", "i4"), ("gpus", "i4"), ("spot", "i4")])
"""GPUs that gain alike."""


class Span(NamedTuple):
    """What `over_sites` works with, and leaves nothing in."""

    pieces: Array
    spots: Array
    loss: Floats


def span(most: int) -> Span:
    """For so many places and sources."""
    pieces = 2 * TIERS * (most + 1)
    return Span(np.zeros(pieces, _PIECE), np.zeros(most + 1, _SPOT), np.zeros(pieces))


@njit(cache=True, nogil=True)
def over_sites(
    job: Record, limit: Floats, cells: Array, places: Array, sources: Array, listed: Ints,
    failures: Floats, price: Floats, cheapest: Floats, working: Span, best: Array,
    least_gain: float,
) -> tuple[float, int]:  # fmt: skip
    """(gain, shares) of the best class of the places and sources that are listed, class by class;
    the shares in `best`. (…, 0) if none gains more than so much."""
    pieces, spots, loss = working
    found, shares, at = least_gain, 0, 0
    while at < len(listed):
        gpu_class, to = class_of(cells, places, sources, listed[at]), at
        while to < len(listed) and class_of(cells, places, sources, listed[to]) == gpu_class:
            to += 1
        here, least = listed[at:to], max(job.least, 2, 2 * job.site_least)
        hope = _hope(job, limit[gpu_class], places, sources, here, price, cheapest)
        while least <= job.most and hope * job.most > found:
            size = min(2 * least - 1, job.most)
            count = _cut(
                job, limit[gpu_class], cells, places, sources, here, failures, price, least, pieces,
                spots,
            )  # fmt: skip
            loss[:count] = -pieces["gain"][:count]
            order = np.argsort(loss[:count])
            total = _gpus_that_gain(pieces, order, size)
            if total > found:
                few = _sites_that_gain(pieces, order, spots, len(here), size, job.sites_most)
                if min(few, total) > found:
                    found = min(few, total)
                    shares = _taken(pieces, order, spots, size, few < total, best)
            least = size + 1
        at = to
    return found, shares


@njit(cache=True, nogil=True)
def _hope(
    job: Record, limit: float, places: Array, sources: Array, listed: Ints, price: Floats,
    cheapest: Floats,
) -> float:  # fmt: skip
    """No less than any GPU of these gains."""
    most = 0.0
    for spot in listed:
        if spot < len(places):
            gain = limit * kept(job, places[spot].uplink) - cheapest[spot]
        else:
            source = sources[spot - len(places)]
            gain = limit * kept(job, source.uplink) - price[source.cell, 0]
        most = max(most, gain)
    return most


@njit(cache=True, nogil=True)
def class_of(cells: Array, places: Array, sources: Array, spot: int) -> int:
    """Of a place, or of a source, which are numbered after them."""
    if spot < len(places):
        return int(places[spot].gpu_class)
    return int(cells[sources[spot - len(places)].cell].gpu_class)


@njit(cache=True, nogil=True)
def _cut(
    job: Record, limit: float, cells: Array, places: Array, sources: Array, listed: Ints,
    failures: Floats, price: Floats, least: int, pieces: Array, spots: Array,
) -> int:  # fmt: skip
    """How many pieces of what is listed gain anything, with the risk of so many GPUs."""
    count = 0
    for at in range(len(listed)):
        spot, here = listed[at], spots[at]
        if spot >= len(places):
            source = sources[spot - len(places)]
            cell = cells[source.cell]
            risk = failures[cell.tier] * least * job.lost
            gain = limit * (kept(job, source.uplink) - risk) - price[source.cell, 0]
            here.largest = source.each
            here.sites = source.gpus // max(source.each, 1)
            if gain > 0:
                pieces[count].gain, pieces[count].cell = gain, source.cell
                pieces[count].gpus, pieces[count].spot = source.gpus, at
                count += 1
            continue
        place, here.largest, here.sites = places[spot], 0, 1
        keeps = kept(job, place.uplink)
        for of in range(2 * TIERS):
            if place.cells[of] == NOWHERE or of // 2 > job.tier or of % 2 < job.long:
                continue
            risk = failures[of // 2] * least * job.lost
            gain = limit * (keeps - risk) - price[place.cells[of], 0]
            here.largest += place.gpus[of]
            if gain > 0:
                pieces[count].gain, pieces[count].cell = gain, place.cells[of]
                pieces[count].gpus, pieces[count].spot = place.gpus[of], at
                count += 1
    return count


@njit(cache=True, nogil=True)
def _gpus_that_gain(pieces: Array, order: Ints, size: int) -> float:
    total, left = 0.0, size
    for one in order:
        take = min(pieces[one].gpus, left)
        total += take * pieces[one].gain
        left -= take
        if left == 0:
            break
    return total


@njit(cache=True, nogil=True)
def _sites_that_gain(
    pieces: Array, order: Ints, spots: Array, count: int, size: int, most: int
) -> float:
    """The sum over the best sites, so many at most; how many of each spot stands in `taken`."""
    for at in range(count):
        spots[at].gain, spots[at].left, spots[at].taken = 0.0, min(spots[at].largest, size), 0
    for one in order:
        here = spots[pieces[one].spot]
        take = min(pieces[one].gpus, here.left)
        here.gain += take * pieces[one].gain
        here.left -= take
    total = 0.0
    for at in np.argsort(-spots["gain"][:count]):
        if most == 0 or spots[at].gain == 0:
            break
        spots[at].taken = min(spots[at].sites, most)
        total += spots[at].taken * spots[at].gain
        most -= spots[at].taken
    return total


@njit(cache=True, nogil=True)
def _taken(pieces: Array, order: Ints, spots: Array, size: int, few: bool, shares: Array) -> int:
    """How many shares it buys: the GPUs that gain most, of all sites or of the `few` best."""
    left, count = size, 0
    for one in order:
        here, take = spots[pieces[one].spot], min(pieces[one].gpus, left)
        if few:
            take = min(take, here.taken * min(here.largest, size))
        if take > 0:
            shares[count].cell, shares[count].gpus = pieces[one].cell, take
            count += 1
            left -= take
        if left == 0:
            break
    return count
