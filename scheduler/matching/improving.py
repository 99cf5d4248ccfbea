"""Who runs where: jobs choose one after another, and then ruin and recreate makes it better.

Each round of ruin takes a job that lacks much of what it could gain, puts out who stands where it
could go, who stands where those could go, and so on, and lets all of them choose anew, in another
order, by prices or by asks; what comes out is kept if it is worth as much or hardly less (Schrimpf et
al., J. Comp. Phys. 2000; the chain is that of ejections, Glover, Discrete Appl. Math. 1996).
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.book import Book
from scheduler.matching.choosing import choose
from scheduler.matching.desks import Mood, chance
from scheduler.matching.hoping import NOTHING
from scheduler.matching.lending import lent
from scheduler.matching.ruining import PUT_OUT, Market, any_guide, pick, regretful, shuffle
from scheduler.matching.supply import PART, Stock, give_back, let, taken
from scheduler.matching.tables import NOWHERE, Tables

GANG: Final = np.dtype(
    [
        ("surplus", "f8"), ("hope", "f8"), ("weight", "f8"), ("first", "i4"), ("parts", "i4"),
        ("size", "i4"), ("level", "i4"), ("is_out", "i4"),
    ],
    align=True,
)  # fmt: skip
"""How a job stands: USD per hour that it brings, and would bring were it alone; what they count
for, more for who has waited."""
LOOK: Final = 16
"""So many places of each rank are looked at, where not told otherwise."""
_ROUNDING: Final = 1e-9


class Undo(NamedTuple):
    """Those who were put out, with what they had, and the best that all had before."""

    job: Ints
    order: Floats
    gang: Array
    first: Ints
    part: Array
    best_gang: Array
    best_part: Array
    below: Floats
    """[1] what all bring now less what they brought then, never more than nothing."""


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
    most, parts = PUT_OUT + 1, max(len(market.parts), 1)
    return Undo(
        np.zeros(most, np.int32), np.zeros(most), np.zeros(most, GANG), np.zeros(most, np.int32),
        np.zeros(parts, PART), np.zeros(len(market.gangs), GANG), np.zeros(parts, PART), np.zeros(1),
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
    stood, had = np.zeros(1, GANG), np.zeros(1, PART)
    for at in order:
        stood[0] = market.gangs[at]
        had[0] = market.parts[stood[0].first]
        put_out(market, at)
        _place(market, at, Mood(0.0, LOOK, stood[0].surplus))
        if market.gangs[at].parts == 0:
            put_back(market, at, stood[0], had)


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
def improve(market: Market, rounds: int, spare: Undo, heat: float) -> None:
    """So many rounds of ruin and recreate. What comes out of one may be worth less, USD per hour, by
    `heat` in the mean; `return_to_best` ends it."""
    market, spare = lent(market), lent(spare)
    for _ in range(rounds):
        at = regretful(market)
        if at == NOWHERE:
            continue
        count = pick(market, at, spare.job)
        by, slack = any_guide(market.room.random), 0.0
        before, hoped = _ruin(market, spare, count)
        shuffle(market, spare.job, spare.order, count)
        if heat > 0:
            slack = -heat * np.log(1.0 - chance(market.room.random))
        after = _recreate(market, spare, count, hoped, before - slack, by)
        if after < before - slack:
            _restore(market, spare, count)
        elif heat > 0:
            if spare.below[0] == 0 and after < before:
                _keep(market, spare, count)
            spare.below[0] += after - before
            if spare.below[0] > -_ROUNDING:
                spare.below[0] = 0.0


@njit(cache=True, nogil=True, forceinline=True)
def _ruin(market: Market, spare: Undo, count: int) -> tuple[float, float]:
    """Puts out those who are picked; (what they brought, what they hope for)."""
    before, hoped, kept = 0.0, 0.0, 0
    for one in range(count):
        job = spare.job[one]
        gang = market.gangs[job]
        before += gang.weight * gang.surplus
        hoped += gang.weight * gang.hope
        spare.gang[one] = gang
        spare.first[one] = kept
        spare.part[kept : kept + gang.parts] = market.parts[gang.first : gang.first + gang.parts]
        kept += gang.parts
        put_out(market, job)
    return before, hoped


@njit(cache=True, nogil=True, forceinline=True)
def _recreate(
    market: Market, spare: Undo, count: int, hoped: float, least: float, guide: float
) -> float:  # fmt: skip
    """Lets them choose in their order until it is certain that they bring less than so much; what they
    bring if whoever has yet to choose has all that it hopes for."""
    after = hoped
    for _ in range(count):
        one = _first(spare.order[:count])
        gang = market.gangs[spare.job[one]]
        # What would bring less than this would have all put back.
        floor = gang.hope - (after - least + _ROUNDING) / gang.weight
        mood = Mood(guide, LOOK, max(floor, NOTHING))
        after += _place(market, spare.job[one], mood) - gang.weight * gang.hope
        if after < least - _ROUNDING:
            break
    return after


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


@njit(cache=True, nogil=True, forceinline=True)
def put_back(market: Market, at: int, gang: Record, had: Array) -> None:
    """Gives a job that has nothing these parts, and lets it stand as it did with them."""
    let(market.sold.seats, market.sold.kinds, market.left, at, had)
    market.parts[gang.first : gang.first + gang.parts] = had
    market.gangs[at] = gang
    market.gangs[at].is_out = 0


@njit(cache=True, nogil=True)
def _restore(market: Market, spare: Undo, count: int) -> None:
    for one in range(count):
        put_out(market, spare.job[one])
    for one in range(count):
        gang, kept = spare.gang[one], spare.first[one]
        put_back(market, spare.job[one], gang, spare.part[kept : kept + gang.parts])


@njit(cache=True, nogil=True)
def _keep(market: Market, spare: Undo, count: int) -> None:
    """Notes what stood before this round, the best so far."""
    spare.best_gang[:] = market.gangs
    spare.best_part[: len(market.parts)] = market.parts
    for one in range(count):
        gang, kept = spare.gang[one], spare.first[one]
        spare.best_gang[spare.job[one]] = gang
        spare.best_part[gang.first : gang.first + gang.parts] = spare.part[kept : kept + gang.parts]


@njit(cache=True, nogil=True)
def return_to_best(market: Market, spare: Undo) -> None:
    """Where rounds have lost something: to the best that was met."""
    market, spare = lent(market), lent(spare)
    if spare.below[0] == 0:
        return
    spare.below[0] = 0.0
    for at in range(len(market.gangs)):
        put_out(market, at)
    for at in range(len(market.gangs)):
        gang = spare.best_gang[at]
        put_back(market, at, gang, spare.best_part[gang.first : gang.first + gang.parts])
