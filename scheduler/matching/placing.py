"""What is let, as whole gangs, and between which values the prices of a cell must stay so that all
its trades can still agree on one."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from scheduler.matching.arrays import Floats, Ints
from scheduler.matching.book import NODE_GPUS, Book
from scheduler.matching.cells import SLOTS, Cells, slots

NODE, SITE, ANY = 0, 1, 2

LARGEST: Final = np.array([SLOTS.index(max(slots(n), default=1)) for n in range(NODE_GPUS + 1)])
"""For 0..16 GPUs of one node: which slot (0..3 for 1, 2, 4, 8) is the largest."""


@dataclass(frozen=True, eq=False)
class Stand:
    """What is free [N], what a GPU of each node asks [N], and the room for prices.

    A slot of a cell [K, 4] can be let to who values it at `low` or more, at a cost up to `high`.
    """

    free: Ints
    ask: Floats
    low: Floats
    high: Floats

    @classmethod
    def opening(cls, book: Book, kinds: Cells) -> "Stand":
        """Everything free, and no price fixed yet."""
        room = np.full((len(kinds), len(SLOTS)), np.inf)
        return cls(book.node_gpus.astype(np.int64), book.node_ask, -room, room)


@dataclass(frozen=True, eq=False)
class Gang:
    """A placement: so many GPUs on each of these nodes, worth `value` per GPU there."""

    nodes: Ints
    gpus: Ints
    value: Floats
    level: int
    surplus: float
    """USD per hour: Σ GPUs · (value − cost)."""
