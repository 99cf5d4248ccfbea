"""Prices: the ladder of each cell, one price for each slot size, and what each row pays.

The prices that balance what is offered and what is wanted are known by now (`ascent`): they rose
from the lowest asks until no more was wanted than offered, so they are set by the last who was
outbid, not by whoever got something. They are the cells' prices, and prove the bound, but for

1. the asks: no price lies below the highest ask let in slots of that size or smaller;
2. a size that was not let: its price is at least the lowest ask left, what the next order would pay.

The best matches and one price for all can't always both be had: whole gangs are no fractions of
them. Then a gang to which the prices are too dear pays what it is worth to it: for each row the ask,
and the same share of what the price is above it. So nobody needs making whole.

Balancing prices count in whole micros, rounded down; so prices are whole micros where asks are, but
for what such gangs pay.
"""

from typing import Final

import numpy as np

from scheduler.matching.arrays import Array, Floats
from scheduler.matching.cells import SLOTS
from scheduler.matching.pricing import cheapest, whole_micros, with_all_sizes
from scheduler.matching.tables import Tables

LET: Final = np.dtype(
    [("job", "i4"), ("node", "i4"), ("cell", "i4"), ("slot", "i4"), ("worth", "f8"), ("risk", "f8")]
)
"""A slot that was let; limit · η and risk in USD per GPU-hour."""
_GPUS: Final = np.array(SLOTS)


def ladders(of: Tables, let: Array, balance: Floats) -> Floats:
    """[K, 4] prices that never fall with the size; `balance` [K, 4] are those of the ascent."""
    shape, at = balance.shape, (let["cell"], let["slot"])
    low, sizes = np.full(shape, -np.inf), np.zeros(shape, bool)
    np.maximum.at(low, at, of.nodes["ask"][let["node"]])
    low = np.maximum.accumulate(low, axis=1)
    sizes[at] = True
    taken = np.bincount(let["node"], _GPUS[let["slot"]], len(of.nodes)).astype(np.int64)
    left = cheapest(of.nodes["cell"], of.nodes["ask"], of.nodes["free"] - taken, shape[0])
    price = np.maximum(low, whole_micros(balance))
    return with_all_sizes(price, sizes, left[:, SLOTS], np.inf)


def payments(of: Tables, let: Array, ladder: Floats) -> Floats:
    """[rows] what each slot pays, USD per GPU-hour."""
    gpus = _GPUS[let["slot"]]
    price, ask = ladder[let["cell"], let["slot"]], of.nodes["ask"][let["node"]]
    jobs = len(of.jobs)
    pays, worth, asked = (
        np.bincount(let["job"], gpus * each, jobs) for each in (price, let["worth"], ask)
    )
    dear = pays > worth
    share = np.divide(worth - asked, pays - asked, out=np.ones(jobs), where=dear)
    capped = ask + np.clip(share, 0, 1)[let["job"]] * (price - ask)
    found: Floats = np.where(dear[let["job"]], capped, price)
    return found
