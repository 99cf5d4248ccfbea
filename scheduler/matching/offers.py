"""What so many GPUs of one node cost at given prices: the cheapest cells, and how many are near.

A job that could go to a hundred cells of one kind wants the cheapest, until that is a micro dearer
than the next. Prices that follow such wishes jump about. So while they are sought, wishes are
spread: a cell that costs d more than the cheapest is wanted e^(−d / w) times as much, w being a
share (`warmth`) of what such GPUs usually cost. That is the gradient of the bound with its maxima
made smooth (Nesterov, Math. Program. 2005; McFadden's logit), and exact sums over cells need no
walk over them: they add up like minima, over better trust, longer windows and regions.
"""

from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.book import NODE_GPUS
from scheduler.matching.cells import distinct, told_apart
from scheduler.matching.lending import lent
from scheduler.matching.ordering import in_groups
from scheduler.matching.tables import NOWHERE, TIERS, TRUSTS, Tables, goes_anywhere

FAR: Final = 1e300
"""A price that nobody pays."""
FADED: Final = 16.0
"""e^-16 is nothing."""
OFFER: Final = np.dtype([("price", "f8"), ("weight", "f8")], align=True)
"""The least price, and Σ e^(−(price − least) / w) over cells."""


class Offers(NamedTuple):
    """Tables of offers. In small books few are ever filled; the rest stays zero and is never visited."""

    cell: Ints
    """Cells by their kind, which is all that decides whether a job accepts them. Those of a kind stand
    from `start` of it on."""
    start: Ints
    largest: Ints
    """The most that one node of each of these has free."""
    gpu_class: Ints
    """[kind]"""
    column: Ints
    """[…, 3] the classes, tiers and regions that some cell has, in order."""
    kind: Ints
    """[column, 2 · trust + window] which kind that is, NOWHERE if there is none."""
    exact: Array
    """[kind, GPUs - 1]."""
    wide: Array
    """[class, tier, trust, window, GPUs - 1, region]: of this trust or better, this window or longer;
    the last region stands for all."""
    wanted: Floats
    """[half of the jobs, …] by how many of these each of `wide` is wanted; zero again once that is
    spread."""


def offers(of: Tables, halves: int = 1) -> Offers:
    """Room for them, and for what so many halves of the jobs want."""
    cells = of.cells
    regions = int(cells["region"].max(initial=0)) + 1
    most = int(min(max(cells["largest"].max(initial=1), 1), NODE_GPUS))
    names = ("gpu_class", "tier", "region", "trust", "long")
    first, of_cell = told_apart(*(cells[name] for name in names))
    kinds = np.stack([cells[name][first] for name in names], axis=1)
    column, _, of_kind = distinct(kinds[:, :3])
    kind = np.full((len(column), 2 * TRUSTS), NOWHERE, np.int32)
    kind[of_kind, 2 * kinds[:, 3] + kinds[:, 4]] = np.arange(len(kinds))
    cell, start = in_groups(of_cell, len(kinds))
    shape = (of.limit.shape[1], TIERS, TRUSTS, 2, most, regions + 1)
    return Offers(
        cell, start, np.minimum(cells["largest"][cell], most), kinds[:, 0].copy(), column, kind,
        np.zeros((len(kinds), most), OFFER), np.zeros(shape, OFFER), np.zeros((halves, *shape)),
    )  # fmt: skip


def apart(table: Offers, parts: int) -> list[Offers]:
    """The same tables in so many parts, each of some of the classes, that can be filled and spread
    beside each other; what jobs read and want of them is the same."""
    cells = np.searchsorted(table.start, np.linspace(0, len(table.cell), parts + 1)[1:-1])
    classes = table.wide.shape[0]
    edges = [0, *np.append(table.gpu_class, classes)[cells], classes]
    found = []
    for first, end in pairwise(edges):
        kinds = slice(*np.searchsorted(table.gpu_class, (first, end)))
        columns = slice(*np.searchsorted(table.column[:, 0], (first, end)))
        kind = table.kind[columns]
        found.append(
            table._replace(
                start=table.start[kinds.start : kinds.stop + 1],
                gpu_class=table.gpu_class[kinds], column=table.column[columns],
                kind=np.where(kind == NOWHERE, NOWHERE, kind - kinds.start).astype(np.int32),
                exact=table.exact[kinds],
            )
        )  # fmt: skip
    return found


