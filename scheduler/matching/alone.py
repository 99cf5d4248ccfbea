"""What each job and each node could gain alone, were it free to trade at given prices.

The sum over all of them bounds the welfare of any matches (`scheduler.matching.bound` says why),
and what they would buy less what they would sell tells how prices should move. Compiled loops, a
millisecond for a thousand jobs: they run some hundred times for each clearing.

A gang buys of each cell no more than the cell has, so that it can't be thought together from the
cheapest GPUs of many sites. Its size counts twice, for the GPUs and for the risk; so an elastic
gang's sizes are taken in stretches from a to 2a - 1, each by its largest size at the risk of its
least, which is never too little.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.book import NODE_GPUS
from scheduler.matching.tables import NOWHERE, TIERS, TRUSTS, Tables

FAR: Final = 1e300
"""A price that nobody pays."""
_PART: Final = np.dtype([("cell", "i4"), ("gpus", "i4")])
_OFFER: Final = np.dtype([("price", "f8"), ("cell", "i4")])


class Lists(NamedTuple):
    """The places and sources that each job looks at: those of job j stand from start[j] on."""

    place_start: Ints
    place: Ints
    source_start: Ints
    source: Ints


class Room(NamedTuple):
    """What `jobs_gain` works with, and leaves nothing in."""

    cheapest: Array
    """[GPUs - 1, class, tier, worst trust, least window, region] the cell that has so many GPUs of
    one node at the least price; the last region stands for all."""
    best: Array
    """A job's best gang so far, of so many GPUs of these cells."""
    now: Array
    """And the one that is looked at."""
    gain: Floats


