"""From which limit on a job would have a place: among what is free, at what it costs to take it.

A place costs max(ask, the cell's price) for each GPU, and is worth limit · η − risk to the job. As
risk is a share of the limit, each node needs a least limit, and a gang the highest of its nodes'. So
one search answers for every class at once, whatever the job's own limits are.

Gangs over several sites are left out: whoever accepts those accepts closer ones as well.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from marketplace.core.money import MICRO
from scheduler.matching.arrays import Bools, Floats, Ints
from scheduler.matching.book import NODE_GPUS, Book
from scheduler.matching.cells import SLOTS, slots
from scheduler.matching.placing import LARGEST, NODE, SITE

_CUTS: Final = np.array(
    [[size * slots(gpus).count(size) for size in SLOTS] for gpus in range(NODE_GPUS + 1)]
)
"""[17, 4] how many of so many GPUs of a node are let in slots of each size."""


@dataclass(frozen=True, eq=False)
class Stock:
    """Nodes [N] with something free, as a job sees them: cheap to look through many times."""

    node: Ints  # index in the book
    gpu_class: Ints
    place: Ints  # class and site, as one number
    region: Ints
    trust: Ints
    tier: Ints
    long: Ints
    free: Ints
    price: Floats  # [N, 4] max(ask, the cell's price) for slots of 1, 2, 4 and 8
    slow_node: Floats  # share of its communication time that a gang loses in the node
    slow_site: Floats  # and over the site's network
    failures: Floats  # per GPU-hour


class Asked(NamedTuple):
    """What a job asks for, but for its limits and where it may run."""

    gpus: int
    level: int
    kappa: float
    hours_lost: float


@dataclass(frozen=True, eq=False)
class Way:
    """The place of a class that needs the least limit there."""

    gpu_class: int
    limit: float
    """USD per GPU-hour, in micros, that are just enough."""
    level: int
    gpus: int
    hourly: float
    """What it costs to take, USD per hour."""
    keeps: float
    """η."""
    nodes: tuple[int, ...]
    """Indexes into the book."""


def stock(book: Book, free: Ints, ladder: Floats) -> Stock:
    """`free` [N] is left of each node, `ladder` [N, 4] its cell's price."""
    at = np.flatnonzero(free > 0)
    at = at[np.argsort(book.node_class[at], kind="stable")]
    gpu_class, site = book.node_class[at].astype(np.int64), book.node_site[at].astype(np.int64)
    params = book.params
    return Stock(
        node=at,
        gpu_class=gpu_class,
        place=gpu_class * len(book.site_region) + site,
        region=book.site_region[site].astype(np.uint64),
        trust=book.site_trust[site],
        tier=book.node_tier[at],
        long=book.node_long[at],
        free=free[at].astype(np.int64),
        price=np.maximum(book.node_ask[at, None], ladder[at]),
        slow_node=np.where(book.class_nvlink[gpu_class] == 1, 0.0, params.penalty_node_pcie),
        slow_site=np.array(params.penalty_site)[book.site_net[site]],
        failures=np.array(params.failures_per_gpu_hour)[book.node_tier[at]],
    )


def most_together(of: Stock, fits: Bools, level: int) -> int:
    """How many GPUs of one class are free at most in one node, or, if a job accepts that, on one
    site."""
    if not fits.any():
        return 0
    if level == NODE:
        return int(of.free[fits].max())
    return int(np.bincount(of.place[fits], of.free[fits]).max())


def ways(of: Stock, asked: Asked, fits: Bools) -> dict[int, Way]:
    """By class: where so many GPUs are to be had for the least limit, among nodes that `fits`."""
    at = np.flatnonzero(fits)
    found = _in_one_node(of, asked, at)
    if asked.gpus > 1 and asked.level >= SITE:
        for gpu_class, way in _on_one_site(of, asked, at).items():
            if gpu_class not in found or way.limit < found[gpu_class].limit:
                found[gpu_class] = way
    return found


def _in_one_node(of: Stock, asked: Asked, at: Ints) -> dict[int, Way]:
    gpus = asked.gpus
    if gpus > NODE_GPUS:
        return {}
    at = at[of.free[at] >= gpus]
    eta = 1 - asked.kappa * of.slow_node[at] if gpus > 1 else np.ones(len(at))
    worth = eta - of.failures[at] * gpus * asked.hours_lost
    at, eta, worth = at[worth > 0], eta[worth > 0], worth[worth > 0]
    cost = of.price[at] @ _CUTS[gpus] / gpus
    need = cost / worth
    found = {}
    for begin, end in _runs(of.gpu_class[at]):
        one = begin + int(need[begin:end].argmin())
        gpu_class = int(of.gpu_class[at[one]])
        found[gpu_class] = Way(
            gpu_class, enough(need[one]), NODE, gpus, float(cost[one] * gpus), float(eta[one]),
            (int(of.node[at[one]]),),
        )  # fmt: skip
    return found


def _on_one_site(of: Stock, asked: Asked, at: Ints) -> dict[int, Way]:
    gpus = asked.gpus
    at = at[np.bincount(of.place[at], of.free[at])[of.place[at]] >= gpus] if len(at) else at
    eta = 1 - asked.kappa * of.slow_site[at]
    worth = eta - of.failures[at] * gpus * asked.hours_lost
    at, eta, worth = at[worth > 0], eta[worth > 0], worth[worth > 0]
    if not len(at):
        return {}
    # No share of a node costs more than its largest slot; what it costs exactly, once it is known.
    most = of.price[at, LARGEST[np.minimum(of.free[at], gpus).clip(max=NODE_GPUS)]] / worth
    order = np.lexsort((most, of.place[at]))
    at, eta, worth = at[order], eta[order], worth[order]
    first = np.flatnonzero(np.diff(of.place[at], prepend=-1))
    run = np.repeat(np.arange(len(first)), np.diff(first, append=len(at)))
    before = np.cumsum(of.free[at]) - of.free[at]
    before -= before[first][run]
    share = np.clip(gpus - before, 0, of.free[at])
    cost = (of.price[at] * _CUTS[share]).sum(axis=1)
    need = np.maximum.reduceat(cost / np.maximum(share, 1) / worth, first)
    # The first node alone is no gang over several.
    good = (np.add.reduceat(share, first) == gpus) & (share[first] < gpus)
    hourly, need, first = np.add.reduceat(cost, first)[good], need[good], first[good]
    found: dict[int, Way] = {}
    for begin, end in _runs(of.gpu_class[at[first]]):
        one = begin + int(need[begin:end].argmin())
        gpu_class = int(of.gpu_class[at[first[one]]])
        used = at[(of.place[at] == of.place[at[first[one]]]) & (share > 0)]
        found[gpu_class] = Way(
            gpu_class, enough(need[one]), SITE, gpus, float(hourly[one]), float(eta[first[one]]),
            tuple(of.node[used].tolist()),
        )  # fmt: skip
    return found


def _runs(numbers: Ints) -> list[tuple[int, int]]:
    """Where each run of equal numbers begins and ends. A stock is sorted by class, so its classes
    are runs."""
    first = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
    return list(zip(first, [*first[1:], len(numbers)], strict=True)) if first else []


def enough(need: float) -> float:
    """The least limit in whole micros that is worth more than a place that needs this much."""
    # A price in whole micros may lie a hair below them as a float.
    return float((np.floor(need * MICRO + 1e-6) + 1) / MICRO)