@njit(cache=True, nogil=True)
def look_up(price: Floats, width: Floats, table: Offers) -> None:
    """Fills the tables. `width` [C]: over how much of its cost a GPU's wishes spread, USD."""
    price, width, table = lent((price, width, table))
    costs = _room(table)
    for kind in range(len(table.exact)):
        _gather(kind, price, width[table.gpu_class[kind]], table, costs)
    anywhere = np.zeros((2 * TRUSTS, table.exact.shape[1]), OFFER)
    for one in range(len(table.column)):
        if one == 0 or (table.column[one, :2] != table.column[one - 1, :2]).any():
            _clear(anywhere)
        _widen(one, width[table.column[one, 0]], table, anywhere)


@njit(cache=True, nogil=True)
def spread(price: Floats, width: Floats, table: Offers, times: int, excess: Floats) -> None:
    """Takes from `excess` [K, 4] so many times what is wanted in the tables."""
    price, width, table, excess = lent((price, width, table, excess))
    wanted = np.zeros(table.exact.shape)
    for one in range(len(table.column)):
        gpu_class, tier, _ = table.column[one]
        _narrow(one, width[gpu_class], table, times, wanted)
        if (
            one + 1 == len(table.column)
            or (table.column[one, :2] != table.column[one + 1, :2]).any()
        ):
            table.wanted[:, gpu_class, tier, :, :, :, table.wide.shape[5] - 1] = 0.0
    costs = _room(table)
    for kind in range(len(table.exact)):
        if wanted[kind].any():
            near = width[table.gpu_class[kind]]
            _hand_out(kind, price, near, table, wanted[kind], costs, excess)


@njit(cache=True, nogil=True)
def in_node(
    job: Record, limit: Floats, gpus: int, gpu_class: int, slow: float, failures: Floats,
    wide: Array, width: float, least_gain: float,
) -> tuple[float, float]:  # fmt: skip
    """(gain, and so with all that are near) of the best node for so many GPUs of a class, USD per
    hour; (-FAR, -FAR) if there is none, or none that is near so much."""
    best, weight = -FAR, 0.0
    first, end = _regions(job, wide.shape[5] - 1)
    keeps = 1.0 - job.kappa * slow if gpus > 1 else 1.0
    for tier in range(job.tier + 1):
        value = gpus * limit[gpu_class] * (keeps - failures[tier] * gpus * job.lost)
        anywhere = wide[gpu_class, tier, job.trust, job.long, gpus - 1, wide.shape[5] - 1]
        if anywhere.weight == 0:
            continue
        if value - anywhere.price < max(least_gain, best) - FADED * width * gpus:
            continue
        for region in range(first, end):
            if first == 0 and not job.regions >> np.uint64(region) & np.uint64(1):
                continue
            here = wide[gpu_class, tier, job.trust, job.long, gpus - 1, region]
            gain = value - here.price
            if here.weight > 0 and gain > best:
                weight = here.weight + weight * _faded(gain - best, width * gpus)
                best = gain
            elif here.weight > 0:
                weight += here.weight * _faded(best - gain, width * gpus)
    return (best, best + width * gpus * np.log(weight)) if weight > 0 else (-FAR, -FAR)


