"""What each job and each node could gain alone, were it free to trade at given prices.

The sum over all of them bounds the welfare of any matches (`scheduler.matching.bound` says why),
and what they would buy less what they would sell tells how prices should move. Compiled loops, some
milliseconds for a thousand jobs: they run some dozen times for each clearing.

A gang buys of each cell no more than the cell has, and of no more sites than it accepts, so that it
can't be thought together from the cheapest GPUs of many. Its size counts twice, for the GPUs and for
the risk; so an elastic gang's sizes are taken in stretches from a to 2a - 1, each by its largest
size at the risk of its least, which is never too little.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Record
from scheduler.matching.lending import lent
from scheduler.matching.lists import Lists, find_cheapest
from scheduler.matching.offers import FADED, FAR, Offers, in_node, look_up, spread, want
from scheduler.matching.spanning import Span, over_sites, span
from scheduler.matching.tables import NOWHERE, SHARE, TIERS, Tables


class Room(NamedTuple):
    """What one pass over some jobs works with."""

    best: Array
    """A job's best gang so far, of so many GPUs of these cells."""
    now: Array
    """And the one that is looked at."""
    span: Span
    cheapest: Floats
    """[places] the least price of a GPU at each."""
    wanted: Floats
    """By how many jobs each offer is wanted; zero again once that is spread."""
    excess: Floats
    """[K, 4] what gangs buy, less than nothing."""
    gains: Floats
    """[J] what each could gain."""


