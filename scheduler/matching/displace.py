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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from marketplace.core.errors import Invalid
from scheduler.matching.arrays import Array, Bools, Floats, Ints
from scheduler.matching.book import Book
from scheduler.matching.cells import POOL, Cells, cells
from scheduler.matching.placing import NODE, SITE
from scheduler.matching.values import Terms, terms


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
    if not len(room.pools):
        return []
    wanted = {int(job): terms(book, room.kinds, int(job)) for job in waiting}
    standing = room.standing()
    heap = []
    for job, term in wanted.items():
        gain, pool = room.best(job, term)
        if gain > 0 and not room.fits_now(job, term, standing):
            heap.append((-gain, job, pool, 0))
    heapq.heapify(heap)
    found: list[Displacement] = []
    while heap:
        less, job, pool, seen = heapq.heappop(heap)
        # Others have taken of the room since. A gain can only have fallen, so what has not is still
        # the job's best, and it is enough to look again at the head of the queue.
        if room.changed[pool] > seen:
            gain, pool = room.best(job, wanted[job])
            if gain > 0:
                heapq.heappush(heap, (-gain, job, pool, len(found)))
        else:
            found.append(room.take(job, pool, -less))
    return found


@dataclass(frozen=True, eq=False)
class _Pools:
    """GPUs that one job can have together [P]: of one node, or of one cell on one site."""

    level: Ints
    cell: Ints
    rows: Ints
    """Of the gangs that may leave, pool after pool, in each by gang."""
    rows_from: Ints  # [P + 1] where each pool's begin
    nodes: Ints
    nodes_from: Ints  # [P + 1]

    def __len__(self) -> int:
        return len(self.level)

    def rows_of(self, pool: int) -> Ints:
        return self.rows[self.rows_from[pool] : self.rows_from[pool + 1]]

    def nodes_of(self, pool: int) -> Ints:
        return self.nodes[self.nodes_from[pool] : self.nodes_from[pool + 1]]

    def most(self, of_rows: Array) -> Array:
        """[P] the highest of something of the rows."""
        found: Array = np.maximum.reduceat(of_rows[self.rows], self.rows_from[:-1])
        return found


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
        self.pools = pools = _pools(self.kinds, running, ~self.stays)
        if not len(pools):
            return
        first, numbers, on_node = pools.nodes_from[:-1], np.arange(len(pools)), pools.level == NODE
        # The pool of each node and of each cell; −1: none.
        self.of_node, self.of_cell = np.full(book.nodes, -1), np.full(len(self.kinds), -1)
        self.of_node[pools.nodes[first[on_node]]] = numbers[on_node]
        self.of_cell[pools.cell[~on_node]] = numbers[~on_node]
        by_gang, bounds = (
            np.argsort(running.gang, kind="stable"),
            np.cumsum(np.bincount(running.gang)),
        )
        self.rows_of = np.split(by_gang, bounds[:-1])
        # Of a cell, the dearest of its nodes.
        self.ask = np.maximum.reduceat(book.node_ask[pools.nodes], first)
        self.dearer = np.maximum(pools.most(running.price) - self.ask, 0.0)
        freed = np.add.reduceat(running.gpus[pools.rows], pools.rows_from[:-1])
        # [pool, k] the least that freeing k GPUs or more costs, USD per hour.
        self.cost = np.full((len(pools), int(freed.max()) + 1), np.inf)
        self.has = np.zeros(len(pools), np.int64)
        self.takes, self.changed = 0, np.zeros(len(pools), np.int64)
        """How often room was taken, and at which time last of each pool."""
        self._count(np.arange(len(pools)))

    def standing(self) -> tuple[Ints, Ints, Floats]:
        """[K] the most GPUs that a node of each cell has free, all that its nodes have, and the
        lowest ask among these."""
        nodes = np.flatnonzero(self.free > 0)
        cell, free = self.kinds.of_node[nodes], self.free[nodes]
        largest, there = np.zeros((2, len(self.kinds)), np.int64)
        np.maximum.at(largest, cell, free)
        np.add.at(there, cell, free)
        ask = np.full(len(self.kinds), np.inf)
        np.minimum.at(ask, cell, self.book.node_ask[nodes])
        return largest, there, ask

    def fits_now(self, job: int, term: Terms, standing: tuple[Ints, Ints, Floats]) -> bool:
        """Whether the job is worth something in what is free: the rounds see to it then."""
        largest, there, ask = standing
        return bool(_fits(*self._wish(job, term), largest, there, ask))

    def best(self, job: int, term: Terms) -> tuple[float, int]:
        """The largest gain that the job brings (0 if none is large enough), and in which pool."""
        pools = self.pools
        gain, pool = _best(
            *self._wish(job, term), pools.level, pools.cell, self.ask, self.dearer, self.has,
            self.cost, self.rules.least_gain,
        )  # fmt: skip
        return float(gain), int(pool)

    def _wish(self, job: int, term: Terms) -> tuple[int, int, Floats, Floats, Floats, Floats]:
        """What of a job the loops take."""
        least, loosest = int(self.book.job_gpus_min[job]), int(self.book.job_level[job])
        return least, loosest, term.limit, term.risk, term.in_node, term.in_site

    def take(self, job: int, number: int, gain: float) -> Displacement:
        """Promises a pool's cheapest room to a job."""
        rows, running = self.pools.rows_of(number), self.running
        left = int(self.book.job_gpus_min[job])
        gangs = _cheapest(self._gangs(rows), left - int(self.has[number]))
        held: dict[int, int] = {}
        # What is freed comes first: what is free now may serve somebody else.
        for row in rows[np.isin(running.gang[rows], gangs)].tolist():
            part = min(int(running.gpus[row]), left)
            held[int(running.node[row])] = held.get(int(running.node[row]), 0) + part
            left -= part
        for node in self.pools.nodes_of(number).tolist():
            part = min(int(self.free[node]), left)
            held[node] = held.get(node, 0) + part
            left -= part
            self.free[node] -= part
        held = {node: gpus for node, gpus in held.items() if gpus}
        leaving = np.concatenate([self.rows_of[gang] for gang in gangs])
        self.stays[leaving] = True
        self._touch(np.unique([*held, *running.node[leaving].tolist()]))
        return Displacement(job, tuple(gangs), tuple(held), tuple(held.values()), gain)

    def _touch(self, nodes: Ints) -> None:
        """Something of these has been taken."""
        both = np.concatenate([self.of_node[nodes], self.of_cell[self.kinds.of_node[nodes]]])
        pools = np.unique(both[both >= 0])
        self.takes += 1
        self.changed[pools] = self.takes
        self._count(pools)

    def _count(self, which: Ints) -> None:
        """What these pools have free, and what freeing more costs."""
        pools, running = self.pools, self.running
        _costs(
            which, pools.rows, pools.rows_from, pools.nodes, pools.nodes_from, self.free,
            self.stays, running.gang, running.gpus, self.price, self.has, self.cost,
        )  # fmt: skip

    def _gangs(self, rows: Ints) -> list[tuple[int, int, float]]:
        """(gang, its GPUs in these rows, what its leaving costs) of all that may still leave."""
        gpus: dict[int, int] = {}
        price: dict[int, float] = {}
        for row in rows[~self.stays[rows]].tolist():
            gang = int(self.running.gang[row])
            gpus[gang] = gpus.get(gang, 0) + int(self.running.gpus[row])
            price[gang] = float(self.price[row])
        return [(gang, gpus[gang], price[gang]) for gang in sorted(gpus)]