@njit(cache=True, nogil=True)
def want(
    job: Record, limit: Floats, gpus: int, gpu_class: int, slow: float, failures: Floats,
    wide: Array, width: float, near: float, wanted: Array,
) -> None:  # fmt: skip
    """Adds to `wanted`, of the shape of `wide`, what a job wants of a class, with the second of its
    gains; a job that hardly gains anything wants it half."""
    first, end = _regions(job, wide.shape[5] - 1)
    keeps = 1.0 - job.kappa * slow if gpus > 1 else 1.0
    sure = 1.0 / (1.0 + np.exp(-min(near / (width * gpus), FADED)))
    for tier in range(job.tier + 1):
        value = gpus * limit[gpu_class] * (keeps - failures[tier] * gpus * job.lost)
        for region in range(first, end):
            if first == 0 and not job.regions >> np.uint64(region) & np.uint64(1):
                continue
            here = wide[gpu_class, tier, job.trust, job.long, gpus - 1, region]
            if here.weight > 0:
                faded = _faded(near - value + here.price, width * gpus)
                wanted[gpu_class, tier, job.trust, job.long, gpus - 1, region] += (
                    sure * here.weight * faded
                )


@njit(cache=True, nogil=True)
def _regions(job: Record, regions: int) -> tuple[int, int]:
    """Which regions to look at: all one by one, or the one that stands for all."""
    return (regions, regions + 1) if goes_anywhere(job, regions) else (0, regions)


@njit(cache=True, nogil=True)
def _room(table: Offers) -> Floats:
    """For what 0, 1, 2 … GPUs of a node of each of a kind's cells cost."""
    longest = 0
    for kind in range(len(table.exact)):
        longest = max(longest, table.start[kind + 1] - table.start[kind])
    return np.zeros((longest, table.exact.shape[1] + 1))


@njit(cache=True, nogil=True)
def _clear(offers: Array) -> None:
    for one in range(offers.shape[0]):
        for gpus in range(offers.shape[1]):
            offers[one, gpus].price, offers[one, gpus].weight = FAR, 0.0


@njit(cache=True, nogil=True, forceinline=True)
def _price(kind: int, price: Floats, table: Offers, costs: Floats) -> None:
    """Fills the first rows of `costs`, one for each cell of a kind."""
    first = table.start[kind]
    for one in range(first, table.start[kind + 1]):
        ladder, cost = price[table.cell[one]], costs[one - first]
        for gpus in range(1, table.largest[one] + 1):
            slot = 3 if gpus >= 8 else 2 if gpus >= 4 else 1 if gpus >= 2 else 0
            cost[gpus] = cost[gpus - (1 << slot)] + (1 << slot) * ladder[slot]


@njit(cache=True, nogil=True, forceinline=True)
def _gather(kind: int, price: Floats, width: float, table: Offers, costs: Floats) -> None:
    """Fills `exact` of one kind from its cells."""
    exact, first, end = table.exact[kind], table.start[kind], table.start[kind + 1]
    _price(kind, price, table, costs)
    for gpus in range(len(exact)):
        exact[gpus].price, exact[gpus].weight = FAR, 0.0
    for one in range(first, end):
        for gpus in range(1, table.largest[one] + 1):
            here = exact[gpus - 1]
            here.price = min(here.price, costs[one - first, gpus])
    for one in range(first, end):
        for gpus in range(1, table.largest[one] + 1):
            here = exact[gpus - 1]
            here.weight += _faded(costs[one - first, gpus] - here.price, width * gpus)


