"""An upper bound on the welfare of any matches, from the published prices: a certificate.

Lagrangian duality: make supply meet demand in each cell and slot size by its price alone. Then

    welfare = Σ over jobs of (value − price) + Σ over nodes of (price − ask)

for whatever is matched, so it never exceeds the best that each job and each node could do alone
(`scheduler.matching.alone`), were it free to trade at these prices, a job no more of a cell than
there is. Any prices ≥ 0 give a bound, better ones a tighter bound. A job's best is loosened where
that is simpler: a gang over several nodes pays the price of the smallest slot everywhere, and over
several sites it may use any number of them.
"""

import numpy as np

from scheduler.matching.alone import jobs_gain, look_up, nodes_gain, room
from scheduler.matching.arrays import Floats
from scheduler.matching.lists import lists
from scheduler.matching.tables import Tables


def bound(of: Tables, ladder: Floats) -> float:
    """USD per hour; `ladder` [K, 4] is each cell's price for slots of 1, 2, 4 and 8 GPUs."""
    every = lists(of, ladder)
    working, unused, gains = room(of, every), np.zeros_like(ladder), np.empty(len(of.jobs))
    look_up(of.cells, ladder, working.cheapest)
    return float(
        nodes_gain(of.nodes, ladder, unused) + jobs_gain(of, every, ladder, working, unused, gains)
    )