def _pools(kinds: Cells, running: Running, may: Bools) -> _Pools:
    """Each node with somebody who may leave, and each cell of a site with such nodes."""
    rows = np.flatnonzero(may)
    of_cell = kinds.of_node[running.node[rows]]
    on_site = rows[kinds.site[of_cell] != POOL]
    node, by_node, node_from = _grouped(running.node[rows], running.gang[rows], rows)
    where = kinds.of_node[running.node[on_site]]
    cell, by_cell, cell_from = _grouped(where, running.gang[on_site], on_site)
    there = np.flatnonzero(np.isin(kinds.of_node, cell))
    _, nodes, nodes_from = _grouped(kinds.of_node[there], there, there)
    return _Pools(
        level=np.repeat([NODE, SITE], [len(node), len(cell)]),
        cell=np.concatenate([kinds.of_node[node], cell]),
        rows=np.concatenate([by_node, by_cell]),
        rows_from=np.concatenate([node_from, len(by_node) + cell_from[1:]]),
        nodes=np.concatenate([node, nodes]),
        nodes_from=np.concatenate([np.arange(len(node) + 1), len(node) + nodes_from[1:]]),
    )


def _grouped(key: Ints, then: Ints, what: Ints) -> tuple[Ints, Ints, Ints]:
    """The different keys, rising; what has them, key after key; and where each one's begin."""
    order = np.lexsort((then, key))
    found, first = np.unique(key[order], return_index=True)
    return found, what[order], np.append(first, len(what))


