"""Who runs where, made better for as long as there is time, on two threads.

What one thread finds the other takes over where it is better (`crossing`). Small books get stuck where
they begin, and to begin costs no more than ten rounds of ruin. So one begins again and again, with the
best of eight other orders, while the other makes the best so far better. In others both make the same
matches better, each by its own chance; of a thousand jobs they seldom move the same.

The thread that clears looks at the time, and the one beside it stops when it is told to. Without time
each makes so many tries, where jobs are many none, and the same book gives the same matches.
"""

import math
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import numpy as np

from scheduler.matching import crossing, improving
from scheduler.matching.arrays import Floats, Ints
from scheduler.matching.ascent import MANY
from scheduler.matching.desks import Desk
from scheduler.matching.gathering import Bench
from scheduler.matching.hoping import Now, hopes
from scheduler.matching.ruining import Market
from scheduler.matching.supply import Stock, priced, stock

_GUIDES: Final = (0.98, 1.0, 0.9, 0.0) * 2
"""Of the orders of which one is kept. Whoever keeps to the prices exactly is left with nothing where they
are a hair too high."""
_AFTER: Final = 128
"""Rounds of ruin and recreate for what has just begun: most falls into place by then."""
_ROUNDS: Final = 512
"""Of ruin and recreate that each thread makes between two meetings."""
_AHEAD: Final = 2
"""So many beginnings are asked of the other thread at a time: it waits for nobody."""
_LOOK: Final = 64
"""Of them between two looks at the time; of a small book, where they take less, twice as many."""
_TRIES: Final = 9216
"""So many of them by both where no time is given. Of 10,000 jobs each takes as long as fifty of a
hundred jobs, and all of them bring a thousandth: where jobs are many there are none."""
_IDLE: Final = 0.002
"""It is worth moving if idle GPUs would earn at least so much of what all bring, at the guiding prices."""
_HEAT: Final = 0.003
"""How much a round may lose, as a share of what a job brings, both in the mean: so it gets over what is
in the way. Of ten times as much little is found again."""
_JUMBLED: Final = 0.5
"""How far a job may come forward where all begin again, as a share of all."""
_OTHER: Final = 0x9E3779B97F4A7C15
"""What tells the chances of the two threads apart."""


Climbed: TypeAlias = tuple[Floats, Floats]
"""The prices of each node [N, 4], and what each job gains by them."""


class _Time:
    """Whether any is left: one thread asks, the other is told."""

    def __init__(self, more: Callable[[], bool] | None) -> None:
        self._more, self._over = more, False

    def ask(self) -> bool:
        """Without time there is always more."""
        self._over = self._over or (self._more is not None and not self._more())
        return not self._over

    @property
    def given(self) -> bool:
        return self._more is not None

    def told(self) -> bool:
        return not self._over


def small(
    empty: Market, thread: Executor, climbing: Future[Climbed], more: Callable[[], bool] | None
) -> Market:
    """The best found of a small book of which nothing is let yet, and whose seats have no prices. While
    one thread climbs to them, we begin by asks. It may still be busy with what is no longer wanted when
    the time is over."""
    empty, time = _hopeful(empty), _Time(more)
    beside, done, begun = _AFTER + len(empty.gangs), 0, 0
    market = _copy(empty, empty.room)
    improving.fill(market, _coming(empty, empty.gangs["hope"]), 0.0, improving.LOOK)
    _while(climbing, market, 2 * _ROUNDS, time)
    price, gains = climbing.result()
    for shelf in (empty.sold.shelf, market.left.shelf):
        priced(empty.sold.seats, shelf, price)
    begin, room = _Beginnings(empty, gains).begin, _apart(empty.room)
    ahead: deque[Future[Market]] = deque()
    spares = [_copy(empty, room) for _ in range(_AHEAD)]
    while not done or (time.ask() and (time.given or done < _TRIES)):
        # The first time whole, however little time there is.
        turn = time if done else _Time(None)
        while spares and (not begun or time.given or 2 * beside * begun < _TRIES):
            ahead.append(thread.submit(begin, spares.pop(), (time if begun else turn).told))
            begun += 1
        _while(ahead[0], market, beside, turn)
        if done and not time.told() and not ahead[0].done():
            break
        market, spare = _joined(market, ahead.popleft().result())
        spares.append(spare)
        done += 2 * beside
    for beginning in ahead:
        beginning.cancel()
    return market


