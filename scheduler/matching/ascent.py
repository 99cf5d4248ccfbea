"""Prices by dual ascent: up where more is wanted than offered, down where less.

The bound (`scheduler.matching.alone`) is convex in the prices, and offers less wishes are its
subgradient. Moved cell by cell it would take thousands of steps, since all who wish for a kind of
GPU wish for the one cell that is cheapest just now. So each step moves a cell by the excess in the
cell itself, in all cells of its kind (class, tier, region, trust, window), and in its class, each
over what there is of it; with some momentum, at first as far as they get, and then ever less. Prices
never fall with the slot's size (pooled neighbours, as in isotonic regression), nor below the lowest
ask of the cell.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Floats, Ints
from scheduler.matching.bound import Prospects
from scheduler.matching.cells import told_apart
from scheduler.matching.halves import Halves
from scheduler.matching.lending import lent
from scheduler.matching.lists import Length, lists
from scheduler.matching.tables import Tables

STEPS: Final = 40
"""A good way, from nothing."""
_STEPS: Final = np.array([0.2, 0.04, 0.4])
"""By the excess of the cell, of its kind, of its class, as shares of the class's usual ask."""
_MOMENTUM: Final = 0.7
_LONG, _HALVES_IN = 0.375, 0.15
"""Steps stay as long for the first share of their number, and then halve in each second. To shorten
them from the first one on leaves prices that lie far off on their way."""
_LEAST_STEP: Final = 0.01
_WARMTH: Final = 0.04
"""Over how much of a class's usual ask wishes spread at first; then as steps, ever less."""
_COARSE, _EACH, MANY = 0.625, 4, 4000
"""This share of the steps asks each fourth job of a large book only: the way is long, and the same
for all."""
_PLACES, _SPOTS = 48, 48
"""How long the lists are that prices move by."""
_WARM: Final = 0.875
"""Last round's prices go on as if after this share of the steps."""
_RENEWED_AT: Final = frozenset({80, 160, 320})
"""When those lists are drawn up anew, besides at the first step and once all jobs are asked."""


class _Levels(NamedTuple):
    """Each cell's kind and class [K], and the GPUs of each cell, kind and class."""

    kind: Ints
    gpu_class: Ints
    cell_gpus: Floats
    kind_gpus: Floats
    class_gpus: Floats


class Ascent:
    """Prices on their way: `climb`, as long as there is time."""

    def __init__(self, of: Tables, start: Floats | None = None, steps: int = STEPS) -> None:
        """`start` [K, 4]: last round's prices, if there was one. `steps`: so many are meant."""
        self._of, self._steps = of, steps
        self._levels, self._unit = _levels(of), usual_ask(of)
        self._unit_of_cell = self._unit[of.cells["gpu_class"]]
        self._floor = lowest_ask(of)
        first = np.repeat(self._floor[:, None], 4, axis=1)
        self.price = first if start is None else np.maximum(start, first)
        self.best, self.bound = self.price.copy(), np.inf
        self.gains = np.zeros(len(of.jobs))
        self._moving, self._excess = np.zeros_like(self.price), np.empty_like(self.price)
        self._swept = 0 if start is None else round(_WARM * steps)
        self._renewed_at = _RENEWED_AT | {self._swept, round(_COARSE * steps)}
        self._halves = Halves(len(of.jobs))

    def climb(self, sweeps: int) -> None:
        """So many steps; `best` are the best prices met, judged by short lists."""
        for _ in range(sweeps):
            many = len(self._of.jobs) >= MANY
            each = _EACH if self._swept < round(_COARSE * self._steps) and many else 1
            if self._swept in self._renewed_at:
                length = Length(_PLACES, _SPOTS, each)
                listed = lists(self._of, self.price, self._halves, length)
                self._prospects = Prospects(self._of, listed, self._halves)
            self._step(each)
            self._swept += 1

    def _step(self, each: int) -> None:
        shorter = max(0.0, self._swept / self._steps - _LONG) / _HALVES_IN
        shrink = max(_LEAST_STEP, 0.5**shorter)
        width = _WARMTH * shrink * self._unit
        bound = self._prospects.gain(self.price, width, self._excess, each)
        if bound < self.bound and each == 1:
            self.bound = bound
            self.best[:] = self.price
            self.gains = self._prospects.gains()
        _move(
            self.price, self._moving, self._excess, self._levels,
            self._unit_of_cell, self._floor, _STEPS * shrink,
        )  # fmt: skip


