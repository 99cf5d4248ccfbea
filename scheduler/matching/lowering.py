"""The prices of small books: the lowest that support the trades, where these prove as tight a bound.

Lower prices are tried of all cells at once, or else of those in which buyers would save most, one
after another. A cell's price concerns those alone who accept it, a fifth of all, so each trial asks
only them. The bounds are those of `bound`, to the last bit.
"""

from typing import Final

import numpy as np
from numba import njit

from scheduler.matching.alone import Room, in_one_node, nodes_gain, room, together
from scheduler.matching.arrays import Array, Bools, Floats, Ints
from scheduler.matching.bound import SHARP
from scheduler.matching.cells import SLOTS
from scheduler.matching.halves import Halves
from scheduler.matching.lending import lent
from scheduler.matching.lists import Length, Lists, find_cheapest, lists
from scheduler.matching.offers import Offers, look_up, offers
from scheduler.matching.pricing import raised, whole_micros
from scheduler.matching.tables import Tables, accepts

_GPUS: Final = np.array(SLOTS)
_LOOSER: Final = 1e-4
"""By so much, as a share, the bound may rise for lower prices."""
_TRIALS: Final = 8
"""So many cells may be lowered."""


def lowered(of: Tables, let: Array, balance: Floats, lowest: Floats) -> tuple[Floats, float, float]:
    """([K, 4] the prices to pay, the bounds that these and `balance` prove): nobody is made whole, and
    the cells in which it saves buyers most have the `lowest` prices that support their trades, unless
    that loosens the bound."""
    price = raised(whole_micros(balance), let, of.nodes["ask"][let["node"]])
    low = np.minimum(price, lowest)
    # What gains nothing at the lowest prices gains nothing at any that are tried.
    listed = lists(of, np.minimum(low, balance), Halves(len(of.jobs)), Length())
    # Where lower prices save buyers most, first.
    fall = _GPUS[let["slot"]] * (price - low)[let["cell"], let["slot"]]
    saved = np.bincount(let["cell"], fall, len(price))
    tried = np.argsort(-saved, kind="stable")[:_TRIALS]
    table = offers(of)
    sharp = np.full((2, max(len(price), of.limit.shape[1])), SHARP)
    proven, before = _lowered(
        of, listed, table, room(of, table.wanted[0], listed), sharp, balance, lowest, low,
        tried[saved[tried] > 0], price,
    )  # fmt: skip
    return price, proven, before


@njit(cache=True, nogil=True)
def _lowered(
    of: Tables, listed: Lists, table: Offers, space: Room, sharp: Floats, balance: Floats,
    lowest: Floats, low: Floats, tried: Ints, price: Floats,
) -> tuple[float, float]:  # fmt: skip
    """The bounds by `price` [K, 4] and by `balance`. The former is lowered: to all that is `lowest`, or
    to what is `low` in those of the cells `tried` where that does."""
    of, listed, table, space, sharp = lent((of, listed, table, space, sharp))
    balance, lowest, low, price = lent((balance, lowest, low, price))
    everyone = np.ones(len(of.jobs), np.bool_)
    before = _bound(of, listed, table, space, sharp, balance, everyone)
    proven = _bound(of, listed, table, space, sharp, price, everyone)
    gains = space.gains.copy()
    found = _bound(of, listed, table, space, sharp, lowest, everyone)
    if found <= proven * (1 + _LOOSER):
        price[:] = lowest
        return found, before
    space.gains[:] = gains
    most, spare = proven, np.empty(price.shape[1])
    for cell in tried:
        spare[:] = price[cell]
        price[cell] = low[cell]
        found = _bound(of, listed, table, space, sharp, price, _concerned(of, cell))
        if found <= most * (1 + _LOOSER):
            proven, most = found, min(most, found)
            gains[:] = space.gains
        else:
            price[cell] = spare
            space.gains[:] = gains
    return proven, before


@njit(cache=True, nogil=True)
def _concerned(of: Tables, cell: int) -> Bools:
    """[J] whether a job accepts a cell."""
    found, here = np.zeros(len(of.jobs), np.bool_), of.cells[cell]
    for at in range(len(found)):
        job = of.jobs[at]
        found[at] = (
            of.limit[at, here.gpu_class] > 0
            and here.tier <= job.tier
            and here.long >= job.long
            and accepts(job, here)
        )
    return found


@njit(cache=True, nogil=True)
def _bound(
    of: Tables, listed: Lists, table: Offers, space: Room, sharp: Floats, price: Floats,
    concerned: Bools,
) -> float:  # fmt: skip
    """On the welfare of any matches, by these prices [K, 4]: those `concerned` may gain something else
    than stands in `space.gains` [J]."""
    look_up(price, sharp[0], table)
    find_cheapest(of.places, price, space.cheapest)
    total = 0.0
    for at in range(len(concerned)):
        if concerned[at]:
            job, limit = of.jobs[at], of.limit[at]
            gain, _, _, _ = in_one_node(
                job, limit, of.rules.in_node, of.rules.failures, table.wide, sharp[0]
            )
            if job.most > 1 and job.level >= 1:
                gain, _ = together(at, of, listed, price, space, gain)
            space.gains[at] = gain
        total += space.gains[at]
    return total + nodes_gain(of.nodes, price, sharp[1], space.excess)