def room(of: Tables, wanted: Floats, lists: Lists) -> Room:
    """For these tables and lists, and for what is `wanted` of offers."""
    longest = int(np.diff(lists.spot_start).max(initial=0))
    parts = 2 * TIERS * (longest + 1)
    return Room(
        np.zeros(parts, SHARE), np.zeros(parts, SHARE), span(longest),
        np.zeros(len(of.places)), wanted, np.zeros((len(of.cells), 4)),
        np.zeros(len(of.jobs)),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def all_gain(
    of: Tables, nodes: Array, lists: Lists, table: Offers, room: Room, price: Floats,
    width: Floats, of_cell: Floats, excess: Floats, each: int,
) -> float:  # fmt: skip
    """What all nodes and jobs would gain, each so many-th job asked alone and counted as often; what
    they would sell less what they would buy is added to `excess`. In one go: of a hundred jobs it takes
    no longer than to call its parts one by one. `width` [C] and `of_cell` [K]: see below."""
    look_up(price, width, table)
    total = nodes_gain(nodes, price, of_cell, excess)
    jobs = len(of.jobs)
    total += each * jobs_gain(of, lists, price, width, table.wide, room, 0, jobs, each)
    excess += each * room.excess
    spread(price, width, table, each, excess)
    return total


@njit(cache=True, nogil=True)
def nodes_gain(nodes: Array, price: Floats, width: Floats, excess: Floats) -> float:
    """Σ over nodes of the best cut of their free GPUs: the largest slots, as none earns less. What
    they sell is added to `excess` [K, 4]; `width` [K]: over how much price their minds change."""
    nodes, price, width, excess = lent((nodes, price, width, excess))
    total = 0.0
    for at in range(len(nodes)):
        node = nodes[at]
        for slot in range(4):
            gpus = node.free // 8 * 8 if slot == 3 else node.free & (1 << slot)
            if gpus:
                gain = price[node.cell, slot] - node.ask
                total += gpus * max(gain, 0.0)
                sure = gain / width[node.cell]
                if sure > FADED:
                    excess[node.cell, slot] += gpus
                elif sure > -FADED:
                    excess[node.cell, slot] += gpus / (1.0 + np.exp(-sure))
    return total


@njit(cache=True, nogil=True)
def jobs_gain(
    of: Tables, lists: Lists, price: Floats, width: Floats, wide: Array, room: Room, first: int,
    end: int, each: int,
) -> float:  # fmt: skip
    """Σ over the jobs from `first` to `end`, each one, second, fourth …, of the most that each could gain; `room` holds what they
    would buy for it. `width` [C]: over how much cost wishes spread."""
    of, lists, price, width = lent((of, lists, price, width))
    wide, room = lent((wide, room))
    jobs, limits, slow = of.jobs, of.limit, of.rules.in_node
    failures, best, wanted, excess = of.rules.failures, room.best, room.wanted, room.excess
    gains = room.gains
    excess[:] = 0
    find_cheapest(of.places, price, room.cheapest)
    total = 0.0
    for at in range(first, end, each):
        job, limit = jobs[at], limits[at]
        gain, gpus, gpu_class, near = in_one_node(job, limit, slow, failures, wide, width)
        parts = 0
        if job.most > 1 and job.level >= 1:
            found, count = together(at, of, lists, price, room, gain)
            if count:
                gain, parts = found, count
        total += gain
        gains[at] = gain
        for part in range(parts):
            excess[best[part].cell, 0] -= best[part].gpus
        if gpus and parts == 0:
            want(
                job, limit, gpus, gpu_class, slow[gpu_class], failures, wide, width[gpu_class], near,
                wanted,
            )  # fmt: skip
    return total


@njit(cache=True, nogil=True)
def in_one_node(
    job: Record, limit: Floats, slow: Floats, failures: Floats, wide: Array, width: Floats
) -> tuple[float, int, int, float]:
    """(gain, GPUs, class, gain with all that are near) of the best single node."""
    best, size, chosen, nearly = 0.0, 0, 0, -FAR
    for gpus in range(job.least, min(job.most, wide.shape[4]) + 1):
        for gpu_class in range(len(limit)):
            if limit[gpu_class] <= 0:
                continue
            gain, near = in_node(
                job, limit, gpus, gpu_class, slow[gpu_class], failures, wide, width[gpu_class],
                best,
            )  # fmt: skip
            best = max(best, gain)
            if near > max(nearly, -FADED * width[gpu_class] * gpus):
                size, chosen, nearly = gpus, gpu_class, near
    return best, size, chosen, nearly


@njit(cache=True, nogil=True)
def together(
    at: int, of: Tables, lists: Lists, price: Floats, room: Room, least_gain: float
) -> tuple[float, int]:
    """(gain, parts in `room.best`) of several nodes, if they gain more than so much; else (so much, 0)."""
    job, limit, places, sources = of.jobs[at], of.limit[at], of.places, of.sources
    in_site, failures, place = of.rules.in_site, of.rules.failures, lists.place
    best, now, cheapest, parts = room.best, room.now, room.cheapest, 0
    safest = failures[0] * job.lost * max(job.least, 2)
    for listed in range(lists.place_start[at], lists.place_start[at + 1]):
        here = places[place[listed]]
        hope = limit[here.gpu_class] * (1 - job.kappa * in_site[here.net] - safest)
        if (hope - cheapest[place[listed]]) * job.most <= least_gain:
            continue
        found, count = on_site(
            job, here, limit[here.gpu_class], 1 - job.kappa * in_site[here.net], failures, price,
            now, best, least_gain,
        )  # fmt: skip
        if count:
            least_gain, parts = found, count
    if job.level >= 2 and job.sites_most > 1:
        spots = lists.spot[lists.spot_start[at] : lists.spot_start[at + 1]]
        found, count = over_sites(
            job, limit, of.cells, places, sources, spots, failures, price, cheapest,
            room.span, best, least_gain,
        )  # fmt: skip
        if count:
            least_gain, parts = found, count
    return least_gain, parts


@njit(cache=True, nogil=True)
def on_site(
    job: Record, place: Record, limit: float, keeps: float, failures: Floats, price: Floats,
    now: Array, best: Array, least_gain: float,
) -> tuple[float, int]:  # fmt: skip
    """(gain, parts) of a place if it gains more than so much, else (…, 0); the parts in `best`."""
    there, hope = 0, -FAR
    least = max(job.least, 2)
    for at in range(2 * TIERS):
        if place.cells[at] != NOWHERE and at // 2 <= job.tier and at % 2 >= job.long:
            there += place.gpus[at]
            risk = failures[at // 2] * job.lost * least
            hope = max(hope, limit * (keeps - risk) - price[place.cells[at], 0])
    most, found, parts = min(there, job.most), least_gain, 0
    while least <= most and hope * most > found:
        size = min(2 * least - 1, most)
        total, count = _fill(job, place, limit, keeps, failures, price, now, least, size)
        if total > found:
            found, parts = total, count
            best[:count] = now[:count]
        least = size + 1
    return found, parts


@njit(cache=True, nogil=True)
def _fill(
    job: Record, place: Record, limit: float, keeps: float, failures: Floats, price: Floats,
    now: Array, least: int, most: int,
) -> tuple[float, int]:  # fmt: skip
    """(gain, parts) of the best GPUs of a place: at least `least`, whatever they gain, and from
    there on up to `most` that gain something."""
    left, used, total, count = most, 0, 0.0, 0
    while left > 0:
        gain, chosen = -FAR, NOWHERE
        for at in range(2 * TIERS):
            cell = place.cells[at]
            if cell == NOWHERE or used >> at & 1 or at // 2 > job.tier or at % 2 < job.long:
                continue
            here = limit * (keeps - failures[at // 2] * job.lost * least) - price[cell, 0]
            if here > gain:
                gain, chosen = here, at
        take = most if gain > 0 else least - (most - left)
        if chosen == NOWHERE or take <= 0:
            break
        used |= 1 << chosen
        take = min(take, left, place.gpus[chosen])
        now[count].cell, now[count].gpus = place.cells[chosen], take
        count += 1
        total += take * gain
        left -= take
    return total, count
