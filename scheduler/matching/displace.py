"""Which interruptible leases should make room for which waiting job.

Apart from the round and its certificate: a round lets what is free, and this looks at what is let.
A gang leaves whole or stays. It leaves when the market gains by it, in USD per hour:

    gain = Σ GPUs · (limit · η − risk − ask)  of the job that waits, on the GPUs it would get
           − the same of each gang that leaves, as it runs now
           − what they lose since their last checkpoints / `stay_h`

Both surpluses are buyer's and supplier's together, as a round's welfare counts them, so that
prices, which only pass between the two, neither cause nor hinder a displacement. What is lost is
lost once, and nobody knows how long the newcomer stays: the loss is spread over its first
`stay_h` hours, so that a job which leaves earlier has not earned it back. Work on GPUs that become
free and that the newcomer does not need counts as lost, for nobody else is promised them.

The gain must be at least `least_gain` of the newcomer's surplus. So it is positive, doubling all money
changes nothing, and a higher limit never loses a job its room.

Room is looked for in one node, or over the nodes of one cell on one site; over several sites it is
not. Among the gangs there, those leave that lose least: an exact choice (a knapsack of at most 16
GPUs in a node). The largest gain goes first, each job gets room once and for its least number of
GPUs, and no gang leaves and no GPU is promised twice. A job that finds its place in what is free
is left to the rounds.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from marketplace.core.errors import Invalid
from scheduler.matching.arrays import Bools, Floats, Ints
from scheduler.matching.book import Book
from scheduler.matching.cells import POOL, Cells, cells
from scheduler.matching.values import Terms, terms

_NODE: Final = 0
_SITE: Final = 1


@dataclass(frozen=True)
class Rules:
    """What is published of displacement."""

    least_age_h: float = 1 / 6
    """No lease that has run for less is displaced."""
    least_gain: float = 0.10
    """The gain is at least this share of the newcomer's surplus."""
    stay_h: float = 1.0
    """What is lost is spread over so many hours of the newcomer."""


@dataclass(frozen=True, eq=False)
class Running:
    """Leases that run, a row for each node of each: one gang is all rows of its number.

    `surplus` (USD per hour) and `lost` (USD) are of the whole gang and stand in each of its rows.
    """

    gang: Ints  # [R] 0, 1, 2, …
    node: Ints  # [R] index into the book
    gpus: Ints  # [R]
    surplus: Floats  # [R] Σ GPUs · (limit · η − risk − ask) as it runs now
    lost: Floats  # [R] hours since the last committed checkpoint × GPUs × value
    age_h: Floats  # [R] hours since it began to run
    interruptible: Bools  # [R]
    price: Floats  # [R] USD per GPU-hour that it pays; a newcomer must be able to pay as much

    def __post_init__(self) -> None:
        """Raises Invalid naming the column at fault."""
        for name in ("node", "gpus", "surplus", "lost", "age_h", "interruptible", "price"):
            if len(getattr(self, name)) != len(self.gang):
                raise Invalid(f"{name} is not as long as gang", field=name)
        if (self.gpus < 1).any():
            raise Invalid("a row of a lease has at least one GPU", field="gpus")
        for name in ("surplus", "lost", "age_h", "price"):
            if not np.isfinite(getattr(self, name)).all():
                raise Invalid(f"{name} holds what is no number", field=name)
        if (self.lost < 0).any():
            raise Invalid("nobody loses less than nothing", field="lost")


@dataclass(frozen=True)
class Displacement:
    """`gangs` leave, and these GPUs are held for `job`; indexes into the book and the gangs."""

    job: int
    gangs: tuple[int, ...]
    nodes: tuple[int, ...]
    gpus: tuple[int, ...]
    """On each of the nodes; in all the job's least number."""
    gain: float
    """USD per hour."""


def displace(
    book: Book, waiting: Ints, running: Running, rules: Rules = Rules()
) -> list[Displacement]:
    """Who should leave for whom, the largest gain first.

    `book` holds the waiting jobs and every node that has something free or lets to `running`,
    `node_gpus` being what is free (0 included); `waiting` the jobs that the round left unplaced
    (`matches.level < 0`).
    """
    room = _Room(book, running, rules)
    wanted = {int(job): terms(book, room.kinds, int(job)) for job in waiting if room.pools}
    heap = [
        (-gain, job)
        for job, term in wanted.items()
        if not room.fits_now(job, term) and (gain := room.best(job, term)[0]) > 0
    ]
    heapq.heapify(heap)
    found = []
    while heap:
        _, job = heapq.heappop(heap)
        # Others have taken of the room since. A gain can only have fallen, so it is enough to
        # look again at the head of the queue.
        gain, pool = room.best(job, wanted[job])
        if gain > 0 and heap and (-gain, job) > heap[0]:
            heapq.heappush(heap, (-gain, job))
        elif gain > 0:
            found.append(room.take(job, pool, gain))
    return found


