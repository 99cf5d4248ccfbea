"""The most that a gang over several sites could gain at given prices, or a little more.

Which few sites it should take and how much of each is a puzzle of its own. An answer that is never too
little: let each GPU bear a toll, take the sites that gain most beyond it, each with as many GPUs as it
likes, and add the toll of all GPUs that the gang needs. The least of these answers over all tolls is
hardly ever far off. (At no toll it is what the best sites gain, each with as many GPUs as the gang
needs; without a limit to the sites it would be the GPUs that gain most, on however many.)

A site gives no more than leaves the least that the gang accepts to another.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.tables import NOWHERE, TIERS, kept

_SPOT: Final = np.dtype(
    [
        ("gain", "f8"), ("sites", "i4"), ("largest", "i4"), ("most", "i4"), ("left", "i4"),
        ("taken", "i4"),
    ],
    align=True,
)  # fmt: skip
"""A place, or all the sites of a source: how many, the most that one has and that one gives, what one
gains beyond a toll, and how many of them the gang takes."""
_PIECE: Final = np.dtype([("gain", "f8"), ("cell", "i4"), ("gpus", "i4"), ("spot", "i4")])
"""GPUs that gain alike."""
_CLOSE: Final = 1e-12
"""What is left to gain by a better toll, as a share, when the search for it ends."""


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
            order, spotted = np.argsort(loss[:count]), spots[: to - at]
            for one in range(to - at):
                spotted[one].most = min(spotted[one].largest, size - job.site_least)
            total = _least(pieces, order, spotted, size, job.sites_most, found)
            if total > found:
                found = total
                shares = _taken(pieces, order, spotted, size, best)
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
def _least(pieces: Array, order: Ints, spots: Array, size: int, sites: int, enough: float) -> float:
    """The least, over all tolls, of what the best sites gain beyond it and what the gang's GPUs are
    worth by it; some of these if that is not more than `enough`. How many of each spot it takes
    stands in `taken`.

    As a function of the toll it is convex and made of straight lines: the next toll is where those
    on either side of the least would meet, until they do meet there."""
    most, high = _gpus_that_gain(pieces, order, size)
    if most <= enough:
        return most
    most, gpus = _beyond(pieces, order, spots, high, sites)
    most, rises = most + high * size, size - gpus
    if most <= enough or high == 0:
        return most
    low = 0.0
    least, gpus = _beyond(pieces, order, spots, low, sites)
    falls = size - gpus
    while falls < 0 < rises and min(least, most) > enough:
        toll = (least - most + rises * high - falls * low) / (rises - falls)
        # So near each other that rounding leaves nothing in between.
        if not low < toll < high:
            break
        if min(least, most) - (least + falls * (toll - low)) <= _CLOSE * most:
            break
        total, gpus = _beyond(pieces, order, spots, toll, sites)
        total += toll * size
        if gpus > size:
            low, least, falls = toll, total, size - gpus
        else:
            high, most, rises = toll, total, size - gpus
    # What is taken at the lower toll is enough, and on no more sites than it accepts.
    _beyond(pieces, order, spots, low, sites)
    return min(least, most) if falls < 0 else least


@njit(cache=True, nogil=True)
def _gpus_that_gain(pieces: Array, order: Ints, size: int) -> tuple[float, float]:
    """(what the best GPUs gain, so many at most and on any number of sites, what the last of them
    gains: 0 if they are fewer)."""
    total, left = 0.0, size
    for one in order:
        take = min(pieces[one].gpus, left)
        total += take * pieces[one].gain
        left -= take
        if left == 0:
            return total, float(pieces[one].gain)
    return total, 0.0


@njit(cache=True, nogil=True)
def _beyond(pieces: Array, order: Ints, spots: Array, toll: float, sites: int) -> tuple[float, int]:
    """(what the best sites gain beyond a toll on each GPU, so many sites at most, GPUs that they
    give); how many of each spot stands in `taken`."""
    for at in range(len(spots)):
        spots[at].gain, spots[at].left, spots[at].taken = 0.0, spots[at].most, 0
    for one in order:
        piece = pieces[one]
        if piece.gain <= toll:
            break
        here = spots[piece.spot]
        take = min(piece.gpus, here.left)
        here.gain += take * (piece.gain - toll)
        here.left -= take
    total, gpus = 0.0, 0
    while sites > 0:
        best, most = NOWHERE, 0.0
        for at in range(len(spots)):
            if spots[at].gain > most and spots[at].taken == 0:
                best, most = at, spots[at].gain
        if best == NOWHERE:
            break
        here = spots[best]
        here.taken = min(here.sites, sites)
        total += here.taken * here.gain
        gpus += here.taken * (here.most - here.left)
        sites -= here.taken
    return total, gpus


@njit(cache=True, nogil=True)
def _taken(pieces: Array, order: Ints, spots: Array, size: int, shares: Array) -> int:
    """How many shares it buys: the GPUs that gain most, of the spots that are taken."""
    left, count = size, 0
    for one in order:
        here = spots[pieces[one].spot]
        take = min(pieces[one].gpus, here.taken * here.most, left)
        if take > 0:
            shares[count].cell, shares[count].gpus = pieces[one].cell, take
            count += 1
            left -= take
        if left == 0:
            break
    return count
