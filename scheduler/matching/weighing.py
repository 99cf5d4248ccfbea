"""Which few places gain most together beyond a toll on each GPU.

Of each place it is known at once what its GPUs could gain at most. Only those are laid out that could
then be among the best: two of five in a round, where a large gang may know of two hundred.
"""

from typing import Final

from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.gathering import Bench, lay_out
from scheduler.matching.offers import FAR
from scheduler.matching.tables import TIERS

ROUNDING: Final = 1e-9
"""USD per hour, by which sums of the same amounts may differ."""


@njit(cache=True, nogil=True)
def hope_for(
    job: Record, worth: float, size: int, place: Record, there: Ints, failures: Floats, spot: Record
) -> None:  # fmt: skip
    """Notes what GPUs of a spot gain at most, tier by tier, if so many are `there`."""
    before = 0
    for tier in range(TIERS):
        gpus, gain, at = 0, -FAR, tier
        if tier <= job.tier:
            gpus = there[2 * tier + job.long] - before
            before += gpus
        if gpus:
            risk = failures[tier] * job.lost * size
            gain = worth * (spot.keeps - risk) - place.cheapest[2 * tier + job.long] + ROUNDING
        while at > 0 and spot.hope[at - 1] < gain:
            spot.hope[at], spot.there[at] = spot.hope[at - 1], spot.there[at - 1]
            at -= 1
        spot.hope[at], spot.there[at] = gain, gpus


@njit(cache=True, nogil=True)
def _hope_beyond(spot: Record, toll: float) -> float:
    """No less than a spot gains beyond a toll."""
    total, left = 0.0, spot.most
    for at in range(TIERS):
        if left == 0 or spot.hope[at] <= toll:
            break
        take = min(spot.there[at], left)
        total += take * (spot.hope[at] - toll)
        left -= take
    most = max(spot.few * (spot.hope[0] - toll), spot.most * (spot.mean - toll))
    return float(min(total, max(most, 0.0)))


@njit(cache=True, nogil=True)
def lay_out_best(
    job: Record, size: int, limit: float, known: int, sites: int, enough: float, places: Array,
    shelf: Array, failures: Floats, guide: float, work: Bench,
) -> int:  # fmt: skip
    """Lays out those of the spots that could gain most, `sites` at most; where their pieces end. None,
    and 0, if even these could gain no more than is `enough`."""
    spots, best, count, total, end = work.spots, work.best, 0, 0.0, 0
    for one in range(known):
        spots[one].gain = _hope_beyond(spots[one], 0.0)
        count = _stand(spots, best, count, sites, one)
    for one in range(count):
        total += spots[best[one]].gain
    if total > enough:
        for one in range(count):
            spot = spots[best[one]]
            end = lay_out_spot(job, size, limit, places, shelf, failures, guide, end, spot, work)
    return end


@njit(cache=True, nogil=True)
def weigh(
    job: Record, size: int, limit: float, known: int, toll: float, sites: int, before: int,
    places: Array, shelf: Array, failures: Floats, guide: float, end: int, work: Bench,
) -> tuple[float, int, int, bool, int]:  # fmt: skip
    """(what the best of so many spots gain beyond a toll on each GPU, how many they are, GPUs that
    they give, whether they are those of before, where the pieces of those that are laid out end); they
    stand in `work.picked`, `sites` of them at most, and `before` of them stood there."""
    spots, pieces, best, count = work.spots, work.pieces, work.best, 0
    # 1. Of those that are laid out the best.
    for one in range(known):
        if spots[one].end:
            _gain_beyond(spots[one], pieces, toll)
            count = _stand(spots, best, count, sites, one)
    # 2. Any other that could be better.
    for one in range(known):
        spot = spots[one]
        if spot.end == 0 and spot.hope[0] > toll:
            least = spots[best[count - 1]].gain if count == sites else 0.0
            if _hope_beyond(spot, toll) >= least:
                end = lay_out_spot(
                    job, size, limit, places, shelf, failures, guide, end, spot, work
                )
                _gain_beyond(spot, pieces, toll)
                count = _stand(spots, best, count, sites, one)
    total, gpus, same = 0.0, 0, count == before
    for one in range(count):
        spot = spots[best[one]]
        total += spot.gain
        gpus += spot.gives
        same &= work.picked[one] == best[one]
        work.picked[one] = best[one]
    return total, count, gpus, same, end


@njit(cache=True, nogil=True)
def lay_out_spot(
    job: Record, size: int, limit: float, places: Array, shelf: Array, failures: Floats,
    guide: float, end: int, spot: Record, work: Bench,
) -> int:  # fmt: skip
    """Lays out a spot's pieces after so many others; where they end."""
    spot.first = end
    spot.end = lay_out(
        job, size, limit, spot.keeps, places[spot.place], shelf, failures, guide, end, spot.most,
        work,
    )  # fmt: skip
    return int(spot.end)


@njit(cache=True, nogil=True)
def _gain_beyond(spot: Record, pieces: Array, toll: float) -> None:
    """What a spot gains beyond a toll, and how many GPUs it gives for it."""
    gain, gives = 0.0, 0
    for at in range(spot.first, spot.end):
        more, take = pieces[at].gain - toll, min(pieces[at].free, spot.most - gives)
        if more <= 0:
            take = min(take, spot.least - gives)
        if take <= 0:
            break
        gain += take * more
        gives += take
    spot.gain, spot.gives = gain, gives


@njit(cache=True, nogil=True)
def _stand(spots: Array, best: Ints, count: int, sites: int, one: int) -> int:
    """Puts a spot among the best, of which there are `sites` at most, if it gains anything and is one;
    how many they are. Of equals the first comes first."""
    gain = spots[one].gain
    if gain <= 0:
        return count
    at = count
    while at > 0 and (
        spots[best[at - 1]].gain < gain or (spots[best[at - 1]].gain == gain and best[at - 1] > one)
    ):
        if at < sites:
            best[at] = best[at - 1]
        at -= 1
    if at < sites:
        best[at] = one
    return min(count + 1, sites)