def larger(market: Market, more: Callable[[], bool] | None) -> Market:
    """Made better."""
    time, done, tries = _Time(more), 0, _TRIES if len(market.gangs) < MANY else 0
    if not time.ask() or (more is None and not tries):
        return market
    market = _hopeful(market)
    twin = _copy(market, _apart(market.room))
    with ThreadPoolExecutor(1) as beside:
        while time.ask() and (more is not None or done < tries):
            other = beside.submit(_improve, twin, _ROUNDS, time.told)
            _improve(market, _ROUNDS, time.ask)
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
    return market._replace(hoped=hopes(market.of, market.sold, np.sort(jobs), guide))


def moved(market: Market, order: Ints) -> None:
    """In this order, whoever runs on one node moves to where it gains more by asks, if cheap nodes stand
    idle: those who chose by prices took any of the many places that cost alike by them, and where
    prices are somewhat too high, dear ones."""
    seats, gangs = market.sold.seats, market.gangs
    earned = market.left.free * np.maximum(seats["price"][:, 0] - seats["ask"], 0.0)
    if earned.sum() <= _IDLE * gangs["surplus"].sum():
        return
    order = order[gangs["parts"][order] == 1]
    now = Now(market.left.free, gangs["surplus"].copy())
    hoped = hopes(market.of, market.sold, np.sort(order), now=now)
    improving.move(market._replace(hoped=hoped), order)


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


def _copy(market: Market, room: Desk) -> Market:
    """The same matches, which may come to differ."""
    left = Stock._make(each.copy() for each in market.left)
    return market._replace(
        left=left, room=room, gangs=market.gangs.copy(), parts=market.parts.copy()
    )


class _Beginnings:
    """Ever other matches of a small book, each from nothing."""

    def __init__(self, empty: Market, gains: Floats) -> None:
        self._whole, self._order = stock(empty.sold), _coming(empty, gains)
        self._random = np.random.Generator(np.random.PCG64(int(empty.room.random[0])))

    def begin(self, market: Market, left: Callable[[], bool]) -> Market:
        """The best of some, a little better; in the place of `market`, which stays where there is no
        time."""
        if not left():
            return market
        count = len(self._order)
        early = _JUMBLED * count * self._random.random((len(_GUIDES), count))
        late = np.arange(count) + early
        orders = self._order[np.argsort(late, axis=1, kind="stable")]
        improving.begin(market, self._whole, orders, np.array(_GUIDES))
        _improve(market, _AFTER, left, 2 * _LOOK)
        return market


def _while(other: Future[Any], market: Market, tries: int, time: _Time) -> None:
    """Makes it better while the other thread is busy; so often, if no time is given."""
    if time.given:
        _improve(market, sys.maxsize, lambda: not other.done() and time.ask(), 2 * _LOOK)
    else:
        _improve(market, tries, time.ask, tries)


def _improve(market: Market, tries: int, left: Callable[[], bool], look: int = _LOOK) -> None:
    """So many rounds, with a look at the time after each `look` of them."""
    spare, done, jobs = improving.undo(market), 0, len(market.gangs)
    # Where jobs are many, the best is dear to note and time ends long before anything is in the way.
    heat = _HEAT * _worth(market) / jobs if jobs < MANY else 0.0
    while done < tries and left():
        some = min(look, tries - done)
        improving.improve(market, some, spare, heat)
        done += some
    improving.return_to_best(market, spare)


def _joined(one: Market, other: Market) -> tuple[Market, Market]:
    """The best of both, and the other; each thread keeps its room."""
    best, second = sorted((one, other), key=_worth, reverse=True)
    crossing.join(best, second)
    return best._replace(room=one.room), second._replace(room=other.room)


def _worth(market: Market) -> float:
    return math.fsum(market.gangs["weight"] * market.gangs["surplus"])