@njit(cache=True, nogil=True)
def _surplus(
    gpus: int, level: int, cell: int, ask: float, limit: Floats, risk: Floats, in_node: Floats,
    in_site: Floats,
) -> float:  # fmt: skip
    """USD per hour of a job's least gang in a place, were it free; 0 or less: no place for it."""
    keeps = in_node[cell] if level == NODE else in_site[cell]
    if gpus == 1:
        keeps = 1.0 if level == NODE else 0.0
    return float(gpus * (limit[cell] * keeps - risk[cell] * gpus - ask))


@njit(cache=True, nogil=True)
def _fits(
    least: int, loosest: int, limit: Floats, risk: Floats, in_node: Floats, in_site: Floats,
    largest: Ints, there: Ints, ask: Floats,
) -> bool:  # fmt: skip
    """Whether some cell has enough free for a gang, in a node or on its site, and worth its ask."""
    for cell in range(len(limit)):
        for level in range(min(loosest, SITE) + 1):
            has = largest[cell] if level == NODE else there[cell]
            if limit[cell] > 0 and has >= least and _surplus(
                least, level, cell, ask[cell], limit, risk, in_node, in_site
            ) > 0:  # fmt: skip
                return True
    return False


@njit(cache=True, nogil=True)
def _best(
    least: int, loosest: int, limit: Floats, risk: Floats, in_node: Floats, in_site: Floats,
    levels: Ints, cells: Ints, ask: Floats, dearer: Floats, has: Ints, cost: Floats,
    least_gain: float,
) -> tuple[float, int]:  # fmt: skip
    """The largest gain over all pools that lack something of the gang, and the first that has it."""
    most, best = 0.0, -1
    for pool in range(len(levels)):
        cell, missing = cells[pool], least - has[pool]
        if limit[cell] <= 0 or levels[pool] > loosest or not 0 < missing < cost.shape[1]:
            continue
        surplus = _surplus(
            least, levels[pool], cell, ask[pool], limit, risk, in_node, in_site
        )  # fmt: skip
        # Nobody's leaving makes a supplier poorer: the newcomer can pay what was paid before. And no
        # gain is above the surplus.
        if surplus <= most or surplus < least * dearer[pool]:
            continue
        gain = surplus - cost[pool, missing]
        if gain > most and gain >= least_gain * surplus:
            most, best = gain, pool
    return most, best


@njit(cache=True, nogil=True)
def _costs(
    which: Ints, rows: Ints, rows_from: Ints, nodes: Ints, nodes_from: Ints, free: Ints,
    stays: Bools, gang: Ints, gpus: Ints, price: Floats, has: Ints, cost: Floats,
) -> None:  # fmt: skip
    """[pool] what is free, and [pool, k] what freeing k GPUs costs: a knapsack, gang by gang."""
    for pool in which:
        has[pool] = 0
        for at in range(nodes_from[pool], nodes_from[pool + 1]):
            has[pool] += free[nodes[at]]
        cost[pool] = np.inf
        cost[pool, 0] = 0
        at, end, freed = rows_from[pool], rows_from[pool + 1], 0
        while at < end:
            row, size = rows[at], 0
            while at < end and gang[rows[at]] == gang[row]:
                size += gpus[rows[at]]
                at += 1
            if stays[row]:
                continue
            freed += size
            for k in range(freed, 0, -1):
                less = cost[pool, max(0, k - size)] + price[row]
                cost[pool, k] = min(cost[pool, k], less)


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
