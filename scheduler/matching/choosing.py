"""The best choice of one job among what is left: a node, a site, or several sites.

GPUs count for what others would pay for them: what a node's free GPUs are worth in the largest
slots, less what the rest is worth without them (`held`). So a job leaves whole blocks, and whatever
is in demand, to those who gain more by it. How much of prices counts (`guide`, 0 to 1) is the
caller's; at 0 it is asks.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.book import NODE_GPUS
from scheduler.matching.hoping import NOTHING, Hopes
from scheduler.matching.offers import FAR
from scheduler.matching.placing import ANY, NODE, SITE
from scheduler.matching.supply import DOUBLINGS, NETS, PART, Stock, Supply, first_with, held, taken
from scheduler.matching.tables import NOWHERE, TIERS, Rules, Tables, accepts, kept

_CANDIDATES: Final = 128
_RULES: Final = 6
_SEATS: Final = 8
"""So many nodes of a kind are looked at, where prices may make a dearer one the better."""


class Desk(NamedTuple):
    """Room for one choice: `chosen` is what `choose` found."""

    chosen: Array
    trial: Array
    whole: Array
    spots: Array
    order: Floats
    cost: Floats
    which: Ints
    random: Array
    """State of the generator (xorshift64*, Vigna 2016), one for each clearing."""


class Mood(NamedTuple):
    """How a job chooses."""

    guide: float
    look: int
    """How many places are looked at in each rank."""
    blind: float
    """The chance to overlook one."""
    hasty: bool
    """Whether a gang over several sites is sought only where a GPU gains more than in what is known
    already: right but where the cheapest site is small."""


_SPOT: Final = np.dtype([("gain", "f8"), ("place", "i4"), ("gpus", "i4")])


def desk(most: int, sold: Supply, seed: int) -> Desk:
    """For gangs of up to so many GPUs of what is sold, with a book's seed."""
    longest = int((sold.places["end"] - sold.places["first"]).max(initial=1))
    first, second, third = (np.zeros(most + 1, PART) for _ in range(3))
    state = np.array([seed * 0x9E3779B97F4A7C15 % 2**64 or 1], np.uint64)
    return Desk(
        first, second, third, np.zeros(_CANDIDATES, _SPOT), np.zeros(_CANDIDATES), np.zeros(longest), np.zeros(longest, np.int32),
        state,
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
def choose(
    at: int, of: Tables, hoped: Hopes, sold: Supply, left: Stock, room: Desk, mood: Mood
) -> tuple[float, int, int]:
    """(score, level, parts) of job `at`, the parts in `room.chosen`; no parts if nothing gains."""
    job, limit = of.jobs[at], of.limit[at]
    kind = hoped.kind[hoped.start[at] : hoped.start[at + 1]]
    promise = hoped.gain[hoped.start[at] : hoped.start[at + 1]]
    score, level, parts = NOTHING, NOWHERE, 0
    for gpus in range(job.least, min(job.most, NODE_GPUS) + 1):
        found, seat = _node(
            job, limit, gpus, kind, promise, sold.seats, sold.kinds, left,
            of.rules.in_node, of.rules.failures, room.random, mood, score,
        )  # fmt: skip
        if seat >= 0:
            score, level, parts = found, NODE, 1
            room.chosen[0].seat, room.chosen[0].gpus = seat, gpus
    if job.most == 1 or job.level == NODE:
        return score, level, parts
    for wanted in range(1 if job.least == job.most else 2):
        size = job.least if wanted == 0 else job.most
        if size > 1:
            found, count = on_site(job, limit, size, of.rules, sold, left, room, mood, score)
            if count:
                score, level, parts = found, SITE, count
        if size >= max(2, 2 * job.site_least) and job.level == ANY and job.sites_most > 1:
            found, count = over_sites(job, limit, size, of.rules, sold, left, room, mood, score)
            if count:
                score, level, parts = found, ANY, count
    return score, level, parts


@njit(cache=True, nogil=True)
def _node(
    job: Record, limit: Floats, gpus: int, kind: Ints, promise: Floats, seats: Array, kinds: Array,
    left: Stock, in_node: Floats, failures: Floats, random: Array, mood: Mood, score: float,
) -> tuple[float, int]:  # fmt: skip
    """(score, seat) of the best node for so many GPUs, if it scores more than so much."""
    size, tree, head, free = 0, left.tree, left.head, left.free
    while 1 << size < gpus:
        size += 1
    known, best = 1 << size == gpus, NOWHERE
    for one in range(len(kind)):
        if promise[one] * gpus <= score:
            break
        here = kinds[kind[one]]
        seat = head[kind[one], size]
        if not known:
            seat = first_with(tree, here.first, here.end, gpus)
        keeps = 1 - job.kappa * in_node[here.gpu_class] if gpus > 1 else 1.0
        worth = limit[here.gpu_class] * (keeps - failures[here.tier] * job.lost * gpus)
        for _ in range(_SEATS):
            if seat >= here.end or gpus * (worth - seats[seat].ask) <= score:
                break
            found = gpus * worth - taken(seats[seat], mood.guide, free[seat], gpus)
            if found > score and not _overlooks(random, mood.blind):
                score, best = found, seat
            if mood.guide == 0:
                break
            seat = first_with(tree, seat + 1, here.end, gpus)
    return score, best


@njit(cache=True, nogil=True)
def _overlooks(random: Array, blind: float) -> bool:
    return blind > 0 and chance(random) < blind


@njit(cache=True, nogil=True)
def fill(
    job: Record, least: int, amount: int, size: int, limit: float, keeps: float, place: Record,
    shelf: Array, failures: Floats, mood: Mood, room: Desk, parts: Array,
) -> tuple[float, int, int]:  # fmt: skip
    """(score, GPUs, parts) of up to `amount` GPUs of a place, for a gang of `size`: the best first,
    `least` of them whatever they gain, and then those that gain something."""
    lost, cost, which = job.lost * size * limit, room.cost, room.which
    known, count, left, total = 0, 0, amount, 0.0
    for at in range(place.first, place.end):
        one = shelf[at]
        if one.free and one.tier <= job.tier and one.long >= job.long:
            paid = held(one, mood.guide, one.free) / one.free
            cost[known], which[known] = failures[one.tier] * lost + paid, at
            known += 1
    for done in range(known):
        best = _cheapest(shelf, which, cost, done, known, left, failures, lost, mood.guide)
        cost[best], cost[done] = cost[done], cost[best]
        which[best], which[done] = which[done], which[best]
        one = shelf[which[done]]
        worth, take = limit * keeps - failures[one.tier] * lost, min(one.free, left)
        gain = take * worth - taken(one, mood.guide, one.free, take)
        if gain <= NOTHING * take:
            take = min(take, least - (amount - left))
            if take <= 0:
                break
            gain = take * worth - taken(one, mood.guide, one.free, take)
        parts[count].seat, parts[count].gpus = one.seat, take
        count += 1
        total += gain
        left -= take
        if left == 0:
            break
    return total, amount - left, count


@njit(cache=True, nogil=True)
def _cheapest(
    shelf: Array, which: Ints, cost: Floats, first: int, end: int, gpus: int, failures: Floats,
    lost: float, guide: float,
) -> int:  # fmt: skip
    """Of those that stand from `first` to `end`: the one whose GPUs cost least as a whole or, where
    it has more than so many, the one from which these cost least."""
    best = first
    for at in range(first + 1, end):
        if cost[at] < cost[best]:
            best = at
    if shelf[which[best]].free <= gpus:
        return best
    least = FAR
    for at in range(first, end):
        one = shelf[which[at]]
        if one.free >= gpus:
            paid = taken(one, guide, one.free, gpus) + gpus * failures[one.tier] * lost
            if paid < least:
                best, least = at, paid
    return best


@njit(cache=True, nogil=True)
def rank(gpu_class: int, net: int, tier: int, gpus: int) -> int:
    """Which list of places to look at for the largest power of two within so many GPUs."""
    power = 0
    while 2 << power <= gpus:
        power += 1
    return ((gpu_class * NETS + net) * TIERS + tier) * DOUBLINGS + min(power, DOUBLINGS - 1)


@njit(cache=True, nogil=True)
def on_site(
    job: Record, limit: Floats, size: int, rules: Rules, sold: Supply, left: Stock, room: Desk,
    mood: Mood, score: float,
) -> tuple[float, int]:  # fmt: skip
    """(score, parts) of the best site for up to `size` GPUs, if it scores more than so much."""
    places, ranked, rank_start = sold.places, sold.ranked, sold.rank_start
    shelf, chosen, trial, random = (
        left.shelf, room.chosen, room.trial, room.random,
    )  # fmt: skip
    in_site, failures, parts = rules.in_site, rules.failures, 0
    least_risk = failures[0] * job.lost * size
    for net in range(NETS * len(limit)):
        gpu_class, keeps, seen = net // NETS, 1 - job.kappa * in_site[net % NETS], 0
        worth = limit[gpu_class]
        if worth <= 0:
            continue
        list_of = rank(gpu_class, net % NETS, job.tier, job.least)
        for one in range(rank_start[list_of], rank_start[list_of + 1]):
            if size * (worth * (keeps - least_risk) - ranked[one].ask) <= score or seen > mood.look:
                break
            place = places[ranked[one].place]
            if _room(job, left.there[ranked[one].place]) < job.least:
                continue
            if place.end - place.first < 2 or not accepts(job, place):
                continue
            seen += 1
            found, gpus, count = fill(
                job, job.least, size, size, worth, keeps, place, shelf, failures, mood, room, trial,
            )  # fmt: skip
            if gpus < job.least or count < 2 or found <= score:
                continue
            if not _overlooks(random, mood.blind):
                score, parts = found, count
                chosen[:count] = trial[:count]
    return score, parts


@njit(cache=True, nogil=True)
def over_sites(
    job: Record, limit: Floats, size: int, rules: Rules, sold: Supply, left: Stock, room: Desk,
    mood: Mood, score: float,
) -> tuple[float, int]:  # fmt: skip
    """(score, parts) of up to `size` GPUs over several sites, if that scores more than so much.

    The places that promise most are put together in six ways: by what they gain in all, by the
    GPU, or by the GPU for a fair share; taking all that each has, or no more than its share.
    """
    parts, least = 0, score if mood.hasty else NOTHING
    for gpu_class in range(len(limit)):
        if limit[gpu_class] <= 0:
            continue
        if _hope(job, limit, size, gpu_class, rules, sold) <= score:
            continue
        known = _spots(job, limit, size, gpu_class, rules, sold, left, room, mood, least)
        if known < 2 or _most(room.spots, known, job.sites_most, room.order) <= score:
            continue
        for rule in range(_RULES):
            total, count = _together(job, limit, size, known, rule, rules, sold, left, room, mood)
            if total > score:
                score, parts = total, count
                room.chosen[:count] = room.whole[:count]
    return score, parts


@njit(cache=True, nogil=True)
def _hope(
    job: Record, limit: Floats, size: int, gpu_class: int, rules: Rules, sold: Supply
) -> float:
    """No gang of so many GPUs over sites of a class gains more: each as cheap as the cheapest."""
    hope = -FAR
    for net in range(NETS):
        first = rank(gpu_class, net, job.tier, job.site_least)
        if sold.rank_start[first] < sold.rank_start[first + 1]:
            ask = sold.ranked[sold.rank_start[first]].ask
            hope = max(hope, limit[gpu_class] * (1 - rules.failures[0] * job.lost * size) - ask)
    return size * hope


@njit(cache=True, nogil=True)
def _spots(
    job: Record, limit: Floats, size: int, gpu_class: int, rules: Rules, sold: Supply, left: Stock,
    room: Desk, mood: Mood, score: float,
) -> int:  # fmt: skip
    """How many places of a class could be a part of it; they stand in `room.spots`."""
    places, ranked, rank_start = sold.places, sold.ranked, sold.rank_start
    shelf, spots, trial, random = (
        left.shelf, room.spots, room.trial, room.random,
    )  # fmt: skip
    failures, worth, known = rules.failures, limit[gpu_class], 0
    least_risk = failures[0] * job.lost * size
    for net in range(NETS):
        list_of, seen = rank(gpu_class, net, job.tier, job.site_least), 0
        for one in range(rank_start[list_of], rank_start[list_of + 1]):
            if size * (worth * (1 - least_risk) - ranked[one].ask) <= score or seen > mood.look:
                break
            gpus = min(_room(job, left.there[ranked[one].place]), size)
            if gpus < job.site_least:
                continue
            place = places[ranked[one].place]
            keeps = kept(job, place.uplink)
            if size * (worth * (keeps - least_risk) - ranked[one].ask) <= score:
                continue
            if not accepts(job, place) or known == len(spots):
                continue
            seen += 1
            found, _, _ = fill(
                job, 0, size, size, worth, keeps, place, shelf, failures, mood, room, trial,
            )  # fmt: skip
            if not _overlooks(random, mood.blind):
                spots[known].place, spots[known].gpus = ranked[one].place, gpus
                spots[known].gain = found
                known += 1
    return known


@njit(cache=True, nogil=True)
def _room(job: Record, there: Ints) -> int:
    """How many free GPUs of a place the job accepts, whatever they gain."""
    total = 0
    for tier in range(job.tier + 1):
        total += there[2 * tier + 1]
        if job.long == 0:
            total += there[2 * tier]
    return total


@njit(cache=True, nogil=True)
def _most(spots: Array, known: int, sites: int, order: Floats) -> float:
    """No gang over so many of the spots gains more."""
    for one in range(known):
        order[one] = -spots[one].gain
    total = 0.0
    for one in np.sort(order[:known])[:sites]:
        total -= one
    return total


@njit(cache=True, nogil=True)
def _together(
    job: Record, limit: Floats, size: int, known: int, rule: int, rules: Rules, sold: Supply,
    left: Stock, room: Desk, mood: Mood,
) -> tuple[float, int]:  # fmt: skip
    """(score, parts) of the spots put together by a rule, in `room.whole`; (0, 0) if they fail. An
    elastic gang of up to `size` does without `spare` that gain nothing."""
    spots, whole, places, missing = room.spots, room.whole, sold.places, size
    spare = size - job.least
    share = max(job.site_least, (size + job.sites_most - 1) // job.sites_most)
    for one in range(known):
        gain, gpus = spots[one].gain, spots[one].gpus
        room.order[one] = -gain
        if rule > 1:
            room.order[one] = -gain / gpus if rule < 4 else -gain / gpus * min(gpus, share)
    sites, total, count = 0, 0.0, 0
    for one in np.argsort(room.order[:known]):
        spot = spots[one]
        give = min(spot.gpus, missing)
        if rule % 2 and sites < job.sites_most - 1:
            give = min(give, share)
        if 0 < missing - give < job.site_least:
            give = missing - job.site_least
        if give < job.site_least or give <= 0:
            continue
        place, least = places[spot.place], max(give - spare, job.site_least)
        found, gpus, some = fill(
            job, least, give, size, limit[place.gpu_class], kept(job, place.uplink), place,
            left.shelf, rules.failures, mood, room, room.trial,
        )  # fmt: skip
        if gpus < least:
            continue
        spare -= give - gpus
        whole[count : count + some] = room.trial[:some]
        count, total, missing, sites = count + some, total + found, missing - gpus, sites + 1
        if missing == 0 or sites == job.sites_most:
            break
    return (total, count) if missing <= size - job.least and sites > 1 else (0.0, 0)
