"""What a choice works with: room to lay things out in, how it looks, and in which lists of places.

A place promises what its GPUs would gain at its uplink. As the places of a list stand by price, only
those matter that no cheaper one beats in uplink: a handful of a hundred.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.gathering import Bench, bench
from scheduler.matching.supply import DOUBLINGS, NETS, PART, Supply
from scheduler.matching.tables import TIERS

_CANDIDATES: Final = 256
_FRONT: Final = np.dtype([("ask", "f8"), ("uplink", "f8")])


class Fronts(NamedTuple):
    """The places of each of the supply's lists that no cheaper one beats in uplink, and room for one
    choice."""

    front: Array
    start: Ints
    """Where in `front` each list begins."""
    hope: Floats
    """[C]"""


def _fronts(sold: Supply) -> Fronts:
    """Those of what is sold."""
    front, start = np.zeros(len(sold.ranked), _FRONT), np.zeros_like(sold.rank_start)
    count = _collect(sold.ranked, sold.rank_start, front, start)
    classes = len(start) // (NETS * TIERS * DOUBLINGS)
    return Fronts(front[:count].copy(), start, np.zeros(classes))


@njit(cache=True, nogil=True)
def _collect(ranked: Array, rank_start: Ints, front: Array, start: Ints) -> int:
    count = 0
    for list_of in range(len(rank_start) - 1):
        start[list_of], most = count, -1.0
        for one in range(rank_start[list_of], rank_start[list_of + 1]):
            uplink = ranked[one].uplink
            if uplink > most:
                front[count].ask, front[count].uplink = ranked[one].ask, uplink
                most = uplink
                count += 1
    start[len(rank_start) - 1] = count
    return count


class Desk(NamedTuple):
    """Room for one choice: `chosen` is what `choose` found."""

    chosen: Array
    trial: Array
    work: Bench
    fronts: Fronts
    random: Array
    """State of the generator (xorshift64*, Vigna 2016), one for each clearing."""


class Mood(NamedTuple):
    """How a job chooses."""

    guide: float
    look: int
    """How many places are looked at in each rank."""
    floor: float
    """What brings no more, USD per hour at asks, is as good as nothing."""


def desk(most: int, sold: Supply, seed: int) -> Desk:
    """For gangs of up to so many GPUs of what is sold, with a book's seed."""
    longest = int((sold.places["end"] - sold.places["first"]).max(initial=1))
    pieces = min(_CANDIDATES * longest, len(sold.seats))
    state = np.array([seed * 0x9E3779B97F4A7C15 % 2**64 or 1], np.uint64)
    return Desk(
        np.zeros(most + 1, PART), np.zeros(most + 1, PART), bench(pieces, _CANDIDATES, len(sold.places)),
        _fronts(sold), state,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def chance(random: Array) -> float:
    """A number from 0 up to 1."""
    state = random[0]
    state ^= state >> np.uint64(12)
    state ^= state << np.uint64(25)
    state ^= state >> np.uint64(27)
    random[0] = state
    return float(state * np.uint64(0x2545F4914F6CDD1D) >> np.uint64(11)) / 9007199254740992.0


@njit(cache=True, nogil=True)
def rank(gpu_class: int, net: int, tier: int, gpus: int) -> int:
    """Which list of places to look at for the largest power of two within so many GPUs."""
    power = 0
    while 2 << power <= gpus:
        power += 1
    return ((gpu_class * NETS + net) * TIERS + tier) * DOUBLINGS + min(power, DOUBLINGS - 1)


@njit(cache=True, nogil=True, forceinline=True)
def free_for(job: Record, there: Ints) -> int:
    """How many free GPUs of a place the job accepts, whatever they gain."""
    return int(there[2 * job.tier + job.long])
