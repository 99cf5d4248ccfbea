"""Clears one book: who runs where, at one price for each cell and slot size.

A greedy that is right before it is clever. Jobs are tried in the order of the surplus that they
would bring now over the root of their GPUs (of all such orders the one with the best guarantee:
Lehmann, O'Callaghan, Shoham, JACM 2002), raised a little for each hour waited; each takes its best
place whole, or waits. A trade is made only if its cells can still agree on prices: the price of a
slot lies between the asks and the values (less risk) of all its trades, and never falls with its
size. So no seller gets less than asked, no buyer pays more than the value, and nobody needs making
whole.

Ties fall by a hash of the book's seed and the row's id: the order of the rows means nothing.
"""

import heapq
import math
from collections.abc import Iterator, Mapping

import numpy as np

from scheduler.matching.arrays import Array, Ints
from scheduler.matching.book import NODE_GPUS, Book, reordered
from scheduler.matching.bound import bound
from scheduler.matching.cells import SLOTS, Cells, cells, slots
from scheduler.matching.matches import Matches
from scheduler.matching.placing import (
    LARGEST,
    SMALLEST,
    Gang,
    Search,
    Stand,
)  # fmt: skip
from scheduler.matching.pricing import ladders
from scheduler.matching.spreading import places
from scheduler.matching.tables import tables
from scheduler.matching.values import terms


def clear(book: Book) -> Matches:
    """Matches for a book: the same book gives the same matches, bit for bit."""
    # 1. An order of our own, from ids and seed alone: where we try things in turn, it is fair.
    jobs = np.argsort(mixed(book.job_id, book.params.seed))
    nodes = np.lexsort((mixed(book.node_id, book.params.seed), book.node_ask))
    ordered = reordered(book, jobs, nodes)
    # 2. Who runs where; the stand keeps the room left for prices.
    kinds = cells(ordered)
    stand = Stand.opening(ordered, kinds, np.tile(ordered.node_ask[:, None], NODE_GPUS + 1))
    gangs = _match(ordered, kinds, stand)
    # 3. Prices within that room, and what they prove.
    ladder = ladders(ordered, kinds, stand, gangs)
    level, gpu_class = np.full((2, book.jobs), -1)
    for placed, gang in gangs.items():
        level[jobs[placed]] = gang.level
        gpu_class[jobs[placed]] = ordered.node_class[gang.nodes[0]]
    cell_price = np.empty((book.nodes, len(SLOTS)))
    cell_price[nodes] = ladder[kinds.of_node]
    job, node, gpus = _rows(gangs, jobs, nodes)
    return Matches(
        job=job.astype("<i4"),
        node=node.astype("<i4"),
        gpus=gpus.astype("|i1"),
        price=cell_price[node, np.log2(gpus).astype(np.int64)],
        level=level.astype("|i1"),
        gpu_class=gpu_class.astype("<i2"),
        cell_price=cell_price,
        welfare=math.fsum(gang.surplus for gang in gangs.values()),
        bound=bound(tables(ordered, kinds), ladder),
        make_whole=0.0,
        seconds=0.0,
    )


def mixed(ids: Array, seed: int) -> Array:
    """A one-to-one hash of 64-bit ids that the seed changes: SplitMix64's finaliser."""
    mixed = ids.astype(np.uint64) ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _match(book: Book, kinds: Cells, stand: Stand) -> dict[int, Gang]:
    """The gangs by job, and the stand as they leave it.

    Places only get worse as others are filled. So while a job's best place is still to be had it
    is still its best, and who has lost it looks again and queues with the next.
    """
    params, gangs = book.params, {}
    age = np.minimum(params.ageing_per_hour * book.job_age_h.astype(np.float64), params.ageing_cap)

    def entries(job: int) -> Iterator[tuple[float, int, Gang]]:
        gang = _best(Search(book, kinds, stand, job, terms(book, kinds, job)))
        if gang is not None:
            yield -(1 + age[job]) * gang.surplus / math.sqrt(gang.gpus.sum()), job, gang

    queue = [entry for job in range(book.jobs) for entry in entries(job)]
    heapq.heapify(queue)
    while queue:
        _, job, gang = heapq.heappop(queue)
        if _is_there(kinds, stand, gang):
            gangs[job] = gang
            _let(kinds, stand, gang)
        else:
            for entry in entries(job):
                heapq.heappush(queue, entry)
    return gangs


def _best(search: Search) -> Gang | None:
    """The placement with the largest surplus; of equals the first, so the closest together."""
    gangs = [gang for target in search.targets for gang in places(search, target, everything=False)]
    return max(gangs, key=lambda gang: gang.surplus, default=None)


def _is_there(kinds: Cells, stand: Stand, gang: Gang) -> bool:
    """Whether the gang still finds its GPUs free and its cells ready to agree on prices."""
    cell, cost = kinds.of_node[gang.nodes], stand.cost[gang.nodes, gang.gpus]
    return bool(
        (stand.free[gang.nodes] >= gang.gpus).all()
        and (cost <= stand.high[cell, SMALLEST[gang.gpus]]).all()
        and (gang.value >= stand.low[cell, LARGEST[gang.gpus]]).all()
    )


def _let(kinds: Cells, stand: Stand, gang: Gang) -> None:
    """Takes the GPUs, and narrows the room for prices to what these trades agree with."""
    cell = kinds.of_node[gang.nodes]
    cost = stand.cost[gang.nodes, gang.gpus]
    stand.free[gang.nodes] -= gang.gpus
    for slot, size in enumerate(SLOTS):
        used = gang.gpus >= size if size == SLOTS[-1] else gang.gpus & size > 0
        for larger in range(slot, len(SLOTS)):
            np.maximum.at(stand.low[:, larger], cell[used], cost[used])
        for smaller in range(slot + 1):
            np.minimum.at(stand.high[:, smaller], cell[used], gang.value[used])


def _rows(gangs: Mapping[int, Gang], jobs: Ints, nodes: Ints) -> tuple[Ints, Ints, Ints]:
    """Job, node and size of every slot let, in the book's numbers, by job and node."""
    rows = sorted(
        (int(jobs[job]), int(nodes[node]), -size)
        for job, gang in gangs.items()
        for node, gpus in zip(gang.nodes, gang.gpus, strict=True)
        for size in slots(int(gpus))
    )
    job, node, size = np.array(rows, np.int64).reshape(-1, 3).T
    return job, node, -size
