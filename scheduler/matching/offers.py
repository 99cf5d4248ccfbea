"""What so many GPUs of one node cost at given prices: the cheapest cells, and how many are near.

A job that could go to a hundred cells of one kind wants the cheapest, until that is a micro dearer
than the next. Prices that follow such wishes jump about. So while they are sought, wishes are
spread: a cell that costs d more than the cheapest is wanted e^(−d / w) times as much, w being a
share (`warmth`) of what such GPUs usually cost. That is the gradient of the bound with its maxima
made smooth (Nesterov, Math. Program. 2005; McFadden's logit), and exact sums over cells need no
walk over them: they add up like minima, over better trust, longer windows and regions.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.book import NODE_GPUS
from scheduler.matching.lending import lent
from scheduler.matching.tables import TIERS, TRUSTS, Tables

FAR: Final = 1e300
"""A price that nobody pays."""
FADED: Final = 16.0
"""e^-16 is nothing."""
OFFER: Final = np.dtype([("price", "f8"), ("weight", "f8"), ("wanted", "f8")], align=True)
"""The least price, Σ e^(−(price − least) / w) over cells, and by how many jobs it is wanted."""


class Offers(NamedTuple):
    """Tables [GPUs - 1, class, tier, trust, window, region] of offers. In small books few are ever
    filled; the rest stays zero and is never visited."""

    exact: Array
    """Of exactly this trust and window."""
    wide: Array
    """Of this trust or better, this window or longer; the last region stands for all."""
    column: Ints
    """[…, 4] (GPUs - 1, class, tier, region) of all that some cell fills, in order."""


def offers(of: Tables) -> Offers:
    """Room for them."""
    cells = of.cells
    regions = int(cells["region"].max(initial=0)) + 1
    most = int(min(max(cells["largest"].max(initial=1), 1), NODE_GPUS))
    shape = (most, of.limit.shape[1], TIERS, TRUSTS, 2)
    filled = np.zeros((*shape[:3], regions), bool)
    gpus, at = np.nonzero(np.arange(most)[:, None] < cells["largest"])
    filled[gpus, cells["gpu_class"][at], cells["tier"][at], cells["region"][at]] = True
    return Offers(
        np.zeros((*shape, regions), OFFER), np.zeros((*shape, regions + 1), OFFER),
        np.argwhere(filled),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def look_up(cells: Array, price: Floats, width: Floats, table: Offers) -> None:
    """Fills the tables. `width` [C]: over how much of its cost a GPU's wishes spread, USD."""
    cells, price, width, table = lent((cells, price, width, table))
    exact, wide, column = table
    for one in range(len(column)):
        gpus, gpu_class, tier, region = column[one]
        _clear(exact[gpus, gpu_class, tier], region)
        _clear(wide[gpus, gpu_class, tier], region)
        _clear(wide[gpus, gpu_class, tier], wide.shape[5] - 1)
    most = exact.shape[0]
    for at in range(len(cells)):
        cell = cells[at]
        for gpus in range(1, min(most, cell.largest) + 1):
            here = exact[gpus - 1, cell.gpu_class, cell.tier, cell.trust, cell.long, cell.region]
            here.price = min(here.price, _cost(price, at, gpus))
    for at in range(len(cells)):
        cell = cells[at]
        for gpus in range(1, min(most, cell.largest) + 1):
            here = exact[gpus - 1, cell.gpu_class, cell.tier, cell.trust, cell.long, cell.region]
            dearer = _cost(price, at, gpus) - here.price
            here.weight += _faded(dearer, width[cell.gpu_class] * gpus)
    for one in range(len(column)):
        gpus, gpu_class, tier, region = column[one]
        _widen(
            exact[gpus, gpu_class, tier], wide[gpus, gpu_class, tier], region,
            width[gpu_class] * (gpus + 1),
        )  # fmt: skip


@njit(cache=True, nogil=True)
def count_wanted(table: Offers, wanted: Floats, times: int) -> None:
    """Adds to the tables what one half of the jobs wants, so many times; `wanted` is zero again."""
    table, wanted = lent((table, wanted))
    every = wanted.shape[5] - 1
    for one in range(len(table.column)):
        gpus, gpu_class, tier, region = table.column[one]
        wide, more = table.wide[gpus, gpu_class, tier], wanted[gpus, gpu_class, tier]
        for trust in range(TRUSTS):
            for long in range(2):
                wide[trust, long, region].wanted += times * more[trust, long, region]
                wide[trust, long, every].wanted += times * more[trust, long, every]
                more[trust, long, region], more[trust, long, every] = 0.0, 0.0