@dataclass(frozen=True, eq=False)
class _Pool:
    """GPUs that one job can have together: of one node, or of one cell on one site."""

    level: int
    cell: int
    nodes: Ints
    rows: Ints
    """Of the gangs that may leave here."""
    ask: float
    """The dearest of its nodes'."""
    price: float
    """The highest that anybody pays who may leave here."""


class _Room:
    """What may be freed, and what of it is promised by now."""

    def __init__(self, book: Book, running: Running, rules: Rules) -> None:
        self.book, self.running, self.rules = book, running, rules
        self.kinds = cells(book)
        self.free = book.node_gpus.astype(np.int64)
        # Nobody's leaving is a gain in itself, however dear their lease has become.
        self.price = np.maximum(running.surplus, 0) + running.lost / rules.stay_h
        may = running.interruptible & (running.age_h >= rules.least_age_h)
        # All rows of a gang must allow it.
        self.stays = np.isin(running.gang, running.gang[~may])
        self.pools = list(_pools(book, self.kinds, running, ~self.stays))
        self.level = np.array([pool.level for pool in self.pools], np.int64)
        self.cell = np.array([pool.cell for pool in self.pools], np.int64)
        self.node = np.array([pool.nodes[0] for pool in self.pools], np.int64)
        self.ask = np.array([pool.ask for pool in self.pools])
        self.dearer = np.array([max(0.0, pool.price - pool.ask) for pool in self.pools])
        freed = [int(running.gpus[pool.rows].sum()) for pool in self.pools]
        # [pool, k] the least that freeing k GPUs or more costs, USD per hour.
        self.cost = np.full((len(self.pools), max(freed, default=0) + 1), np.inf)
        self.has = np.zeros(len(self.pools), np.int64)
        self._count(range(len(self.pools)))

    def fits_now(self, job: int, term: Terms) -> bool:
        """Whether the job is worth something in what is free: the rounds see to it then."""
        nodes = np.flatnonzero(self.free > 0)
        cell, free = self.kinds.of_node[nodes], self.free[nodes]
        largest, there = np.zeros((2, len(self.kinds)), np.int64)
        np.maximum.at(largest, cell, free)
        np.add.at(there, cell, free)
        least = int(self.book.job_gpus_min[job])
        ask = np.full(len(self.kinds), np.inf)
        np.minimum.at(ask, cell, self.book.node_ask[nodes])
        every = np.arange(len(self.kinds))
        for level, has in ((_NODE, largest), (_SITE, there)):
            worth = self._surplus(job, term, np.full(len(every), level), every, ask)
            if ((worth > 0) & (has >= least)).any():
                return True
        return False

    def best(self, job: int, term: Terms) -> tuple[float, int]:
        """The largest gain that the job brings (0 if none is large enough), and in which pool."""
        surplus = self._surplus(job, term, self.level, self.cell, self.ask)
        missing = int(self.book.job_gpus_min[job]) - self.has
        some = (missing > 0) & (missing < self.cost.shape[1])
        cost = np.full(len(missing), np.inf)
        cost[some] = self.cost[np.flatnonzero(some), missing[some]]
        gain = surplus - cost
        # Nobody's leaving makes a supplier poorer: the newcomer can pay what was paid before.
        able = surplus >= int(self.book.job_gpus_min[job]) * self.dearer
        good = able & (surplus > 0) & (gain >= self.rules.least_gain * surplus) & (gain > 0)
        if not good.any():
            return 0.0, -1
        pool = int(np.argmax(np.where(good, gain, -np.inf)))
        return float(gain[pool]), pool

    def take(self, job: int, number: int, gain: float) -> Displacement:
        """Promises a pool's cheapest room to a job."""
        pool, running = self.pools[number], self.running
        left = int(self.book.job_gpus_min[job])
        gangs = _cheapest(self._gangs(pool), left - int(self.has[number]))
        leaving = np.isin(running.gang, gangs) & ~self.stays
        held: dict[int, int] = {}
        # What is freed comes first: what is free now may serve somebody else.
        for row in pool.rows[leaving[pool.rows]].tolist():
            part = min(int(running.gpus[row]), left)
            held[int(running.node[row])] = held.get(int(running.node[row]), 0) + part
            left -= part
        for node in pool.nodes.tolist():
            part = min(int(self.free[node]), left)
            held[node] = held.get(node, 0) + part
            left -= part
            self.free[node] -= part
        held = {node: gpus for node, gpus in held.items() if gpus}
        self.stays |= leaving
        touched = np.unique([*held, *running.node[leaving].tolist()])
        cells_touched = self.kinds.of_node[touched]
        mine = np.where(
            self.level == _NODE, np.isin(self.node, touched), np.isin(self.cell, cells_touched)
        )
        self._count(np.flatnonzero(mine).tolist())
        return Displacement(job, tuple(gangs), tuple(held), tuple(held.values()), gain)

    def _surplus(self, job: int, term: Terms, level: Ints, cell: Ints, ask: Floats) -> Floats:
        """USD per hour of the job's least gang in each place, were it free; 0 or less: no place."""
        gpus, loosest = int(self.book.job_gpus_min[job]), int(self.book.job_level[job])
        keeps = np.where(level == _NODE, term.in_node[cell] if gpus > 1 else 1.0,
                         term.in_site[cell] if gpus > 1 else 0.0)  # fmt: skip
        each = term.limit[cell] * keeps - term.risk[cell] * gpus - ask
        found: Floats = np.where(level <= loosest, gpus * each, -np.inf)
        return found

    def _count(self, which: Sequence[int]) -> None:
        """What these pools have free, and what freeing more costs."""
        for number in which:
            pool = self.pools[number]
            self.has[number] = self.free[pool.nodes].sum()
            cost = self.cost[number]
            cost[:] = np.inf
            cost[0] = 0
            for _, gpus, price in self._gangs(pool):
                np.minimum(cost, _after(cost, gpus) + price, out=cost)

    def _gangs(self, pool: _Pool) -> list[tuple[int, int, float]]:
        """(gang, its GPUs in the pool, what its leaving costs) of all that may still leave."""
        gpus: dict[int, int] = {}
        price: dict[int, float] = {}
        for row in pool.rows[~self.stays[pool.rows]].tolist():
            gang = int(self.running.gang[row])
            gpus[gang] = gpus.get(gang, 0) + int(self.running.gpus[row])
            price[gang] = float(self.price[row])
        return [(gang, gpus[gang], price[gang]) for gang in sorted(gpus)]


