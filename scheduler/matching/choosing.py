"""The best choice of one job among what is left: a node, a site, or several sites.

GPUs count for what they ask, or for their cell's price where that is higher: so a job leaves to
others what is worth more to them. How much of the price counts (`guide`, 0 to 1) is the caller's.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.book import NODE_GPUS
from scheduler.matching.hoping import NOTHING, Hopes
from scheduler.matching.offers import FAR
from scheduler.matching.placing import ANY, NODE, SITE
from scheduler.matching.supply import DOUBLINGS, NETS, PART, Stock, Supply, first_with
from scheduler.matching.tables import NOWHERE, TIERS, Rules, Tables, accepts, kept

_CANDIDATES: Final = 128
_RULES: Final = 6


class Desk(NamedTuple):
    """Room for one choice: `chosen` is what `choose` found."""

    chosen: Array
    trial: Array
    whole: Array
    spots: Array
    order: Floats
    cursor: Ints
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


def desk(most: int, seed: int) -> Desk:
    """For gangs of up to so many GPUs, with a book's seed."""
    first, second, third = (np.zeros(most + 1, PART) for _ in range(3))
    state = np.array([seed * 0x9E3779B97F4A7C15 % 2**64 or 1], np.uint64)
    return Desk(
        first, second, third, np.zeros(_CANDIDATES, _SPOT), np.zeros(_CANDIDATES), np.zeros(TIERS, np.int32),
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
            job, limit, gpus, kind, promise, sold.seats, sold.kinds, left.tree, left.head,
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
    tree: Ints, head: Ints, in_node: Floats, failures: Floats, random: Array, mood: Mood,
    score: float,
) -> tuple[float, int]:  # fmt: skip
    """(score, seat) of the best node for so many GPUs, if it scores more than so much."""
    size = 0
    while 1 << size < gpus:
        size += 1
    known, slot, best = 1 << size == gpus, min(size, 3), NOWHERE
    for one in range(len(kind)):
        if promise[one] * gpus <= score:
            break
        here = kinds[kind[one]]
        seat = head[kind[one], size]
        if not known:
            seat = first_with(tree, here.first, here.end, gpus)
        if seat >= here.end:
            continue
        keeps = 1 - job.kappa * in_node[here.gpu_class] if gpus > 1 else 1.0
        worth = limit[here.gpu_class] * (keeps - failures[here.tier] * job.lost * gpus)
        found = gpus * (worth - max(seats[seat].ask, mood.guide * seats[seat].price[slot]))
        if found > score and not _overlooks(random, mood.blind):
            score, best = found, seat
    return score, best


@njit(cache=True, nogil=True)
def _overlooks(random: Array, blind: float) -> bool:
    return blind > 0 and chance(random) < blind


@njit(cache=True, nogil=True)
def fill(
    job: Record, least: int, amount: int, size: int, limit: float, keeps: float, place: Record,
    shelf: Array, failures: Floats, guide: float, cursor: Ints, parts: Array,
) -> tuple[float, int, int]:  # fmt: skip
    """(score, GPUs, parts) of up to `amount` GPUs of a place, for a gang of `size`: the best first,
    `least` of them whatever they gain, and then those that gain something. Seats of one tier stand
    by ask, so the tiers are merged."""
    lost, left, count, total = job.lost * size * limit, amount, 0, 0.0
    end, long, tiers = place.end, job.long, job.tier + 1
    for tier in range(tiers):
        cursor[tier] = _next(place.first, end, tier, long, shelf)
    while left > 0:
        gain, best = NOTHING if amount - left >= least else -FAR, NOWHERE
        for tier in range(tiers):
            at = cursor[tier]
            if at < end:
                cost = max(shelf[at].ask, guide * shelf[at].price)
                here = limit * keeps - failures[tier] * lost - cost
                if here > gain:
                    gain, best = here, tier
        if best == NOWHERE:
            break
        one = shelf[cursor[best]]
        cursor[best] = _next(cursor[best] + 1, end, best, long, shelf)
        take = min(one.free, left)
        if gain <= NOTHING:
            take = min(take, least - (amount - left))
        parts[count].seat, parts[count].gpus = one.seat, take
        count += 1
        total += take * gain
        left -= take
    return total, amount - left, count


@njit(cache=True, nogil=True)
def _next(at: int, end: int, tier: int, long: int, shelf: Array) -> int:
    """From `at` on the first seat of a tier, with a window long enough, that has anything free."""
    while at < end and (shelf[at].free == 0 or shelf[at].tier != tier or shelf[at].long < long):
        at += 1
    return at


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
    shelf, chosen, trial, cursor, random = (
        left.shelf, room.chosen, room.trial, room.cursor, room.random,
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
                job, job.least, size, size, worth, keeps, place, shelf, failures,
                mood.guide, cursor, trial,
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
    shelf, spots, trial, cursor, random = (
        left.shelf, room.spots, room.trial, room.cursor, room.random,
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
                job, 0, size, size, worth, keeps, place, shelf, failures, mood.guide,
                cursor, trial,
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
            left.shelf, rules.failures, mood.guide, room.cursor, room.trial,
        )  # fmt: skip
        if gpus < least:
            continue
        spare -= give - gpus
        whole[count : count + some] = room.trial[:some]
        count, total, missing, sites = count + some, total + found, missing - gpus, sites + 1
        if missing == 0 or sites == job.sites_most:
            break
    return (total, count) if missing <= size - job.least and sites > 1 else (0.0, 0)
