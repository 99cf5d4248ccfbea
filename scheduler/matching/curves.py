"""Supply and demand of a round by GPU class, coarse enough that nobody's limit or ask is in them.

The rule: prices are told in ten fixed steps to each factor of ten, and a step is told only together
with so many of its neighbours that at least five orgs are in it. So of a single ask or limit nobody
learns more than that it is one of five within a fourth of its price, whatever came before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from scheduler.matching.arrays import Bools, Floats, Ints
from scheduler.matching.book import Book

HIDE_AMONG: Final = 5
"""Orgs in each step."""
_STEPS: Final = (1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.3, 8.0)
_PRICES: Final = np.array([float(f"{step}e{power}") for power in range(-3, 6) for step in _STEPS])


class Point(NamedTuple):
    """So many GPUs stand to be let, or are wanted, at this price in USD per GPU-hour."""

    price: float
    gpus: int


@dataclass(frozen=True)
class Curve:
    """A class's supply, rising, and demand, falling: all GPUs at each price or a better one."""

    gpu_class: str
    supply: Sequence[Point]
    demand: Sequence[Point]


@dataclass(frozen=True, eq=False)
class Crowd:
    """Whose the rows of a book are, and what its classes trade as."""

    job_org: Ints  # [J]
    node_org: Ints  # [N]
    class_name: Sequence[str]  # [C]
    class_open: Bools  # [C] whether anybody may have it; what is one org's own is no supply


def curves(book: Book, crowd: Crowd) -> list[Curve]:
    """The curves of each class that anybody may have; empty where too few orgs are in it. A job
    that accepts several classes is wanted in each."""
    told = []
    for name in sorted(
        {n for n, free in zip(crowd.class_name, crowd.class_open, strict=True) if free}
    ):
        here = np.array([n == name for n in crowd.class_name]) & crowd.class_open
        nodes = np.flatnonzero(here[book.node_class] & (book.node_gpus > 0))
        limit = book.job_limit[:, here].max(axis=1)
        jobs = np.flatnonzero(limit > 0)
        told.append(
            Curve(
                name,
                _supply(book.node_ask[nodes], book.node_gpus[nodes], crowd.node_org[nodes]),
                _demand(limit[jobs], book.job_gpus_max[jobs], crowd.job_org[jobs]),
            )
        )
    return told


def _supply(ask: Floats, gpus: Ints, org: Ints) -> list[Point]:
    above = np.searchsorted(_PRICES, ask).clip(max=len(_PRICES) - 1)
    return _told(above, gpus, org)


def _demand(limit: Floats, gpus: Ints, org: Ints) -> list[Point]:
    below = (np.searchsorted(_PRICES, limit, side="right") - 1).clip(min=0)
    return _told(below, gpus, org, dearest_first=True)


def _told(step: Ints, gpus: Ints, org: Ints, *, dearest_first: bool = False) -> list[Point]:
    """Cumulated; each point the last step of a group of neighbours with enough orgs in it. Too few
    at the end belong to the group before."""
    points: list[Point] = []
    orgs: set[int] = set()
    total = 0
    for each in sorted(np.unique(step).tolist(), reverse=dearest_first):
        here = step == each
        orgs.update(org[here].tolist())
        total += int(gpus[here].sum())
        point = Point(float(_PRICES[each]), total)
        if len(orgs) >= HIDE_AMONG:
            points.append(point)
            orgs = set()
    if orgs and points:
        points[-1] = point
    return points
