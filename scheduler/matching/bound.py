"""An upper bound on the welfare of any matches, from the published prices: a certificate.

Lagrangian duality: make supply meet demand in each cell and slot size by its price alone. Then

    welfare = Σ over jobs of (value − price) + Σ over nodes of (price − ask)

for whatever is matched, so it never exceeds the best that each job and each node could do alone,
were it free to trade any amount at these prices. Any prices ≥ 0 give a bound, better ones a
tighter bound. A job's best is loosened where that is simpler: a gang over several nodes pays the
price of the smallest slots, may take a real number of GPUs, and has the best cell of its group.
"""

import math

import numpy as np

from scheduler.matching.arrays import Bools, Floats, Ints
from scheduler.matching.book import NODE_GPUS, Book
from scheduler.matching.cells import SLOTS, Cells, slots
from scheduler.matching.placing import ANY, SITE
from scheduler.matching.values import Terms, terms


def bound(book: Book, kinds: Cells, ladder: Floats) -> float:
    """USD per hour that no matches exceed; `ladder` [K, 4] must not fall with the slot's size."""
    room = _Room(book, kinds)
    jobs = [_job_best(book, room, terms(book, kinds, job), ladder, job) for job in range(book.jobs)]
    return math.fsum(jobs) + _nodes_best(book, ladder[kinds.of_node])


class _Room:
    """What there is of each cell [K], and for a job that accepts some of them."""

    def __init__(self, book: Book, kinds: Cells) -> None:
        gpus = book.node_gpus.astype(np.int64)
        self.kinds = kinds
        self.in_node = np.zeros(len(kinds), np.int64)
        np.maximum.at(self.in_node, kinds.of_node, gpus)
        self.in_cell = np.bincount(kinds.of_node, gpus, len(kinds))
        self.place = np.zeros(len(kinds), np.int64)
        self.place[kinds.of_node] = kinds.place
        # The best uplink among a cell's sites stands for all of them.
        self.best_site = np.zeros(len(kinds), np.int64)
        order = np.argsort(book.site_up_mbps[book.node_site], kind="stable")
        self.best_site[kinds.of_node[order]] = book.node_site[order]

    def together(self, group: Ints, accepted: Bools) -> Floats:
        """GPUs in all accepted cells of each cell's group."""
        groups = int(group.max(initial=-1)) + 1
        return np.bincount(group, self.in_cell * accepted, groups)[group].astype(np.float64)


def _job_best(book: Book, room: _Room, term: Terms, ladder: Floats, job: int) -> float:
    """The most that one job could gain at these prices; 0 if it rather stays out."""
    least, most = int(book.job_gpus_min[job]), int(book.job_gpus_max[job])
    accepted = term.limit > 0
    best = 0.0
    for gpus in range(least, min(most, NODE_GPUS) + 1):
        keeps = term.in_node if gpus > 1 else np.ones(len(ladder))
        price = sum((size * ladder[:, SLOTS.index(size)] for size in slots(gpus)), np.zeros(1))
        gain = gpus * (term.limit * keeps - gpus * term.risk) - price
        best = max(best, _most(gain, accepted & (room.in_node >= gpus)))
    if most > 1 and book.job_level[job] >= SITE:
        there = room.together(room.place, accepted)
        gain = term.limit * term.in_site - ladder[:, 0]
        best = max(best, _gang_best(gain, term, there, (max(least, 2), most)))
    if most > 1 and book.job_level[job] >= ANY and book.job_sites_max[job] > 1:
        there = room.together(room.kinds.gpu_class, accepted)
        gain = term.limit * term.over_sites[room.best_site] - ladder[:, 0]
        fewest = max(least, 2, 2 * int(book.job_site_gpus_min[job]))
        best = max(best, _gang_best(gain, term, there, (fewest, most)))
    return best


def _gang_best(gain: Floats, term: Terms, there: Floats, gpus: tuple[int, int]) -> float:
    """The most of n · (gain − n · risk) over cells and real n, of which there are enough."""
    least, most = gpus
    highest = np.minimum(there, most)
    peak = np.divide(gain, 2 * term.risk, out=np.full(len(gain), np.inf), where=term.risk > 0)
    size = np.clip(np.where(gain > 0, peak, 0), least, np.maximum(highest, least))
    return _most(size * (gain - size * term.risk), (term.limit > 0) & (highest >= least))


def _most(amounts: Floats, where: Bools) -> float:
    return float(amounts.max(initial=0.0, where=where))


def _nodes_best(book: Book, ladder: Floats) -> float:
    """Σ over nodes of the best cut of their free GPUs: the largest slots, as none earns less."""
    gpus: Ints = book.node_gpus.astype(np.int64)
    gain = np.maximum(ladder - book.node_ask[:, None], 0)
    earns = (gpus // 8) * 8 * gain[:, 3]
    for slot, size in enumerate(SLOTS[:3]):
        earns = earns + (gpus & size) * gain[:, slot]
    return math.fsum(earns)