@njit(cache=True, nogil=True, forceinline=True)
def _widen(one: int, width: float, table: Offers, anywhere: Array) -> None:
    """Who accepts a worse trust or a shorter window accepts the better as well. `anywhere` is what
    there is in all the regions up to that of this column."""
    gpu_class, tier, region = table.column[one]
    every = table.wide.shape[5] - 1
    for trust in range(TRUSTS):
        for long in range(2):
            wide, better = table.wide[gpu_class, tier, trust, long], table.wide[gpu_class, tier]
            for gpus in range(wide.shape[0]):
                price, weight, near = FAR, 0.0, width * (gpus + 1)
                for longer in range(long, 2):
                    kind = table.kind[one, 2 * trust + longer]
                    if kind != NOWHERE:
                        price, weight = _with(price, weight, table.exact[kind, gpus], near)
                if trust > 0:
                    price, weight = _with(
                        price, weight, better[trust - 1, long, gpus, region], near
                    )
                here, there = wide[gpus, region], anywhere[2 * trust + long, gpus]
                here.price, here.weight = price, weight
                there.price, there.weight = _with(price, weight, there, near)
                wide[gpus, every].price, wide[gpus, every].weight = there.price, there.weight


@njit(cache=True, nogil=True, forceinline=True)
def _narrow(one: int, width: float, table: Offers, times: int, exact: Floats) -> None:
    """What is wanted goes back the same way, in proportion: to `exact` [kind, GPUs - 1]."""
    gpu_class, tier, region = table.column[one]
    every = table.wide.shape[5] - 1
    wide, wanted = table.wide[gpu_class, tier], table.wanted[:, gpu_class, tier]
    for trust in range(TRUSTS - 1, -1, -1):
        for long in range(2):
            for gpus in range(wide.shape[2]):
                amount, anywhere, near = 0.0, 0.0, width * (gpus + 1)
                for half in range(len(wanted)):
                    amount += wanted[half, trust, long, gpus, region]
                    anywhere += wanted[half, trust, long, gpus, every]
                    wanted[half, trust, long, gpus, region] = 0.0
                here = wide[trust, long, gpus, region]
                if anywhere > 0:
                    amount += anywhere * _share(here, wide[trust, long, gpus, every], near)
                if amount <= 0:
                    continue
                for longer in range(long, 2):
                    kind = table.kind[one, 2 * trust + longer]
                    if kind != NOWHERE:
                        share = _share(table.exact[kind, gpus], here, near)
                        exact[kind, gpus] += times * amount * share
                if trust > 0:
                    share = _share(wide[trust - 1, long, gpus, region], here, near)
                    wanted[0, trust - 1, long, gpus, region] += amount * share


@njit(cache=True, nogil=True, forceinline=True)
def _hand_out(
    kind: int, price: Floats, width: float, table: Offers, wanted: Floats, costs: Floats,
    excess: Floats,
) -> None:  # fmt: skip
    """Takes from the cells of one kind what is wanted of it."""
    exact, first = table.exact[kind], table.start[kind]
    _price(kind, price, table, costs)
    for one in range(first, table.start[kind + 1]):
        at = table.cell[one]
        for gpus in range(1, table.largest[one] + 1):
            here = exact[gpus - 1]
            if wanted[gpus - 1] > 0:
                faded = _faded(costs[one - first, gpus] - here.price, width * gpus)
                amount = wanted[gpus - 1] * faded / here.weight
                excess[at, 3] -= amount * (gpus // 8 * 8)
                for slot in range(3):
                    excess[at, slot] -= amount * (gpus & (1 << slot))


@njit(cache=True, nogil=True, forceinline=True)
def _faded(dearer: float, width: float) -> float:
    if dearer == 0.0:
        return 1.0
    return float(np.exp(-dearer / width)) if dearer < FADED * width else 0.0


@njit(cache=True, nogil=True, forceinline=True)
def _with(price: float, weight: float, other: Record, width: float) -> tuple[float, float]:
    """(price, weight) of an offer and another."""
    if other.weight == 0.0:
        return price, weight
    if other.price < price:
        return float(other.price), other.weight + weight * _faded(price - other.price, width)
    return price, weight + other.weight * _faded(other.price - price, width)


@njit(cache=True, nogil=True, forceinline=True)
def _share(part: Record, whole: Record, width: float) -> float:
    return float(part.weight * _faded(part.price - whole.price, width) / whole.weight)
