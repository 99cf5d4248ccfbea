"""Where one job could run now, and the simplest of it: in one node.

The search knows what is free, what each node costs, and between which values the prices of a
cell must stay so that all its trades can still agree on one. Nodes are tried in the book's order,
so that the caller decides how ties fall.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from scheduler.matching.arrays import Floats, Ints
from scheduler.matching.book import NODE_GPUS, Book
from scheduler.matching.cells import SLOTS, Cells, slots
from scheduler.matching.values import Terms

NODE, SITE, ANY = 0, 1, 2

# For 0..16 GPUs of one node: which slot (0..3 for 1, 2, 4, 8) is the largest and the smallest.
LARGEST: Final = np.array([SLOTS.index(max(slots(n), default=1)) for n in range(NODE_GPUS + 1)])
SMALLEST: Final = np.array([SLOTS.index(min(slots(n), default=1)) for n in range(NODE_GPUS + 1)])
# The most GPUs of one node that need no slot past the first 0..4 sizes.
WITHIN: Final = np.array([0, 1, 3, 7, NODE_GPUS])


@dataclass(frozen=True, eq=False)
class Stand:
    """What is free [N], what so many GPUs of a node cost each [N, 17], and the room for prices.

    A slot of a cell [K, 4] can be let to who values it at `low` or more, at a cost up to `high`.
    """

    free: Ints
    cost: Floats
    low: Floats
    high: Floats

    @classmethod
    def opening(cls, book: Book, kinds: Cells, cost: Floats) -> "Stand":
        """Everything free, and no price fixed yet."""
        room = np.full((len(kinds), len(SLOTS)), np.inf)
        return cls(book.node_gpus.astype(np.int64), cost, -room, room)


@dataclass(frozen=True, eq=False)
class Gang:
    """A placement: so many GPUs on each of these nodes, worth `value` per GPU there."""

    nodes: Ints
    gpus: Ints
    value: Floats
    level: int
    surplus: float
    """USD per hour: Σ GPUs · (value − cost)."""


@dataclass(frozen=True, eq=False)
class Search:
    """One job before the market as it stands."""

    book: Book
    kinds: Cells
    stand: Stand
    job: int
    terms: Terms
    nodes: Ints = field(init=False)
    """Those that the job accepts, with something free at no more than the limit."""

    def __post_init__(self) -> None:
        fits = self.terms.limit[self.kinds.of_node] >= np.maximum(self.stand.cost[:, 1], 1e-12)
        object.__setattr__(self, "nodes", np.flatnonzero(fits & (self.stand.free > 0)))

    @property
    def least(self) -> int:
        return int(self.book.job_gpus_min[self.job])

    @property
    def loosest(self) -> int:
        return int(self.book.job_level[self.job])

    @property
    def targets(self) -> list[int]:
        """Sizes worth trying: an elastic gang takes as much as fits, or the least."""
        return sorted({self.least, int(self.book.job_gpus_max[self.job])})


def in_one_node(search: Search, target: int, *, everything: bool) -> list[Gang]:
    """Up to `target` GPUs of one node: the best node, or all that fit, best first.

    Of equals the one with the least free comes first, then the book's order.
    """
    terms, stand = search.terms, search.stand
    gpus = np.minimum(stand.free[search.nodes], target)
    nodes = search.nodes[gpus >= search.least]
    gpus = gpus[gpus >= search.least]
    cell = search.kinds.of_node[nodes]
    keeps = np.where(gpus == 1, 1.0, terms.in_node[cell])
    value = terms.limit[cell] * keeps - terms.risk[cell] * gpus
    cost = stand.cost[nodes, gpus]
    fits = np.flatnonzero(
        (cost <= np.minimum(value, stand.high[cell, SMALLEST[gpus]]))
        & (value >= stand.low[cell, LARGEST[gpus]])
    )
    surplus = gpus * (value - cost)
    if not everything:
        fits = fits[surplus[fits] == surplus[fits].max(initial=-np.inf)]
    fits = fits[np.lexsort((stand.free[nodes[fits]], -surplus[fits]))]
    return [
        Gang(nodes[at, None], gpus[at, None], value[at, None], NODE, float(surplus[at]))
        for at in fits[: None if everything else 1]
    ]
