"""Prices: the ladder of each cell, one price for each slot size, and what each row pays.

The prices that balance what is offered and what is wanted are known by now (`ascent`): they rose
from the lowest asks until no more was wanted than offered, so they are set by the last who was
outbid, not by whoever got something. As they are they prove the bound. Not every seller that was let
asks so little: the best matches and one price for all can't always both be had, for whole gangs are
no fractions of them. So a seller is made whole out of the market's fee, or the cell's price is raised:

1. No price lies more than a twentieth below an ask that was let in slots of that size or smaller:
   so the fee of each row suffices to make its seller whole.
2. The price of a cell raised by so much would prove a bound looser by at most as much for each GPU
   that the cell has, and saves it for each that was let at a higher ask. The cells in which those are
   the greater share are raised, until no more than a thousandth of the turnover is made whole.

In small books nobody is made whole, and prices are lower where they can be (`lowering`).

A gang to which the prices are too dear pays what it is worth to it: for each row what is asked, or
less where the price is less, and the same share of what the price is above it.

Balancing prices count in whole micros, rounded down; so prices are whole micros where asks are, but
for what such gangs pay.
"""

from typing import Final

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Bools, Floats
from scheduler.matching.cells import SLOTS
from scheduler.matching.ordering import sorted_by
from scheduler.matching.pricing import raised, whole_micros
from scheduler.matching.tables import Tables

LET: Final = np.dtype(
    [("job", "i4"), ("node", "i4"), ("cell", "i4"), ("slot", "i4"), ("worth", "f8"), ("risk", "f8")]
)
"""A slot that was let; limit · η and risk in USD per GPU-hour."""
_GPUS: Final = np.array(SLOTS)
_MADE_WHOLE: Final = 0.001
"""Of the turnover, at most."""
_BELOW_ASK: Final = 0.05
"""How far a price may lie below an ask that was let, as a share of it."""
_HALVINGS: Final = 12


def ladders(of: Tables, let: Array, balance: Floats) -> Floats:
    """[K, 4] prices that never fall with the size; `balance` [K, 4] are those of the ascent."""
    ask = of.nodes["ask"][let["node"]]
    least = raised(whole_micros(balance), let, whole_micros(ask * (1 - _BELOW_ASK)))
    above = _share_above(of, let, ask)
    over = ask > least[let["cell"], let["slot"]]
    # The fewest cells are raised that will do; at 0 all are, and nobody needs making whole.
    low, high, tried, room = 0.0, 1.0, least.copy(), np.empty((3, len(of.jobs)))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        _lift(tried, least, let, over, ask, above >= middle)
        missing, turnover = _missing(let, ask, tried, room)
        if missing <= _MADE_WHOLE * turnover:
            low = middle
        else:
            high = middle
    dear = over & (above >= low)
    return raised(least, let[dear], ask[dear])


@njit(cache=True, nogil=True)
def _lift(
    price: Floats, least: Floats, let: Array, over: Bools, ask: Floats, dear: Bools
) -> None:  # fmt: skip
    """The prices of what was `let` are the `least`, or where an ask lies `over` that and the cell is
    `dear` what is asked."""
    for row in let:
        for slot in range(price.shape[1]):
            price[row.cell, slot] = least[row.cell, slot]
    for one in range(len(let)):
        row = let[one]
        for slot in range(row.slot if over[one] and dear[one] else price.shape[1], price.shape[1]):
            price[row.cell, slot] = max(price[row.cell, slot], ask[one])


@njit(cache=True, nogil=True)
def _missing(let: Array, ask: Floats, ladder: Floats, room: Floats) -> tuple[float, float]:
    """(what sellers miss, what is paid), USD per hour: see `payments`. `room` is for three numbers of
    each job."""
    pays, worth, lowest = room
    room[:] = 0
    for one in range(len(let)):
        row, gpus = let[one], SLOTS[let[one].slot]
        price = ladder[row.cell, row.slot]
        pays[row.job] += gpus * price
        worth[row.job] += gpus * row.worth
        lowest[row.job] += gpus * min(price, ask[one])
    missing, turnover = 0.0, 0.0
    for one in range(len(let)):
        row, gpus = let[one], SLOTS[let[one].slot]
        paid, job = ladder[row.cell, row.slot], row.job
        if pays[job] > worth[job]:
            least, spare = min(paid, ask[one]), pays[job] - lowest[job]
            share = max(worth[job] - lowest[job], 0.0) / spare if spare > 0 else 0.0
            paid = least + share * (paid - least)
        missing += gpus * max(ask[one] - paid, 0.0)
        turnover += gpus * paid
    return missing, turnover


def made_whole(of: Tables, let: Array, paid: Floats) -> float:
    """USD per hour that the sellers get beyond what is `paid` [rows]."""
    missing = np.maximum(of.nodes["ask"][let["node"]] - paid, 0)
    return float((_GPUS[let["slot"]] * missing).sum())


def _share_above(of: Tables, let: Array, ask: Floats) -> Floats:
    """[rows] the GPUs let in the same cell at this ask or a higher one, as a share of all that the
    cell has."""
    order = sorted_by(let["cell"], -ask)
    cell, gpus = let["cell"][order], _GPUS[let["slot"]][order]
    total = np.cumsum(gpus)
    first = np.searchsorted(cell, cell)
    has = np.bincount(of.nodes["cell"], of.nodes["free"], len(of.cells))
    share = np.empty(len(let))
    share[order] = (total - (total - gpus)[first]) / has[cell]
    return share


def payments(of: Tables, let: Array, ladder: Floats) -> Floats:
    """[rows] what each slot pays, USD per GPU-hour."""
    gpus = _GPUS[let["slot"]]
    price = ladder[let["cell"], let["slot"]]
    least = np.minimum(price, of.nodes["ask"][let["node"]])
    jobs = len(of.jobs)
    pays, worth, lowest = (
        np.bincount(let["job"], gpus * each, jobs) for each in (price, let["worth"], least)
    )
    dear = pays > worth
    share = np.divide(worth - lowest, pays - lowest, out=np.ones(jobs), where=dear)
    capped = least + np.clip(share, 0, 1)[let["job"]] * (price - least)
    found: Floats = np.where(dear[let["job"]], capped, price)
    return found
