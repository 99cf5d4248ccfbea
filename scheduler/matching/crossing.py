"""The best of two sets of matches of one book, part by part.

Two searches that began apart end up alike in most, and differ in patches: gangs that stand on some
nodes here, and on some of the same nodes there. Each patch can be taken from either, whatever is taken
of the others, so what comes of both is at least as good as the better (partition crossover: Whitley,
Hains and Howe, GECCO 2009).
"""

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints
from scheduler.matching.improving import put_back, put_out
from scheduler.matching.lending import lent
from scheduler.matching.ruining import Market
from scheduler.matching.tables import NOWHERE

_BETTER = 1e-9


def join(market: Market, other: Market) -> None:
    """Takes into `market` each patch of the other that is worth more."""
    patch = np.arange(len(market.gangs), dtype=np.int32)
    _join(market, other, patch, patch.copy(), np.zeros(len(patch)))


@njit(cache=True, nogil=True)
def _join(market: Market, other: Market, patch: Ints, moved: Ints, gain: Floats) -> None:
    market, other = lent(market), lent(other)
    patch, moved, gain = lent((patch, moved, gain))
    first, count = np.full(len(market.sold.seats), NOWHERE, np.int32), 0
    for at in range(len(patch)):
        if not _alike(market.gangs, market.parts, other.gangs, other.parts, at):
            moved[count] = at
            count += 1
            _stand(market.gangs, market.parts, at, first, patch)
            _stand(other.gangs, other.parts, at, first, patch)
    for at in moved[:count]:
        more = other.gangs[at].surplus - market.gangs[at].surplus
        gain[_root(patch, at)] += market.gangs[at].weight * more
    for at in moved[:count]:
        if gain[_root(patch, at)] > _BETTER:
            put_out(market, at)
    for at in moved[:count]:
        if gain[_root(patch, at)] > _BETTER:
            gang = other.gangs[at]
            put_back(market, at, gang, other.parts[gang.first : gang.first + gang.parts])


@njit(cache=True, nogil=True)
def _alike(gangs: Array, parts: Array, others: Array, their: Array, at: int) -> bool:
    """Whether a job has the same on either side."""
    first, count = gangs[at].first, gangs[at].parts
    if count != others[at].parts:
        return False
    for one in range(first, first + count):
        found = False
        for two in range(first, first + count):
            found |= parts[one].seat == their[two].seat and parts[one].gpus == their[two].gpus
        if not found:
            return False
    return True


@njit(cache=True, nogil=True)
def _stand(gangs: Array, parts: Array, at: int, first: Ints, patch: Ints) -> None:
    """Joins a job to the patches of all who stand on its nodes."""
    for one in range(gangs[at].first, gangs[at].first + gangs[at].parts):
        seat = parts[one].seat
        if first[seat] == NOWHERE:
            first[seat] = at
        patch[_root(patch, at)] = _root(patch, first[seat])


@njit(cache=True, nogil=True)
def _root(patch: Ints, at: int) -> int:
    """The job that a patch is known by."""
    while patch[at] != at:
        at = patch[at]
    return int(at)
