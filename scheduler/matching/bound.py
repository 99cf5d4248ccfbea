"""An upper bound on the welfare of any matches, from prices that are published: a certificate.

Lagrangian duality: make supply meet demand in each cell and slot size by its price alone. Then

    welfare = Σ over jobs of (value − price) + Σ over nodes of (price − ask)

for whatever is matched, so it never exceeds the best that each job and each node could do alone
(`scheduler.matching.alone`), were it free to trade at these prices, a job no more of a cell than
there is. Any prices ≥ 0 give a bound, better ones a tighter bound: those that balance what is wanted
and offered, not those that are paid, which are raised to the asks that were let. A job's best is
loosened where that is simpler: a gang over several nodes pays the price of the smallest slot
everywhere, and over several sites its own choice is bounded in the same way, its size met by a toll
alone (`scheduler.matching.spanning`).
"""

from typing import Final

import numpy as np

from scheduler.matching.alone import all_gain, jobs_gain, nodes_gain, room
from scheduler.matching.arrays import Array, Floats
from scheduler.matching.halves import Halves
from scheduler.matching.lists import Lists
from scheduler.matching.offers import Offers, apart, look_up, offers, spread
from scheduler.matching.ordering import in_groups
from scheduler.matching.proving import Priced, best_alone, ranks
from scheduler.matching.tables import Tables

SHARP: Final = 1e-9
"""USD: over so little wishes spread where a bound is proven."""


class Prospects:
    """What all would gain, again and again, at other prices but by the same lists."""

    def __init__(self, of: Tables, listed: Lists, halves: Halves) -> None:
        self._of, self._lists, self._halves = of, listed, halves
        self._table = offers(of, len(halves.edges))
        self._rooms = [room(of, wanted, listed) for wanted in self._table.wanted]
        self._offers = apart(self._table, len(halves.edges))
        self._nodes = _nodes_of(of, self._offers)
        self._gpu_class = np.ascontiguousarray(of.cells["gpu_class"])

    def gain(self, price: Floats, width: Floats, excess: Floats, each: int = 1) -> float:
        """USD per hour; what they would sell less what they would buy stands in `excess` [K, 4].
        `width` [C]: over how much price a GPU's wishes spread, USD. Only each so many-th job is
        asked, and counted as often."""
        of, wide, of_cell = self._of, self._table.wide, width[self._gpu_class]
        excess[:] = 0
        if len(self._rooms) == 1:
            work = self._lists, self._offers[0], self._rooms[0]
            return float(all_gain(of, self._nodes[0], *work, price, width, of_cell, excess, each))

        def offered(part: int, _: int, __: int) -> float:
            look_up(price, width, self._offers[part])
            return float(nodes_gain(self._nodes[part], price, of_cell, excess))

        def wished(number: int, first: int, end: int) -> float:
            return float(
                jobs_gain(
                    of, self._lists, price, width, wide, self._rooms[number], first, end, each
                )
            )

        def wanted(part: int, _: int, __: int) -> None:
            spread(price, width, self._offers[part], each, excess)

        total = sum(self._halves.each(offered)) + each * sum(self._halves.each(wished))
        for one in self._rooms:
            excess += np.multiply(one.excess, each, out=one.excess)
        self._halves.each(wanted)
        return float(total)

    def gains(self) -> Floats:
        """[J] of each job, at the last prices."""
        return sum((one.gains for one in self._rooms), np.zeros(len(self._of.jobs)))


def bound(of: Tables, ladder: Floats) -> float:
    """USD per hour; `ladder` [K, 4] is each cell's price for slots of 1, 2, 4 and 8 GPUs."""
    halves, table = Halves(len(of.jobs)), offers(of)
    sharp = np.full(of.limit.shape[1], SHARP)
    look_up(ladder, sharp, table)
    priced = Priced(ladder, ranks(of, ladder), sharp, table.wide)

    def half(_: int, first: int, end: int) -> float:
        return best_alone(of, priced, first, end)

    nodes = nodes_gain(of.nodes, ladder, sharp[of.cells["gpu_class"]], np.empty_like(ladder))
    return float(nodes + sum(halves.each(half)))


def _nodes_of(of: Tables, parts: list[Offers]) -> list[Array]:
    """The nodes that each of these parts has offers of, cell by cell."""
    place = np.empty(len(of.cells), np.int64)
    place[parts[0].cell] = np.arange(len(place))
    order, start = in_groups(place[of.nodes["cell"]], len(place))
    nodes = of.nodes[order]
    return [nodes[start[part.start[0]] : start[part.start[-1]]] for part in parts]
