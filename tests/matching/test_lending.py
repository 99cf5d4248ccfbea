"""Arrays that are lent are the same arrays."""

from typing import NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Floats, Ints
from scheduler.matching.lending import lent


class _Shelf(NamedTuple):
    gpus: Ints
    price: Floats
    both: tuple[Ints, Ints]
    size: int


@njit
def _mark(held: _Shelf) -> float:
    held = lent(held)
    for at in range(held.size):
        held.gpus[at : at + 1][0] += 1
        held.both[1][at] = 7
    return float(held.price.sum())


def test_what_is_lent_is_changed_in_place_and_outlives_the_loan() -> None:
    one, other = np.zeros(3, np.int64), np.arange(3)
    shelf = _Shelf(np.arange(3), np.array([0.5, 0.25, 0.0]), (one, other), 3)
    for _ in range(100):
        assert _mark(shelf) == 0.75
    assert shelf.gpus.tolist() == [100, 101, 102]
    assert one.tolist() == [0, 0, 0]
    assert other.tolist() == [7, 7, 7]
