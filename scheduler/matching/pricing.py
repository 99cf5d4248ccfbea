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

from collections.abc import Mapping
from typing import Final

import numpy as np

from marketplace.core.money import MICRO
from scheduler.matching.arrays import Bools, Floats, Ints
from scheduler.matching.book import NODE_GPUS, Book
from scheduler.matching.cells import SLOTS, Cells, slots
from scheduler.matching.placing import LARGEST, Gang, Stand
from scheduler.matching.values import terms

_ROUNDS: Final = 20
"""Raising one price makes another cell's loser look back; this often at most."""


def ladders(book: Book, kinds: Cells, stand: Stand, gangs: Mapping[int, Gang]) -> Floats:
    """[K, 4] prices that never fall with the size, within the room that the trades left."""
    left = cheapest(kinds.of_node, book.node_ask, stand.free, len(kinds))
    let = _Let(book, kinds, gangs)
    wishes = _Wishes(book, kinds, gangs, let.traded)
    roof = np.maximum(stand.low, whole_micros(stand.high))
    price = stand.low
    for _ in range(_ROUNDS):
        wanted = wishes.prices(let.surplus(price), left)
        raised = np.maximum(stand.low, np.minimum(roof, wanted))
        if np.array_equal(raised, price):
            break
        price = raised
    following = left[:, SLOTS]
    following[:, 0] = np.where(np.isinf(following[:, 0]), left[:, 0], following[:, 0])
    return with_all_sizes(price, let.sizes, following, roof)


def narrow(kinds: Cells, stand: Stand, gang: Gang) -> None:
    """Takes the GPUs, and narrows the room for prices to what these trades agree with."""
    cell = kinds.of_node[gang.nodes]
    ask = stand.ask[gang.nodes]
    stand.free[gang.nodes] -= gang.gpus
    for slot, size in enumerate(SLOTS):
        used = gang.gpus >= size if size == SLOTS[-1] else gang.gpus & size > 0
        for larger in range(slot, len(SLOTS)):
            np.maximum.at(stand.low[:, larger], cell[used], ask[used])
        for smaller in range(slot + 1):
            np.minimum.at(stand.high[:, smaller], cell[used], gang.value[used])


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

    def __init__(self, book: Book, kinds: Cells, gangs: Mapping[int, Gang]) -> None:
        rows = [
            (job, int(kinds.of_node[node]), SLOTS.index(size))
            for job, gang in gangs.items()
            for node, gpus in zip(gang.nodes, gang.gpus, strict=True)
            for size in slots(int(gpus))
        ]
        self.job, self.cell, self.slot = np.array(rows, np.int64).reshape(-1, 3).T
        self.sizes = np.zeros((len(kinds), len(SLOTS)), bool)
        self.sizes[self.cell, self.slot] = True
        self.traded: Bools = np.isin(np.arange(len(kinds)), self.cell)
        self.gpus = np.array(SLOTS)[self.slot]
        self.worth = np.zeros(book.jobs)
        for job, gang in gangs.items():
            self.worth[job] = (gang.gpus * gang.value).sum()

    def surplus(self, price: Floats) -> Floats:
        """[J] per GPU, at these prices; 0 for a job that waits."""
        size = np.bincount(self.job, self.gpus, len(self.worth))
        pays = np.bincount(self.job, self.gpus * price[self.cell, self.slot], len(self.worth))
        return (self.worth - pays) / np.maximum(size, 1)


class _Wishes:
    """Each traded cell in which a job would have had its place alone: its GPUs and their value."""

    def __init__(self, book: Book, kinds: Cells, gangs: Mapping[int, Gang], traded: Bools) -> None:
        at_first = cheapest(
            kinds.of_node, book.node_ask, book.node_gpus.astype(np.int64), len(kinds)
        )
        jobs, cells, values = [], [], []
        self.gpus: Ints = book.job_gpus_min.astype(np.int64)
        self.gpus[list(gangs)] = [gang.gpus.sum() for gang in gangs.values()]
        for job in np.flatnonzero(self.gpus <= NODE_GPUS).tolist():
            term, gpus = terms(book, kinds, job), self.gpus[job]
            value = term.limit * (term.in_node if gpus > 1 else 1.0) - term.risk * gpus
            here = np.flatnonzero(traded & (at_first[:, gpus] <= value) & (term.limit > 0))
            jobs.append(np.full(len(here), job))
            cells.append(here)
            values.append(value[here])
        self.job = np.concatenate([*jobs, np.zeros(0, np.int64)])
        self.cell = np.concatenate([*cells, np.zeros(0, np.int64)])
        self.value = np.concatenate([*values, np.zeros(0)])

    def prices(self, surplus: Floats, left: Floats) -> Floats:
        """[K, 4] the most that somebody would have paid who finds no room at that price."""
        would_pay = self.value - surplus[self.job]
        gpus = self.gpus[self.job]
        kept_out = would_pay < left[self.cell, gpus]
        where = self.cell[kept_out], LARGEST[gpus[kept_out]]
        highest = np.full((len(left), len(SLOTS)), -np.inf)
        np.maximum.at(highest, where, would_pay[kept_out])
        return np.maximum.accumulate(whole_micros(highest), axis=1)


def cheapest(cell: Ints, ask: Floats, free: Ints, cells: int) -> Floats:
    """[K, 17] the lowest ask of a cell's nodes with so many GPUs free; infinite where there is
    none. `cell`, `ask` and `free` are the nodes'."""
    asks = np.full((cells, NODE_GPUS + 1), np.inf)
    np.minimum.at(asks, (cell, free), ask)
    return np.minimum.accumulate(asks[:, ::-1], axis=1)[:, ::-1]


def whole_micros(amounts: Floats) -> Floats:
    """Rounded down."""
    return np.floor(amounts * MICRO) / MICRO
