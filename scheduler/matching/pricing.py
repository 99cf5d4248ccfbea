"""The ladder of each cell: one price for each slot size, the lowest that supports the trades.

Any price between the highest ask let and the lowest value (less risk) among a size's trades would
do. The lowest is best for buyers and leaves a bid nothing to say about its own price. It is

1. the highest ask let in slots of that size or smaller; raised to
2. what whoever found no room there would have paid: the value of an order that waits, and of one
   placed elsewhere its value less the surplus it has there. Else neither could be told that it
   was outbid. (Gangs over several nodes raise nothing: more often they lacked room.)
3. For a size that was not let: the lowest ask left, what the next order would pay.

Values count in whole micros, rounded down; so prices are whole micros where asks are.
"""

from typing import Final

import numpy as np
from numba import njit

from marketplace.core.money import MICRO
from scheduler.matching.arrays import Array, Bools, Floats, Ints
from scheduler.matching.book import NODE_GPUS, Book
from scheduler.matching.cells import SLOTS, Cells
from scheduler.matching.placing import LARGEST
from scheduler.matching.values import terms

_ROUNDS: Final = 20
"""Raising one price makes another cell's loser look back; this often at most."""
_AT_ONCE: Final = 200_000
"""So many pairs of a job and a cell."""


def ladders(book: Book, kinds: Cells, let: Array) -> Floats:
    """[K, 4] prices that never fall with the size, for the slots that were let (`settling.LET`)."""
    gpus = np.array(SLOTS)[let["slot"]]
    free = book.node_gpus - np.bincount(let["node"], gpus, book.nodes).astype(np.int64)
    left = cheapest(kinds.of_node, book.node_ask, free, len(kinds))
    low, high = _room(book, kinds, let)
    trades = _Let(book, kinds, let, gpus)
    wishes = _Wishes(book, kinds, trades)
    roof = np.maximum(low, whole_micros(high))
    price = low.copy()
    _raise(
        price, low, roof, np.ascontiguousarray(left), let, trades.worth, trades.size,
        wishes.gpus, wishes.job, wishes.cell, wishes.value,
    )  # fmt: skip
    following = left[:, SLOTS]
    following[:, 0] = np.where(np.isinf(following[:, 0]), left[:, 0], following[:, 0])
    return with_all_sizes(price, trades.sizes, following, roof)


def _room(book: Book, kinds: Cells, let: Array) -> tuple[Floats, Floats]:
    """[K, 4] between which prices all trades can agree: the highest ask that was let in slots of a
    size or smaller, and the lowest value in slots of it or larger."""
    high = np.full((len(kinds), len(SLOTS)), np.inf)
    np.minimum.at(high, (let["cell"], let["slot"]), let["worth"] - let["risk"])
    low = raised(np.full_like(high, -np.inf), let, book.node_ask[let["node"]])
    return low, np.minimum.accumulate(high[:, ::-1], axis=1)[:, ::-1]


def raised(price: Floats, let: Array, asks: Floats) -> Floats:
    """[K, 4] at least so much for what was let, and for all larger slots."""
    found = price.copy()
    np.maximum.at(found, (let["cell"], let["slot"]), asks)
    return np.maximum.accumulate(found, axis=1)


def with_all_sizes(price: Floats, let: Bools, following: Floats, roof: Floats | float) -> Floats:
    """[K, 4] the prices of sizes that were let, and for those that were not the next ask (infinite:
    none), which fits in below the larger ones that were."""
    larger = np.where(let, price, np.inf)
    larger = np.minimum.accumulate(larger[:, ::-1], axis=1)[:, ::-1]
    following = np.where(np.isinf(following), -np.inf, following)
    spare = np.minimum(np.maximum(price, np.minimum(roof, following)), larger)
    return np.maximum.accumulate(np.where(let, price, spare), axis=1)


