"""Who runs where, made better for as long as there is time, on two threads.

What one thread finds the other takes over where it is better (`crossing`). In small books, which get
stuck where they begin, one begins again and again, each time in another order, while the other makes
the best so far better. In others both make the same matches better, each by its own chance; of a
thousand jobs they seldom move the same.

The thread that clears looks at the time, and the one beside it stops when it is told to. Without time
each makes so many tries, where jobs are many none, and the same book gives the same matches.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from typing import Final, TypeAlias

import numpy as np

from scheduler.matching import crossing, improving
from scheduler.matching.arrays import Floats, Ints
from scheduler.matching.ascent import MANY
from scheduler.matching.desks import Desk
from scheduler.matching.gathering import Bench
from scheduler.matching.hoping import hopes
from scheduler.matching.improving import Market
from scheduler.matching.supply import Stock, priced, stock

_GUIDES: Final = (0.98, 1.0, 0.9, 0.0)
"""Whoever keeps to the prices exactly is left with nothing where they are a hair too high."""
_ROUNDS: Final = 512
"""Of ruin and recreate that each thread makes between two meetings."""
_LOOK: Final = 64
"""Of them between two looks at the time."""
_TRIES: Final = 9216
"""So many of them by both where no time is given. Of 10,000 jobs each takes as long as fifty of a
hundred jobs, and all of them bring a thousandth: where jobs are many there are none."""
_JUMBLED: Final = 0.2
"""How far a job may come forward where all begin again, as a share of all."""
_OTHER: Final = 0x9E3779B97F4A7C15
"""What tells the chances of the two threads apart."""


Climb: TypeAlias = Callable[[], tuple[Floats, Floats]]
"""To prices: those of each node [N, 4], and what each job gains by them."""


class _Time:
    """Whether any is left: one thread asks, the other is told."""

    def __init__(self, more: Callable[[], bool] | None) -> None:
        self._more, self._over = more, False

    def ask(self) -> bool:
        """Without time there is always more."""
        self._over = self._over or (self._more is not None and not self._more())
        return not self._over

    def told(self) -> bool:
        return not self._over


def small(empty: Market, climb: Climb, more: Callable[[], bool] | None) -> Market:
    """The best found of a small book of which nothing is let yet, and whose seats have no prices. While
    one thread climbs to them, the other begins by asks."""
    empty, whole, time = _hopeful(empty), _Time(None), _Time(more)
    with ThreadPoolExecutor(1) as thread:
        climbing = thread.submit(climb)
        market = _begun(empty, _coming(empty, empty.gangs["hope"]), 0.0, whole.ask)
        _improve(market, lambda: more is None or (not climbing.done() and time.ask()))
        price, gains = climbing.result()
        for shelf in (empty.sold.shelf, market.left.shelf):
            priced(empty.sold.seats, shelf, price)
        order, other = _coming(empty, gains), empty._replace(room=_apart(empty.room))
        random = np.random.Generator(np.random.PCG64(int(other.room.random[0])))
        guides, done = cycle(_GUIDES[1:] + _GUIDES[:1]), 0

        def begin(left: Callable[[], bool]) -> Future[Market]:
            return thread.submit(_begun, other, _jumbled(order, random), next(guides), left)

        found = begin(whole.told)
        market = _better(market, _begun(empty, order, _GUIDES[0], whole.ask))
        market = _better(market, found.result())
        while time.ask() and (more is not None or done < _TRIES):
            found = begin(time.told)
            _improve(market, time.ask)
            market = _better(market, found.result())
            done += 2 * _ROUNDS
    return market


def larger(market: Market, more: Callable[[], bool] | None) -> Market:
    """Made better."""
    time, done, tries = _Time(more), 0, _TRIES if len(market.gangs) < MANY else 0
    if not time.ask() or (more is None and not tries):
        return market
    market = _hopeful(market)
    twin = market._replace(
        left=Stock._make(each.copy() for each in market.left), room=_apart(market.room),
        gangs=market.gangs.copy(), parts=market.parts.copy(),
    )  # fmt: skip
    with ThreadPoolExecutor(1) as beside:
        while time.ask() and (more is not None or done < tries):
            other = beside.submit(_improve, twin, time.told)
            _improve(market, time.ask)
            other.result()
            crossing.join(market, twin)
            crossing.join(twin, market)
            done += 2 * _ROUNDS
    return market


def from_most(amounts: Floats) -> Ints:
    """The jobs, whoever has most of it first."""
    return np.argsort(-amounts, kind="stable").astype(np.int32)


def _coming(market: Market, gains: Floats) -> Ints:
    """Who would lose most by coming late, and has most to fit in, comes first."""
    return from_most(market.gangs["weight"] * gains * market.of.jobs["least"])


def looking(market: Market, jobs: Ints, guide: float) -> Market:
    """These jobs know where to look, if prices count so much."""
    sold = market.sold
    return market._replace(hoped=hopes(market.of, sold.seats, sold.kinds, np.sort(jobs), guide))


def _hopeful(market: Market) -> Market:
    """All jobs know where to look at any prices, and what they would bring, were they alone."""
    every = np.arange(len(market.gangs), dtype=np.int32)
    market = looking(market, every, 0.0)
    improving.hope(market._replace(left=stock(market.sold)), every)
    return market


def _apart(room: Desk) -> Desk:
    """Another of the same size, with its own chance."""
    work = Bench._make(each.copy() for each in room.work)
    random = np.array([int(room.random[0]) ^ _OTHER or 1], np.uint64)
    fronts = room.fronts._replace(hope=room.fronts.hope.copy())
    return Desk(room.chosen.copy(), room.trial.copy(), work, fronts, random)


def _jumbled(order: Ints, random: np.random.Generator) -> Ints:
    """Much the same order, but another."""
    late = np.arange(len(order)) + _JUMBLED * len(order) * random.random(len(order))
    return order[np.argsort(late, kind="stable")]


def _begun(empty: Market, order: Ints, guide: float, left: Callable[[], bool]) -> Market:
    """From nothing; chance goes on from where it was."""
    market = empty._replace(
        left=stock(empty.sold), gangs=empty.gangs.copy(), parts=empty.parts.copy()
    )
    improving.fill(market, order, guide, improving.LOOK)
    improving.fill(market, order, 0.0, improving.LOOK)
    _improve(market, left)
    return market


def _improve(market: Market, left: Callable[[], bool]) -> None:
    spare = improving.undo(market)
    for _ in range(_ROUNDS // _LOOK):
        improving.improve(market, _LOOK, spare)
        if not left():
            break


def _better(one: Market, other: Market) -> Market:
    """The best of both, in the room of the first."""
    best, second = sorted((one, other), key=_worth, reverse=True)
    crossing.join(best, second)
    return best._replace(room=one.room)


def _worth(market: Market) -> float:
    return math.fsum(market.gangs["weight"] * market.gangs["surplus"])