def room(of: Tables, lists: Lists) -> Room:
    """For these tables and lists."""
    regions = int(of.cells["region"].max(initial=0)) + 1
    most = int(min(max(of.cells["largest"].max(initial=1), 1), NODE_GPUS))
    longest = max(int(np.diff(lists.source_start).max(initial=0)), 2 * TIERS)
    shape = (most, of.limit.shape[1], TIERS, TRUSTS, 2, regions + 1)
    return Room(
        np.zeros(shape, _OFFER), np.zeros(longest, _PART), np.zeros(longest, _PART),
        np.zeros(longest),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def nodes_gain(nodes: Array, price: Floats, excess: Floats) -> float:
    """Σ over nodes of the best cut of their free GPUs, which adds to `excess` [K, 4]: the largest
    slots, as none earns less."""
    total = 0.0
    for at in range(len(nodes)):
        node = nodes[at]
        for slot in range(4):
            gpus = node.free // 8 * 8 if slot == 3 else node.free & (1 << slot)
            if gpus and price[node.cell, slot] > node.ask:
                total += gpus * (price[node.cell, slot] - node.ask)
                excess[node.cell, slot] += gpus
    return total


@njit(cache=True, nogil=True)
def look_up(cells: Array, price: Floats, cheapest: Array) -> None:
    """Fills the table of cheapest offers."""
    most = cheapest.shape[0]
    for offer in cheapest.flat:
        offer.price = FAR
    for at in range(len(cells)):
        cell = cells[at]
        for gpus in range(1, min(most, cell.largest) + 1):
            cost = gpus // 8 * 8 * price[at, 3]
            for slot in range(3):
                cost += (gpus & (1 << slot)) * price[at, slot]
            offer = cheapest[
                gpus - 1, cell.gpu_class, cell.tier, cell.trust, cell.long, cell.region
            ]
            if cost < offer.price:
                offer.price, offer.cell = cost, at
    for gpus in range(most):
        for gpu_class in range(cheapest.shape[1]):
            for tier in range(TIERS):
                _widen(cheapest[gpus, gpu_class, tier])


@njit(cache=True, nogil=True)
def _widen(offers: Array) -> None:
    """Who accepts a worse trust or a shorter window accepts the better as well; [trust, window,
    region]."""
    every = offers.shape[2] - 1
    for trust in range(TRUSTS):
        for long in (1, 0):
            row = offers[trust, long]
            for region in range(every):
                if trust > 0 and offers[trust - 1, long, region].price < row[region].price:
                    row[region] = offers[trust - 1, long, region]
                if long == 0 and offers[trust, 1, region].price < row[region].price:
                    row[region] = offers[trust, 1, region]
                if row[region].price < row[every].price:
                    row[every] = row[region]


@njit(cache=True, nogil=True)
def jobs_gain(
    of: Tables, lists: Lists, price: Floats, room: Room, excess: Floats, gains: Floats
) -> float:
    """Σ over jobs of the most that each could gain, which stands in `gains` [J]; what they would
    buy for it is taken from `excess` [K, 4]."""
    jobs, best, total = of.jobs, room.best, 0.0
    for at in range(len(jobs)):
        gain, parts, cell, gpus = _alone(at, of, lists, price, room)
        gains[at] = gain
        total += gain
        for one in range(parts):
            excess[best[one].cell, 0] -= best[one].gpus
        if gain > 0 and parts == 0:
            excess[cell, 3] -= gpus // 8 * 8
            for slot in range(3):
                excess[cell, slot] -= gpus & (1 << slot)
    return total


@njit(cache=True, nogil=True)
def _alone(
    at: int, of: Tables, lists: Lists, price: Floats, room: Room
) -> tuple[float, int, int, int]:
    """(gain, parts, cell, GPUs) of a job: so many parts of a gang in `room.best`, or one cell."""
    jobs, limit, cells, places, sources = of.jobs, of.limit, of.cells, of.places, of.sources
    in_node, in_site, failures = of.rules.in_node, of.rules.in_site, of.rules.failures
    place_start, place, source_start, source = lists
    cheapest, best, now, gain = room
    job = jobs[at]
    # 1. One node.
    most, cell, gpus = _in_node(job, limit[at], in_node, failures, cheapest)
    parts = 0
    # 2. One site, if that brings more.
    if job.most > 1 and job.level >= 1:
        for one in place[place_start[at] : place_start[at + 1]]:
            here = places[one]
            worth, keeps = limit[at, here.gpu_class], 1 - job.kappa * in_site[here.net]
            found, count = _on_site(job, here, worth, keeps, failures, price, now, best, most)
            if count:
                most, parts = found, count
    # 3. Several sites.
    if job.most > 1 and job.level >= 2 and job.sites_most > 1:
        found, count = _over_sites(
            job, limit[at], cells, sources, source[source_start[at] : source_start[at + 1]],
            failures, price, gain, now, best, most,
        )  # fmt: skip
        if count:
            most, parts = found, count
    return most, parts, cell, gpus


@njit(cache=True, nogil=True)
def _in_node(
    job: Record, limit: Floats, in_node: Floats, failures: Floats, cheapest: Array
) -> tuple[float, int, int]:
    """(gain, cell, GPUs) of the best single node; nothing is (0, 0, 0)."""
    best, cell, size = 0.0, 0, 0
    regions = cheapest.shape[5] - 1
    every = np.uint64((1 << regions) - 1)
    anywhere = job.regions & every == every
    for gpus in range(job.least, min(job.most, cheapest.shape[0]) + 1):
        for gpu_class in range(len(limit)):
            if limit[gpu_class] <= 0:
                continue
            keeps = 1.0 - job.kappa * in_node[gpu_class] if gpus > 1 else 1.0
            for tier in range(job.tier + 1):
                value = gpus * limit[gpu_class] * (keeps - failures[tier] * gpus * job.lost)
                offers = cheapest[gpus - 1, gpu_class, tier, job.trust, job.long]
                if value - offers[regions].price <= best:
                    continue
                if anywhere:
                    best, cell = value - offers[regions].price, offers[regions].cell
                    size = gpus
                    continue
                for region in range(regions):
                    goes = job.regions >> np.uint64(region) & np.uint64(1)
                    if goes and value - offers[region].price > best:
                        best, cell = value - offers[region].price, offers[region].cell
                        size = gpus
    return best, cell, size


@njit(cache=True, nogil=True)
def _on_site(
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


@njit(cache=True, nogil=True)
def _over_sites(
    job: Record, limit: Floats, cells: Array, sources: Array, listed: Ints, failures: Floats,
    price: Floats, gain: Floats, now: Array, best: Array, least_gain: float,
) -> tuple[float, int]:  # fmt: skip
    """As `_on_site`, of the best class among the sources listed. How many sites that makes is not
    looked at, nor whether there are as many GPUs as the gang needs."""
    found, parts = least_gain, 0
    at = 0
    while at < len(listed):
        gpu_class = cells[sources[listed[at]].cell].gpu_class
        to = at
        while to < len(listed) and cells[sources[listed[to]].cell].gpu_class == gpu_class:
            to += 1
        least = max(job.least, 2, 2 * job.site_least)
        while least <= job.most:
            for one in range(at, to):
                source = sources[listed[one]]
                risk = failures[cells[source.cell].tier] * least * job.lost
                keeps = kept(job, source.uplink)
                gain[one - at] = price[source.cell, 0] - limit[gpu_class] * (keeps - risk)
            size = min(2 * least - 1, job.most)
            left, total, count = size, 0.0, 0
            for one in np.argsort(gain[: to - at]):
                if left == 0 or gain[one] >= 0:
                    break
                source = sources[listed[at + one]]
                take = min(source.gpus, left)
                now[count].cell, now[count].gpus = source.cell, take
                count += 1
                total -= take * gain[one]
                left -= take
            if total > found:
                found, parts = total, count
                best[:count] = now[:count]
            least = size + 1
        at = to
    return found, parts


@njit(cache=True, nogil=True)
def accepts(job: Record, where: Record) -> bool:
    """Whether a job goes to a cell, kind or place at all: by its region and trust."""
    there = job.regions >> np.uint64(where.region) & np.uint64(1)
    return bool(where.trust <= job.trust and there == 1)


@njit(cache=True, nogil=True)
def kept(job: Record, uplink: float) -> float:
    """η of a gang's share behind an uplink, Mbit/s; 0 where it never computes in between."""
    computing = uplink * job.sync_s
    return computing / (computing + 16 * job.sync_mb) if computing > 0 else 0.0