class _Let:
    """What was let: each slot with its job, cell and size."""

    def __init__(self, book: Book, kinds: Cells, let: Array, gpus: Ints) -> None:
        self.job, self.cell, self.slot, self.gpus = let["job"], let["cell"], let["slot"], gpus
        self.sizes = np.zeros((len(kinds), len(SLOTS)), bool)
        self.sizes[self.cell, self.slot] = True
        self.traded: Bools = np.any(self.sizes, axis=1)
        self.size = np.bincount(self.job, gpus, book.jobs).astype(np.int64)
        worth = gpus * (let["worth"] - let["risk"])
        self.worth = np.bincount(self.job, worth, book.jobs).astype(np.float64)


class _Wishes:
    """Each traded cell in which a job would have had its place alone: its GPUs and their value."""

    def __init__(self, book: Book, kinds: Cells, trades: _Let) -> None:
        at_first = cheapest(
            kinds.of_node, book.node_ask, book.node_gpus.astype(np.int64), len(kinds)
        )
        self.gpus: Ints = np.where(trades.size > 0, trades.size, book.job_gpus_min)
        jobs = np.flatnonzero(self.gpus <= NODE_GPUS)
        # Few jobs may meet thousands of cells: not all of them at once.
        parts = max(1, len(jobs) * len(kinds) // _AT_ONCE)
        found = [
            self._of(book, kinds, some, trades.traded, at_first.T)
            for some in np.array_split(jobs, parts)
        ]
        self.job, self.cell, self.value = (
            np.concatenate(column) for column in zip(*found, strict=True)
        )

    def _of(
        self, book: Book, kinds: Cells, jobs: Ints, traded: Bools, at_first: Floats
    ) -> tuple[Ints, Ints, Floats]:
        """(job, cell, value) of some jobs' wishes; `at_first` [17, K]."""
        term, gpus = terms(book, kinds, jobs), self.gpus[jobs, None]
        value = term.limit * np.where(gpus > 1, term.in_node, 1.0) - term.risk * gpus
        fits = at_first[gpus[:, 0]] <= value
        number, cell = np.nonzero(traded & fits & (term.limit > 0))
        return jobs[number], cell, value[number, cell]


@njit(cache=True, nogil=True)
def _raise(
    price: Floats, low: Floats, roof: Floats, left: Floats, let: Array, worth: Floats, size: Ints,
    gpus: Ints, job: Ints, cell: Ints, value: Floats,
) -> None:  # fmt: skip
    """Raises `price` [K, 4] from `low` to the most that somebody would have paid who finds no room at
    that price, `roof` at most. `worth` and `size` [J] are those of the trades, `gpus` [J] what each
    job wishes; `job`, `cell` and `value` are the wishes."""
    surplus, highest = np.empty(len(worth)), np.empty_like(price)
    for _ in range(_ROUNDS):
        surplus[:] = 0
        for row in let:
            surplus[row.job] += SLOTS[row.slot] * price[row.cell, row.slot]
        for at in range(len(worth)):
            surplus[at] = (worth[at] - surplus[at]) / max(size[at], 1)
        highest[:] = -np.inf
        for one in range(len(job)):
            would_pay, slot = value[one] - surplus[job[one]], LARGEST[gpus[job[one]]]
            if would_pay < left[cell[one], gpus[job[one]]]:
                highest[cell[one], slot] = max(highest[cell[one], slot], would_pay)
        same = True
        for at in range(len(price)):
            wanted = -np.inf
            for slot in range(price.shape[1]):
                wanted = max(wanted, np.floor(highest[at, slot] * MICRO) / MICRO)
                higher = max(low[at, slot], min(roof[at, slot], wanted))
                same &= higher == price[at, slot]
                price[at, slot] = higher
        if same:
            break


def cheapest(cell: Ints, ask: Floats, free: Ints, cells: int) -> Floats:
    """[K, 17] the lowest ask of a cell's nodes with so many GPUs free; infinite where there is
    none. `cell`, `ask` and `free` are the nodes'."""
    asks = np.full((cells, NODE_GPUS + 1), np.inf)
    np.minimum.at(asks, (cell, free), ask)
    return np.minimum.accumulate(asks[:, ::-1], axis=1)[:, ::-1]


def whole_micros(amounts: Floats) -> Floats:
    """Rounded down."""
    return np.floor(amounts * MICRO) / MICRO
