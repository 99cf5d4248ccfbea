"""An upper bound on the welfare of any matches, from the published prices: a certificate.

Lagrangian duality: make supply meet demand in each cell and slot size by its price alone. Then

    welfare = Σ over jobs of (value − price) + Σ over nodes of (price − ask)

for whatever is matched, so it never exceeds the best that each job and each node could do alone
(`scheduler.matching.alone`), were it free to trade at these prices, a job no more of a cell than
there is. Any prices ≥ 0 give a bound, better ones a tighter bound. A job's best is loosened where
that is simpler: a gang over several nodes pays the price of the smallest slot everywhere, and over
several sites it gets the lesser of two sums, each of which is too much (`scheduler.matching.spanning`).
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Final

import numpy as np

from scheduler.matching.alone import jobs_gain, nodes_gain, room
from scheduler.matching.arrays import Floats
from scheduler.matching.lists import Lists, lists
from scheduler.matching.offers import look_up, offers, spread
from scheduler.matching.tables import Tables

_FEW: Final = 500
"""Jobs for which a second thread isn't worth its start."""
_SHARP: Final = 1e-9


class Prospects:
    """What all would gain, again and again, at other prices but by the same lists.

    The jobs stand in one or two halves, by their number alone, so that sums are the same on any
    machine.
    """

    def __init__(self, of: Tables, listed: Lists) -> None:
        self._of, self._lists = of, listed
        self._table = offers(of)
        middle = [len(of.jobs) // 2] if len(of.jobs) > _FEW else []
        edges = [0, *middle, len(of.jobs)]
        self._halves = list(pairwise(edges))
        self._rooms = [room(of, self._table, listed) for _ in self._halves]
        self._beside = ThreadPoolExecutor(max(1, len(middle)))

    def gain(self, price: Floats, width: Floats, excess: Floats, each: int = 1) -> float:
        """USD per hour; what they would sell less what they would buy stands in `excess` [K, 4].
        `width` [C]: over how much price a GPU's wishes spread, USD. Only each so many-th job is
        asked, and counted as often."""
        of, table = self._of, self._table
        excess[:] = 0
        look_up(of.cells, price, width, table.exact, table.wide)
        total = nodes_gain(of.nodes, price, width[of.cells["gpu_class"]], excess)
        # The loops let go of the interpreter.
        others = [
            self._beside.submit(self._half, price, width, at, each)
            for at in range(1, len(self._halves))
        ]
        total += each * (self._half(price, width, 0, each) + sum(one.result() for one in others))
        for one in self._rooms:
            table.wide["wanted"] += each * one.wanted
            excess += each * one.excess
        spread(of.cells, price, width, table.exact, table.wide, excess)
        return float(total)

    def gains(self) -> Floats:
        """[J] of each job, at the last prices."""
        return sum((one.gains for one in self._rooms), np.zeros(len(self._of.jobs)))

    def _half(self, price: Floats, width: Floats, at: int, each: int) -> float:
        first, end = self._halves[at]
        return float(
            jobs_gain(
                self._of,
                self._lists,
                price,
                width,
                self._table.wide,
                self._rooms[at],
                first,
                end,
                each,
            )
        )


def bound(of: Tables, ladder: Floats) -> float:
    """USD per hour; `ladder` [K, 4] is each cell's price for slots of 1, 2, 4 and 8 GPUs."""
    sharp = np.full(of.limit.shape[1], _SHARP)
    return Prospects(of, lists(of, ladder)).gain(ladder, sharp, np.empty_like(ladder))