def lowest_ask(of: Tables) -> Floats:
    """[K] of each cell."""
    lowest = np.full(len(of.cells), np.inf)
    np.minimum.at(lowest, of.nodes["cell"], of.nodes["ask"])
    return lowest


def _levels(of: Tables) -> _Levels:
    cells, nodes = of.cells, of.nodes
    gpus = np.maximum(np.bincount(nodes["cell"], nodes["free"], len(cells)), 1.0)
    names = ("gpu_class", "tier", "region", "trust", "long")
    _, kind = told_apart(*(cells[name] for name in names))
    gpu_class = np.ascontiguousarray(cells["gpu_class"])
    of_kind, of_class = np.bincount(kind, gpus), np.bincount(gpu_class, gpus)
    return _Levels(kind, gpu_class, gpus, of_kind.astype(float), of_class.astype(float))


def usual_ask(of: Tables) -> Floats:
    """[C] the median of each class, or what its GPUs are worth to bidders if most are free of charge;
    of one that nobody offers, 1."""
    of_node, ask = of.cells["gpu_class"][of.nodes["cell"]], of.nodes["ask"]
    usual = np.ones(of.limit.shape[1])
    for each in np.flatnonzero(np.bincount(of_node)):
        asks = ask[of_node == each]
        asks.sort()
        median = (asks[(len(asks) - 1) // 2] + asks[len(asks) // 2]) / 2
        usual[each] = median or (of.limit[:, each].max(initial=0.0) or 1.0)
    return usual


@njit(cache=True, nogil=True)
def _move(
    price: Floats, moving: Floats, excess: Floats, levels: _Levels, unit: Floats, floor: Floats,
    steps: Floats,
) -> None:  # fmt: skip
    price, moving, excess, levels = lent((price, moving, excess, levels))
    unit, floor, steps = lent((unit, floor, steps))
    kinds, classes = np.zeros(len(levels.kind_gpus)), np.zeros(len(levels.class_gpus))
    for cell in range(len(price)):
        total = 0.0
        for slot in range(4):
            # What isn't worth its lowest ask pulls nobody else down.
            if price[cell, slot] <= floor[cell] and excess[cell, slot] > 0:
                excess[cell, slot] = 0
            total += excess[cell, slot]
        kinds[levels.kind[cell]] += total
        classes[levels.gpu_class[cell]] += total
    kinds, classes = kinds / levels.kind_gpus, classes / levels.class_gpus
    for cell in range(len(price)):
        common = steps[1] * _share(kinds[levels.kind[cell]])
        common += steps[2] * _share(classes[levels.gpu_class[cell]])
        part = 1 / levels.cell_gpus[cell]
        for slot in range(4):
            own = steps[0] * _share(excess[cell, slot] * part)
            moving[cell, slot] *= _MOMENTUM
            moving[cell, slot] += (1 - _MOMENTUM) * (own + common)
            moved = price[cell, slot] - unit[cell] * moving[cell, slot]
            price[cell, slot] = max(moved, floor[cell])
        _rise(price[cell])


@njit(cache=True, nogil=True, forceinline=True)
def _share(amount: float) -> float:
    return min(max(amount, -1.0), 1.0)


@njit(cache=True, nogil=True, forceinline=True)
def _rise(ladder: Floats) -> None:
    """Makes neighbours that fall alike, at their mean."""
    for slot in range(1, 4):
        if ladder[slot] < ladder[slot - 1]:
            total, first = ladder[slot], slot
            while first > 0 and ladder[first - 1] > total / (slot - first + 1):
                first -= 1
                total += ladder[first]
            ladder[first : slot + 1] = total / (slot - first + 1)