@njit(cache=True, nogil=True)
def spread(cells: Array, price: Floats, width: Floats, table: Offers, excess: Floats) -> None:
    """Takes from `excess` [K, 4] what is wanted in the tables."""
    cells, price, width, table, excess = lent((cells, price, width, table, excess))
    exact, wide, column = table
    for one in range(len(column)):
        gpus, gpu_class, tier, region = column[one]
        _narrow(
            exact[gpus, gpu_class, tier], wide[gpus, gpu_class, tier], region,
            width[gpu_class] * (gpus + 1),
        )  # fmt: skip
    for at in range(len(cells)):
        cell = cells[at]
        for gpus in range(1, min(exact.shape[0], cell.largest) + 1):
            here = exact[gpus - 1, cell.gpu_class, cell.tier, cell.trust, cell.long, cell.region]
            if here.wanted > 0:
                dearer = _cost(price, at, gpus) - here.price
                faded = _faded(dearer, width[cell.gpu_class] * gpus)
                wanted = here.wanted * faded / here.weight
                excess[at, 3] -= wanted * (gpus // 8 * 8)
                for slot in range(3):
                    excess[at, slot] -= wanted * (gpus & (1 << slot))


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
        anywhere = wide[gpus - 1, gpu_class, tier, job.trust, job.long, wide.shape[5] - 1]
        if anywhere.weight == 0:
            continue
        if value - anywhere.price < max(least_gain, best) - FADED * width * gpus:
            continue
        for region in range(first, end):
            if first == 0 and not job.regions >> np.uint64(region) & np.uint64(1):
                continue
            here = wide[gpus - 1, gpu_class, tier, job.trust, job.long, region]
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
            here = wide[gpus - 1, gpu_class, tier, job.trust, job.long, region]
            if here.weight > 0:
                faded = _faded(near - value + here.price, width * gpus)
                wanted[gpus - 1, gpu_class, tier, job.trust, job.long, region] += (
                    sure * here.weight * faded
                )


@njit(cache=True, nogil=True)
def _regions(job: Record, regions: int) -> tuple[int, int]:
    """Which regions to look at: all one by one, or the one that stands for all."""
    every = np.uint64((1 << regions) - 1)
    return (regions, regions + 1) if job.regions & every == every else (0, regions)


@njit(cache=True, nogil=True)
def _clear(table: Array, region: int) -> None:
    for trust in range(TRUSTS):
        for long in range(2):
            here = table[trust, long, region]
            here.price, here.weight, here.wanted = FAR, 0.0, 0.0


@njit(cache=True, nogil=True)
def _cost(price: Floats, cell: int, gpus: int) -> float:
    cost = gpus // 8 * 8 * price[cell, 3]
    for slot in range(3):
        cost += (gpus & (1 << slot)) * price[cell, slot]
    return float(cost)


@njit(cache=True, nogil=True)
def _faded(dearer: float, width: float) -> float:
    return float(np.exp(-dearer / width)) if dearer < FADED * width else 0.0


@njit(cache=True, nogil=True)
def _widen(exact: Array, wide: Array, region: int, width: float) -> None:
    """Who accepts a worse trust or a shorter window accepts the better as well; [trust, window,
    region]."""
    every = exact.shape[2]
    for trust in range(TRUSTS):
        for long in range(2):
            here = wide[trust, long, region]
            _add(here, exact[trust, long, region], width)
            if long == 0:
                _add(here, exact[trust, 1, region], width)
            if trust > 0:
                _add(here, wide[trust - 1, long, region], width)
            _add(wide[trust, long, every], here, width)


@njit(cache=True, nogil=True)
def _narrow(exact: Array, wide: Array, region: int, width: float) -> None:
    """What is wanted goes back the same way, in proportion."""
    every = exact.shape[2]
    for trust in range(TRUSTS - 1, -1, -1):
        for long in range(2):
            anywhere, here = wide[trust, long, every], wide[trust, long, region]
            if anywhere.wanted > 0:
                here.wanted += anywhere.wanted * _share(here, anywhere, width)
            if here.wanted <= 0:
                continue
            exact[trust, long, region].wanted += here.wanted * _share(
                exact[trust, long, region], here, width
            )
            if long == 0:
                exact[trust, 1, region].wanted += here.wanted * _share(
                    exact[trust, 1, region], here, width
                )
            if trust > 0:
                wide[trust - 1, long, region].wanted += here.wanted * _share(
                    wide[trust - 1, long, region], here, width
                )


@njit(cache=True, nogil=True)
def _add(here: Record, other: Record, width: float) -> None:
    if other.weight > 0 and other.price < here.price:
        here.weight = other.weight + here.weight * _faded(here.price - other.price, width)
        here.price = other.price
    elif other.weight > 0:
        here.weight += other.weight * _faded(other.price - here.price, width)


@njit(cache=True, nogil=True)
def _share(part: Record, whole: Record, width: float) -> float:
    return float(part.weight * _faded(part.price - whole.price, width) / whole.weight)