def _pools(book: Book, kinds: Cells, running: Running, may: Bools) -> Iterator[_Pool]:
    """Each node with somebody who may leave, and each cell of a site with such nodes."""
    rows = np.flatnonzero(may)
    where = running.node[rows]
    of_cell = kinds.of_node[where]
    for node in np.unique(where).tolist():
        cell, ask = int(kinds.of_node[node]), float(book.node_ask[node])
        here = rows[where == node]
        yield _Pool(_NODE, cell, np.array([node]), here, ask, float(running.price[here].max()))
    for cell in np.unique(of_cell[kinds.site[of_cell] != POOL]).tolist():
        nodes = np.flatnonzero(kinds.of_node == cell)
        here, ask = rows[of_cell == cell], float(book.node_ask[nodes].max())
        yield _Pool(_SITE, cell, nodes, here, ask, float(running.price[here].max()))


def _after(cost: Floats, gpus: int) -> Floats:
    """[k] the cost of the k − gpus that are then still missing, or of nothing."""
    return np.concatenate([np.full(min(gpus, len(cost)), cost[0]), cost])[: len(cost)]


def _cheapest(gangs: Sequence[tuple[int, int, float]], missing: int) -> list[int]:
    """The gangs that free so many GPUs or more at the least cost: the choice behind `_Room.cost`."""
    layers: list[Floats] = [np.array([0.0] + [np.inf] * missing)]
    for _, gpus, price in gangs:
        layers.append(np.minimum(layers[-1], _after(layers[-1], gpus) + price))
    chosen = []
    for (gang, gpus, _), before, after in zip(
        reversed(gangs), layers[-2::-1], layers[:0:-1], strict=True
    ):
        if after[missing] < before[missing]:
            chosen.append(gang)
            missing = max(0, missing - gpus)
    return sorted(chosen)
