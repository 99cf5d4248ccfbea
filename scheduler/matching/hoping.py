"""Which kinds of node each job accepts, and the most that it could gain there: where it looks first."""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.book import NODE_GPUS
from scheduler.matching.halves import Halves, joined
from scheduler.matching.lending import lent
from scheduler.matching.ordering import sorted_by
from scheduler.matching.supply import Supply
from scheduler.matching.tables import TIERS, Rules, Tables, accepts

NOTHING: Final = -1e-9
"""What a choice must score: whoever gains nothing by a trade doesn't mind it."""
_LISTED, _SHORT = 640, 160
"""So many kinds are known to each job, those that promise most: fewer where prices guide, since they
leave many that promise alike, and each will do."""
_HEAD: Final = np.dtype([("gain", "f8"), ("worth", "f8"), ("at", "i4"), ("end", "i4")], align=True)
"""What is left of the kinds of a class and tier, of which the first that a job accepts promises so
much: `worth` to it, less what is asked."""


class Hopes(NamedTuple):
    """The kinds that each job accepts, from start[j] on, and the most that a GPU of them could gain
    it with the least GPUs."""

    start: Ints
    kind: Ints
    gain: Floats


class Now(NamedTuple):
    """How all stand: GPUs that each seat has free, and what each job brings, USD per hour. Who moves
    looks only at kinds that have something free and promise no less."""

    free: Ints
    surplus: Floats


def hopes(
    of: Tables, sold: Supply, jobs: Ints, guide: float = 0.0, now: Now | None = None
) -> Hopes:
    """For these jobs, in rising order; of others no kinds are known. `guide` (0 to 1): how much of
    prices counts; where they do, lists are short, and good for who chooses by as much or more. `now`: for
    those who may move, and short too."""
    seats, kinds = sold.seats, sold.kinds
    dear = np.maximum(seats["ask"], guide * seats["price"][:, 0])
    ask = np.full(len(kinds), np.inf)
    np.minimum.at(ask, seats["kind"], dear)
    has, most = np.zeros(len(of.jobs)), _SHORT if guide else _LISTED
    if now is not None:
        ask[np.bincount(seats["kind"], now.free, len(kinds)) == 0] = np.inf
        has, most = now.surplus, _SHORT
    order = sorted_by(kinds["gpu_class"], kinds["tier"], ask)
    number = kinds["gpu_class"][order].astype(np.int64) * TIERS + kinds["tier"][order]
    start = np.searchsorted(number, np.arange(of.limit.shape[1] * TIERS + 1))
    listed = kinds[order], ask[order], order.astype(np.int32)
    jobs = jobs.astype(np.int32)

    def half(_: int, first: int, end: int) -> tuple[Ints, Ints, Floats]:
        return _hopes(of, *listed, start, jobs[first:end], has, most)

    counts, found, gain = zip(*Halves(len(jobs)).each(half), strict=True)
    every = np.zeros(len(of.jobs), np.int64)
    every[jobs] = np.concatenate(counts)
    return Hopes(*joined([every], found), np.concatenate(gain))


@njit(cache=True, nogil=True)
def _hopes(
    of: Tables, kinds: Array, ask: Floats, number: Ints, start_of: Ints, which: Ints, has: Floats,
    most: int,
) -> tuple[Ints, Ints, Floats]:  # fmt: skip
    """(how many kinds of each of these jobs, all of them, their gains). Kinds stand by class, tier
    and ask, so those of a class and tier by what they promise any job: the best of what is left of
    each comes next."""
    of, kinds, ask, number = lent((of, kinds, ask, number))
    start_of, which, has = lent((start_of, which, has))
    counts, heads = np.zeros(len(which), np.int64), np.zeros(len(start_of), _HEAD)
    turn = np.empty(len(start_of), np.int32)
    kind, gain = np.empty(4096 + most, np.int32), np.empty(4096 + most)
    total = 0
    for row, at in enumerate(which):
        job, before = of.jobs[at], total
        if total + most > len(kind):
            kind, gain = _twice(kind, total), _twice(gain, total)
        left = _heads(job, of.limit[at], of.rules, kinds, ask, start_of, heads, turn)
        while left and total - before < most:
            head = heads[turn[0]]
            if head.gain * min(job.most, NODE_GPUS) < has[at]:
                break
            kind[total], gain[total] = number[head.at], head.gain
            total += 1
            left = _moved_on(job, kinds, ask, heads, turn, left)
        counts[row] = total - before
    return counts, kind[:total].copy(), gain[:total].copy()


@njit(cache=True, nogil=True)
def _heads(
    job: Record, limit: Floats, rules: Rules, kinds: Array, ask: Floats, start_of: Ints,
    heads: Array, turn: Ints,
) -> int:  # fmt: skip
    """How many classes and tiers promise a job anything; whose `turn` it is, the best first."""
    slow, failures, left = rules.in_node, rules.failures, 0
    for gpu_class in range(len(limit)):
        keeps = 1 - job.kappa * slow[gpu_class] if job.least > 1 else 1.0
        for tier in range(job.tier + 1 if limit[gpu_class] > 0 else 0):
            one = gpu_class * TIERS + tier
            worth = limit[gpu_class] * (keeps - failures[tier] * job.lost * job.least)
            end = start_of[one + 1]
            first = _accepted(job, kinds, ask, worth, start_of[one], end)
            if first < end:
                head = heads[left]
                head.worth, head.gain, head.at, head.end = worth, worth - ask[first], first, end
                _stand(heads, turn, left)
                left += 1
    return left


@njit(cache=True, nogil=True, forceinline=True)
def _accepted(
    job: Record, kinds: Array, ask: Floats, worth: float, first: int, end: int
) -> int:  # fmt: skip
    """The first kind from `first` on that a job accepts; `end` if none is that gains anything."""
    for one in range(first, end):
        if worth - ask[one] <= NOTHING:
            break
        if kinds[one].long >= job.long and accepts(job, kinds[one]):
            return one
    return end


@njit(cache=True, nogil=True, forceinline=True)
def _moved_on(
    job: Record, kinds: Array, ask: Floats, heads: Array, turn: Ints, left: int
) -> int:  # fmt: skip
    """How many heads are left once the best has moved on to what it promises next."""
    now = turn[0]
    head = heads[now]
    first = _accepted(job, kinds, ask, head.worth, head.at + 1, head.end)
    gain, at = head.worth - ask[first] if first < head.end else NOTHING, 0
    while at + 1 < left and heads[turn[at + 1]].gain > gain:
        turn[at] = turn[at + 1]
        at += 1
    if first == head.end:
        return left - 1
    head.gain, head.at, turn[at] = gain, first, now
    return left


@njit(cache=True, nogil=True)
def _stand(heads: Array, turn: Ints, last: int) -> None:
    """Puts the last of these heads where its turn is."""
    at = last
    while at > 0 and heads[turn[at - 1]].gain < heads[last].gain:
        turn[at] = turn[at - 1]
        at -= 1
    turn[at] = last


@njit(cache=True, nogil=True)
def _twice(old: Array, used: int) -> Array:
    more = np.empty(2 * len(old), old.dtype)
    more[:used] = old[:used]
    return more
