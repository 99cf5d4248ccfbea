"""Work on jobs in one or two halves, beside each other: the compiled loops let go of the interpreter.

Where the halves lie follows from the number of jobs alone, so that sums are the same on any machine.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Final, TypeVar

import numpy as np

from scheduler.matching.arrays import Ints

_FEW: Final = 500
"""Jobs for which a second thread isn't worth its start."""
_Result = TypeVar("_Result")


class Halves:
    """Of so many jobs."""

    def __init__(self, jobs: int) -> None:
        middle = [jobs // 2] if jobs > _FEW else []
        self.edges = list(pairwise([0, *middle, jobs]))
        self._beside = ThreadPoolExecutor(max(1, len(middle)))

    def each(self, work: Callable[[int, int, int], _Result]) -> list[_Result]:
        """What `work(number, first, end)` makes of each half, in order."""
        others = [
            self._beside.submit(work, number, first, end)
            for number, (first, end) in enumerate(self.edges[1:], start=1)
        ]
        return [work(0, *self.edges[0]), *(one.result() for one in others)]


def joined(counts: Sequence[Ints], found: Sequence[Ints]) -> tuple[Ints, Ints]:
    """(where those of each job begin, all that was found)."""
    start = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])
    return start, np.concatenate(found)
