"""Who runs where: jobs choose one after another, and then ruin and recreate makes it better.

Each round of ruin takes a job that lacks much of what it could gain, puts out who stands where it
could go, who stands where those could go, and so on, and lets all of them choose anew, in another
order, by prices or by asks; what comes out is kept unless it is worth less (Schrimpf et al., J. Comp.
Phys. 2000; the chain is that of ejections, Glover, Discrete Appl. Math. 1996).
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints
from scheduler.matching.book import Book
from scheduler.matching.choosing import choose
from scheduler.matching.desks import Desk, Mood, chance, rank
from scheduler.matching.hoping import NOTHING, Hopes
from scheduler.matching.lending import lent
from scheduler.matching.supply import NETS, PART, Stock, Supply, give_back, let, taken
from scheduler.matching.tables import NOWHERE, Tables, accepts

GANG: Final = np.dtype(
    [
        ("surplus", "f8"), ("hope", "f8"), ("weight", "f8"), ("first", "i4"), ("parts", "i4"),
        ("size", "i4"), ("level", "i4"), ("is_out", "i4"),
    ],
    align=True,
)  # fmt: skip
"""How a job stands: USD per hour that it brings, and would bring were it alone; what they count
for, more for who has waited."""
_PUT_OUT: Final = 10
_TRIED: Final = 4
_OF: Final = 64
"""Among so many jobs one more is looked at for the next that lacks most."""
LOOK: Final = 16
"""So many places of each rank are looked at, where not told otherwise."""
_ROUNDING: Final = 1e-9
_PLACES: Final = 40
"""So many of the cheapest places may be ruined for a gang."""
_FALLS_BACK: Final = 16
"""So many kinds beyond those that it envies may be ruined for a job."""


class Market(NamedTuple):
    """A book while it is cleared."""

    of: Tables
    hoped: Hopes
    sold: Supply
    left: Stock
    room: Desk
    gangs: Array
    parts: Array


class Undo(NamedTuple):
    """Those who were put out, with what they had."""

    job: Ints
    order: Floats
    gang: Array
    first: Ints
    part: Array


def gangs(of: Tables, book: Book) -> tuple[Array, Array]:
    """(how each job stands, room for all their parts): nobody has anything yet."""
    params = book.params
    waited = params.ageing_per_hour * book.job_age_h.astype(float)
    most = np.minimum(of.jobs["most"], max(len(of.nodes), 1)).astype(np.int64)
    found = np.zeros(len(most), GANG)
    found["first"] = np.cumsum(most) - most
    found["level"] = NOWHERE
    found["weight"] = 1 + np.minimum(waited, params.ageing_cap)
    return found, np.zeros(int(most.sum()), PART)


def undo(market: Market) -> Undo:
    """Room for a round of ruin."""
    most = _PUT_OUT + 1
    return Undo(
        np.zeros(most, np.int32), np.zeros(most), np.zeros(most, GANG), np.zeros(most, np.int32),
        np.zeros(max(len(market.parts), 1), PART),
    )  # fmt: skip


@njit(cache=True, nogil=True)
def hope(market: Market, jobs: Ints) -> None:
    """Notes what each of these would bring, were it alone."""
    market, jobs = lent(market), lent(jobs)
    for at in jobs:
        score, _, count = choose(
            at, market.of, market.hoped, market.sold, market.left, market.room,
            Mood(0.0, LOOK, NOTHING),
        )  # fmt: skip
        market.gangs[at].hope = score if count else 0.0


@njit(cache=True, nogil=True)
def fill(market: Market, order: Ints, guide: float, look: int) -> None:
    """Lets those who have nothing choose in this order, by prices (`guide` 1) or asks (0), and look at
    so many places of each rank."""
    market, order = lent(market), lent(order)
    for at in order:
        if market.gangs[at].parts == 0:
            _place(market, at, Mood(guide, look, NOTHING))


@njit(cache=True, nogil=True)
def move(market: Market, order: Ints) -> None:
    """In this order, each of these, which have one node, goes where it gains more by asks, if anywhere."""
    market, order = lent(market), lent(order)
    had = np.zeros(1, PART)
    for at in order:
        gang = market.gangs[at]
        had[0] = market.parts[gang.first]
        level, surplus, size = gang.level, gang.surplus, gang.size
        put_out(market, at)
        _place(market, at, Mood(0.0, LOOK, surplus))
        if gang.parts == 0:
            let(market.sold.seats, market.sold.kinds, market.left, at, had)
            market.parts[gang.first] = had[0]
            gang.parts, gang.level, gang.surplus, gang.size = 1, level, surplus, size


@njit(cache=True, nogil=True)
def begin(market: Market, whole: Stock, orders: Ints, guides: Floats) -> None:
    """From nothing, of a stock that is `whole`: all choose in one of these orders [n, J], by its share of
    prices, and whoever gets nothing so by asks. The order is kept in which most comes of it."""
    market, whole, orders, guides = lent(market), lent(whole), lent(orders), lent(guides)
    best, most, last = 0, -np.inf, len(orders) - 1
    for one in range(len(orders)):
        worth = _afresh(market, whole, orders[one], guides[one])
        if worth > most:
            best, most = one, worth
    if best != last:
        _afresh(market, whole, orders[best], guides[best])


@njit(cache=True, nogil=True)
def _afresh(market: Market, whole: Stock, order: Ints, guide: float) -> float:
    """All choose in this order; what comes of it."""
    gangs, left, total = market.gangs, market.left, 0.0
    left.free[:], left.tree[:], left.head[:] = whole.free, whole.tree, whole.head
    left.shelf[:], left.there[:], left.tenant_count[:] = whole.shelf, whole.there, 0
    for at in range(len(gangs)):
        gangs[at].parts, gangs[at].level, gangs[at].surplus, gangs[at].size = 0, NOWHERE, 0.0, 0
    for by in (guide, 0.0):
        fill(market, order, by, LOOK)
    for at in range(len(gangs)):
        total += gangs[at].weight * gangs[at].surplus
    return total


@njit(cache=True, nogil=True)
def improve(market: Market, rounds: int, spare: Undo) -> None:
    """So many rounds of ruin and recreate."""
    market, spare = lent(market), lent(spare)
    for _ in range(rounds):
        at = _regretful(market)
        if at == NOWHERE:
            continue
        count = _pick(market, at, spare.job)
        before, hoped, guide = 0.0, 0.0, _guide(market.room.random)
        kept = 0
        for one in range(count):
            job = spare.job[one]
            gang = market.gangs[job]
            before += gang.weight * gang.surplus
            hoped += gang.weight * gang.hope
            spare.gang[one] = gang
            spare.first[one] = kept
            spare.part[kept : kept + gang.parts] = market.parts[
                gang.first : gang.first + gang.parts
            ]
            kept += gang.parts
            put_out(market, job)
        _shuffle(market, spare.job, spare.order, count)
        # What they bring if whoever has yet to choose has all that it hopes for.
        after = hoped
        for _ in range(count):
            one = _first(spare.order[:count])
            gang = market.gangs[spare.job[one]]
            # What would bring less than this would have all put back.
            floor = gang.hope - (after - before + _ROUNDING) / gang.weight
            mood = Mood(guide, LOOK, max(floor, NOTHING))
            after += _place(market, spare.job[one], mood) - gang.weight * gang.hope
            if after < before - _ROUNDING:
                break
        if after < before:
            _restore(market, spare, count)


@njit(cache=True, nogil=True)
def _first(order: Floats) -> int:
    """Whose turn is first; it has had it then."""
    found = 0
    for one in range(1, len(order)):
        if order[one] < order[found]:
            found = one
    order[found] = np.inf
    return found


@njit(cache=True, nogil=True, forceinline=True)
def _place(market: Market, at: int, mood: Mood) -> float:
    """Lets a job choose; what it brings."""
    gang, seats = market.gangs[at], market.sold.seats
    score, level, count = choose(
        at, market.of, market.hoped, market.sold, market.left, market.room, mood
    )
    gang.level, gang.parts, gang.surplus, gang.size = level, count, 0.0, 0
    if count:
        chosen = market.room.chosen[:count]
        gang.surplus = score + _beyond_asks(seats, market.left.free, chosen, mood.guide)
        let(seats, market.sold.kinds, market.left, at, chosen)
        market.parts[gang.first : gang.first + count] = chosen
        gang.size = chosen["gpus"].sum()
    return float(gang.weight * gang.surplus)


@njit(cache=True, nogil=True, forceinline=True)
def _beyond_asks(seats: Array, free: Ints, chosen: Array, guide: float) -> float:
    """What the score has counted beyond asks."""
    total = 0.0
    for one in range(len(chosen)):
        seat, gpus = seats[chosen[one].seat], chosen[one].gpus
        total += taken(seat, guide, free[chosen[one].seat], gpus) - gpus * seat.ask
    return total


@njit(cache=True, nogil=True, forceinline=True)
def put_out(market: Market, at: int) -> None:
    """Takes from a job all that it has."""
    gang = market.gangs[at]
    if gang.parts:
        parts = market.parts[gang.first : gang.first + gang.parts]
        give_back(market.sold.seats, market.left, at, parts)
    gang.parts, gang.level, gang.surplus, gang.is_out = 0, NOWHERE, 0.0, 0


@njit(cache=True, nogil=True)
def _restore(market: Market, spare: Undo, count: int) -> None:
    for one in range(count):
        put_out(market, spare.job[one])
    for one in range(count):
        at, gang = spare.job[one], market.gangs[spare.job[one]]
        had = spare.part[spare.first[one] : spare.first[one] + spare.gang[one].parts]
        if len(had):
            let(market.sold.seats, market.sold.kinds, market.left, at, had)
            market.parts[gang.first : gang.first + len(had)] = had
        market.gangs[at] = spare.gang[one]
        market.gangs[at].is_out = 0


@njit(cache=True, nogil=True)
def _guide(random: Array) -> float:
    """Mostly by asks; else by prices, or between the two."""
    drawn, guide = chance(random), 0.0
    if drawn >= 0.7:
        guide = chance(random)
    elif drawn >= 0.4:
        guide = 1.0
    return guide


@njit(cache=True, nogil=True)
def _regretful(market: Market) -> int:
    """Of a few jobs the one that lacks most; NOWHERE if none lacks anything."""
    gangs, worst, found = market.gangs, 1e-9, NOWHERE
    for _ in range(_TRIED + len(gangs) // _OF):
        at = int(chance(market.room.random) * len(gangs))
        lacks = gangs[at].weight * (gangs[at].hope - gangs[at].surplus)
        if lacks > worst:
            worst, found = lacks, at
    return found


@njit(cache=True, nogil=True)
def _pick(market: Market, at: int, picked: Ints) -> int:
    """Whom to put out: the job, who stands where it could go, and so on from each to the next; and now
    and then one who waits. How many."""
    gangs, jobs, random = market.gangs, market.of.jobs, market.room.random
    picked[0], gangs[at].is_out = at, 1
    count, one, most = 1, 0, 2 + int(chance(random) * (_PUT_OUT - 1))
    while one < count < most:
        job = picked[one]
        if jobs[job].most > 1 and jobs[job].level > 0 and chance(random) < 0.5:
            count = _of_a_place(market, job, picked, count, most)
        else:
            count = _of_a_kind(market, job, picked, count, most)
        one += 1
    other = int(chance(random) * 2 * len(gangs))
    if other < len(gangs) and gangs[other].parts == 0 and not gangs[other].is_out:
        picked[count], gangs[other].is_out = other, 1
        count += 1
    return count


@njit(cache=True, nogil=True)
def _tenants(
    gangs: Array, tenants: Ints, there: int, picked: Ints, count: int, most: int
) -> int:  # fmt: skip
    """Picks the first `there` of these, up to `most` in all; how many are picked now."""
    for one in range(there):
        job = tenants[one]
        if count < most and not gangs[job].is_out:
            picked[count], gangs[job].is_out = job, 1
            count += 1
    return count


@njit(cache=True, nogil=True)
def _of_a_place(market: Market, at: int, picked: Ints, count: int, most: int) -> int:
    """Picks who is at one of the places that are cheapest for a gang of this size."""
    job, limit, sold, left = market.of.jobs[at], market.of.limit[at], market.sold, market.left
    random = market.room.random
    for _ in range(2 * _TRIED):
        gpu_class, net = int(chance(random) * len(limit)), int(chance(random) * NETS)
        where = rank(gpu_class, net, job.tier, job.least)
        first, end = sold.rank_start[where], sold.rank_start[where + 1]
        if limit[gpu_class] <= 0 or first == end:
            continue
        drawn = chance(random) * chance(random)
        place = sold.places[sold.ranked[first + int(drawn * min(end - first, _PLACES))].place]
        if not accepts(job, place):
            continue
        missing = job.least + 8
        for one in range(place.first, place.end):
            seat = sold.shelf[one].seat
            count = _tenants(
                market.gangs, left.tenants[seat], left.tenant_count[seat], picked, count, most
            )
            missing -= sold.seats[seat].gpus
            if missing <= 0:
                break
        break
    return count


@njit(cache=True, nogil=True)
def _of_a_kind(market: Market, at: int, picked: Ints, count: int, most: int) -> int:
    """Picks who is on a cheap node of a kind that promises more than the job has, or not much less."""
    hoped, left, gang, random = market.hoped, market.left, market.gangs[at], market.room.random
    first, end = hoped.start[at], hoped.start[at + 1]
    if first == end:
        return count
    size, envied = max(gang.size, market.of.jobs[at].least), first
    while envied < end and hoped.gain[envied] * size > gang.surplus:
        envied += 1
    drawn = chance(random)
    if chance(random) < 0.7:
        one = first + int(drawn * min(envied + 1 - first, end - first))
    else:
        one = min(envied + int(drawn * drawn * _FALLS_BACK), end - 1)
    kind = market.sold.kinds[hoped.kind[one]]
    seat = kind.first + int(chance(random) * chance(random) * (kind.end - kind.first))
    return _tenants(market.gangs, left.tenants[seat], left.tenant_count[seat], picked, count, most)


@njit(cache=True, nogil=True)
def _shuffle(market: Market, picked: Ints, order: Floats, count: int) -> None:
    """In which order they choose: the least first."""
    random, drawn = market.room.random, chance(market.room.random)
    for one in range(count):
        job, gang = market.of.jobs[picked[one]], market.gangs[picked[one]]
        hope = gang.weight * gang.hope
        if drawn < 0.4:
            order[one] = -hope / np.sqrt(job.least) * (0.6 + 0.8 * chance(random))
        elif drawn < 0.6:
            order[one] = -job.least * (0.9 + 0.2 * chance(random))
        elif drawn < 0.8:
            order[one] = -hope / job.least * (0.6 + 0.8 * chance(random))
        else:
            order[one] = chance(random)
    if chance(random) < 0.3:
        order[0] = -np.inf
