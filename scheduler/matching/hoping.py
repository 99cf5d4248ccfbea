"""Which kinds of node each job accepts, and the most that it could gain there: where it looks first."""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints
from scheduler.matching.halves import Halves, joined
from scheduler.matching.lending import lent
from scheduler.matching.ordering import sorted_by
from scheduler.matching.tables import Tables, accepts

NOTHING: Final = -1e-9
"""What a choice must score: whoever gains nothing by a trade doesn't mind it."""
_LISTED: Final = 160
"""So many kinds of a class are known to each job, the cheapest that it accepts."""


class Hopes(NamedTuple):
    """The kinds that each job accepts, from start[j] on, and the most that a GPU of them could gain
    it with the least GPUs."""

    start: Ints
    kind: Ints
    gain: Floats


def hopes(of: Tables, seats: Array, kinds: Array, jobs: Ints, guide: float = 0.0) -> Hopes:
    """For these jobs, in rising order; of others no kinds are known. `guide` (0 to 1): how much of
    prices counts; where they do, lists are short, and good for who chooses by as much or more."""
    dear = np.maximum(seats["ask"], guide * seats["price"][:, 0])
    ask = np.full(len(kinds), np.inf)
    np.minimum.at(ask, seats["kind"], dear)
    order = sorted_by(kinds["gpu_class"], ask)
    start = np.searchsorted(kinds["gpu_class"][order], np.arange(of.limit.shape[1] + 1))
    order, jobs = order.astype(np.int32), jobs.astype(np.int32)

    def half(_: int, first: int, end: int) -> tuple[Ints, Ints, Floats]:
        return _hopes(of, kinds, order, ask, start, jobs[first:end])

    counts, listed, gain = zip(*Halves(len(jobs)).each(half), strict=True)
    every = np.zeros(len(of.jobs), np.int64)
    every[jobs] = np.concatenate(counts)
    return Hopes(*joined([every], listed), np.concatenate(gain))


@njit(cache=True, nogil=True)
def _hopes(
    of: Tables, kinds: Array, order: Ints, ask: Floats, start_of: Ints, which: Ints
) -> tuple[Ints, Ints, Floats]:
    """(how many kinds of each of these jobs, all of them, their gains)."""
    of, kinds, order, ask = lent((of, kinds, order, ask))
    start_of, which = lent((start_of, which))
    jobs, limits, slow, failures = of.jobs, of.limit, of.rules.in_node, of.rules.failures
    counts = np.zeros(len(which), np.int64)
    kind, gain = np.empty(4096, np.int32), np.empty(4096)
    found, promise = np.empty(len(kinds), np.int32), np.empty(len(kinds))
    total = 0
    for number, at in enumerate(which):
        job, count = jobs[at], 0
        for gpu_class in range(limits.shape[1]):
            limit, of_class = limits[at, gpu_class], 0
            keeps = 1 - job.kappa * slow[gpu_class] if job.least > 1 else 1.0
            for listed in range(start_of[gpu_class], start_of[gpu_class + 1]):
                one = order[listed]
                if limit <= 0 or limit * keeps - ask[one] <= NOTHING or of_class == _LISTED:
                    break
                here = kinds[one]
                if here.tier > job.tier or here.long < job.long or not accepts(job, here):
                    continue
                worth = limit * (keeps - failures[here.tier] * job.lost * job.least) - ask[one]
                if worth > NOTHING:
                    found[count], promise[count] = one, -worth
                    count += 1
                    of_class += 1
        if total + count > len(kind):
            size = 2 * (total + count)
            more, gains = np.empty(size, np.int32), np.empty(size)
            more[:total], gains[:total] = kind[:total], gain[:total]
            kind, gain = more, gains
        for one in np.argsort(promise[:count]):
            kind[total], gain[total] = found[one], -promise[one]
            total += 1
        counts[number] = count
    return counts, kind[:total].copy(), gain[:total].copy()
