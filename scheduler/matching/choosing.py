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
from scheduler.matching.gathering import Bench, bench, gather, lay_out, weigh
from scheduler.matching.hoping import NOTHING, Hopes
from scheduler.matching.offers import FAR
from scheduler.matching.placing import ANY, NODE, SITE
from scheduler.matching.supply import DOUBLINGS, NETS, PART, Stock, Supply, first_with, taken
from scheduler.matching.tables import NOWHERE, TIERS, Rules, Tables, accepts, kept

_CANDIDATES: Final = 256
_TOLLS: Final = 6
_CLOSE: Final = 1e-9
"""USD per hour, for which no more tolls are tried."""
_SEATS: Final = 8
"""So many nodes of a kind are looked at, where prices may make a dearer one the better."""


class Desk(NamedTuple):
    """Room for one choice: `chosen` is what `choose` found."""

    chosen: Array
    trial: Array
    work: Bench
    random: Array
    """State of the generator (xorshift64*, Vigna 2016), one for each clearing."""


class Mood(NamedTuple):
    """How a job chooses."""

    guide: float
    look: int
    """How many places are looked at in each rank."""


def desk(most: int, sold: Supply, seed: int) -> Desk:
    """For gangs of up to so many GPUs of what is sold, with a book's seed."""
    longest = int((sold.places["end"] - sold.places["first"]).max(initial=1))
    pieces = min(_CANDIDATES * longest, len(sold.seats))
    state = np.array([seed * 0x9E3779B97F4A7C15 % 2**64 or 1], np.uint64)
    return Desk(
        np.zeros(most + 1, PART), np.zeros(most + 1, PART), bench(pieces, _CANDIDATES), state
    )


@njit(cache=True, nogil=True)
def chance(random: Array) -> float:
    """A number from 0 up to 1."""
    state = random[0]
    state ^= state >> np.uint64(12)
    state ^= state << np.uint64(25)
    state ^= state >> np.uint64(27)
    random[0] = state
    return float(state * np.uint64(0x2545F4914F6CDD1D) >> np.uint64(11)) / 9007199254740992.0


@njit(cache=True, nogil=True, forceinline=True)
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
            of.rules.in_node, of.rules.failures, mood, score,
        )  # fmt: skip
        if seat >= 0:
            score, level, parts = found, NODE, 1
            room.chosen[0].seat, room.chosen[0].gpus = seat, gpus
    if job.most == 1 or job.level == NODE:
        return score, level, parts
    for wanted in range(1 if job.least == job.most else 2):
        # A column is 32 bits wide: as it is, all that follows would be compiled for it as well.
        size = (job.least if wanted == 0 else job.most) + 0
        if size > 1:
            found, count = on_site(job, limit, size, of.rules, sold, left, room, mood, score)
            if count:
                score, level, parts = found, SITE, count
        if size >= max(2, 2 * job.site_least) and job.level == ANY and job.sites_most > 1:
            found, count = over_sites(job, limit, size, of.rules, sold, left, room, mood, score)
            if count:
                score, level, parts = found, ANY, count
    return score, level, parts


@njit(cache=True, nogil=True, forceinline=True)
def _node(
    job: Record, limit: Floats, gpus: int, kind: Ints, promise: Floats, seats: Array, kinds: Array,
    left: Stock, in_node: Floats, failures: Floats, mood: Mood, score: float,
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
            if found > score:
                score, best = found, seat
            if mood.guide == 0:
                break
            seat = first_with(tree, seat + 1, here.end, gpus)
    return score, best


@njit(cache=True, nogil=True)
def fill(
    job: Record, size: int, limit: float, keeps: float, place: Record, shelf: Array,
    failures: Floats, mood: Mood, room: Desk, parts: Array,
) -> tuple[float, int, int]:  # fmt: skip
    """(score, GPUs, parts) of up to `size` GPUs of a place: the best first, by the risk of so many; as
    many as the job needs whatever they gain, and then those that gain something."""
    spot = room.work.spots[0]
    spot.keeps, spot.first, spot.least = keeps, 0, 0
    spot.end = lay_out(
        job, size, limit, keeps, place, shelf, failures, mood.guide, spot.first, room.work
    )
    picked = room.work.picked[:1]
    picked[0] = 0
    return gather(job, size, limit, picked, shelf, failures, mood.guide, room.work, parts)


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
    shelf, chosen, trial = left.shelf, room.chosen, room.trial
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
                job, size, worth, keeps, place, shelf, failures, mood, room, trial,
            )  # fmt: skip
            if gpus < job.least or count < 2 or found <= score:
                continue
            score, parts = found, count
            chosen[:count] = trial[:count]
    return score, parts


@njit(cache=True, nogil=True)
def over_sites(
    job: Record, limit: Floats, size: int, rules: Rules, sold: Supply, left: Stock, room: Desk,
    mood: Mood, score: float,
) -> tuple[float, int]:  # fmt: skip
    """(score, parts) of up to `size` GPUs over several sites, if that scores more than so much."""
    parts = 0
    for gpu_class in range(len(limit)):
        if limit[gpu_class] <= 0:
            continue
        if _hope(job, limit, size, gpu_class, rules, sold) <= score:
            continue
        score, count = of_class(
            job, limit[gpu_class], size, gpu_class, rules, sold, left, room, mood, score
        )
        if count:
            parts = count
    return score, parts


@njit(cache=True, nogil=True)
def of_class(
    job: Record, limit: float, size: int, gpu_class: int, rules: Rules, sold: Supply, left: Stock,
    room: Desk, mood: Mood, score: float,
) -> tuple[float, int]:  # fmt: skip
    """(score, parts) of the best over sites of one class, in `room.chosen`; no parts if none scores more
    than so much."""
    known = _spots(job, limit, size, gpu_class, rules, sold, left, room, mood)
    if known < 2:
        return score, 0
    return _together(job, limit, size, known, rules.failures, left.shelf, room, mood.guide, score)


@njit(cache=True, nogil=True)
def _hope(
    job: Record, limit: Floats, size: int, gpu_class: int, rules: Rules, sold: Supply
) -> float:
    """No gang of just so many GPUs over sites of a class gains more: each as cheap as the cheapest. One
    that ends up smaller bears less risk, and may gain a little more."""
    hope = -FAR
    for net in range(NETS):
        first = rank(gpu_class, net, job.tier, job.site_least)
        if sold.rank_start[first] < sold.rank_start[first + 1]:
            ask = sold.ranked[sold.rank_start[first]].ask
            hope = max(hope, limit[gpu_class] * (1 - rules.failures[0] * job.lost * size) - ask)
    return size * hope


@njit(cache=True, nogil=True)
def _spots(
    job: Record, worth: float, size: int, gpu_class: int, rules: Rules, sold: Supply, left: Stock,
    room: Desk, mood: Mood,
) -> int:  # fmt: skip
    """How many places of a class could be a part of it; they stand on the bench. Of each network those
    come first that have what a site must give in the mean: a gang of 64 that accepts eight sites has
    no use for the cheapest, of one GPU each."""
    least, mean, known, end = job.site_least, size // min(job.sites_most, size), 0, 0
    for net in range(NETS):
        large = rank(gpu_class, net, job.tier, max(mean, least))
        every = rank(gpu_class, net, job.tier, least)
        known, end, seen = _spots_of(
            large, job, worth, size, rules, sold, left, room, mood, known, end, 0
        )
        if every != large:
            known, end, seen = _spots_of(
                every, job, worth, size, rules, sold, left, room, mood, known, end, seen
            )
    return known


@njit(cache=True, nogil=True)
def _spots_of(
    list_of: int, job: Record, worth: float, size: int, rules: Rules, sold: Supply, left: Stock,
    room: Desk, mood: Mood, known: int, end: int, seen: int,
) -> tuple[int, int, int]:  # fmt: skip
    """(spots, pieces, spots of this network) that are known, with those of one list of places."""
    places, ranked, rank_start = sold.places, sold.ranked, sold.rank_start
    spots, least, first = room.work.spots, job.site_least, known - seen
    least_risk = rules.failures[0] * job.lost * size
    for one in range(rank_start[list_of], rank_start[list_of + 1]):
        if worth * (1 - least_risk) <= ranked[one].ask or seen > mood.look:
            break
        number = ranked[one].place
        gpus = min(_room(job, left.there[number]), size - least)
        if gpus < least or known == len(spots):
            continue
        place = places[number]
        keeps = kept(job, place.uplink)
        if worth * (keeps - least_risk) <= ranked[one].ask or not accepts(job, place):
            continue
        if _stands(number, spots, first, known):
            continue
        seen += 1
        spot = spots[known]
        spot.keeps, spot.first, spot.least, spot.most = keeps, end, least, gpus
        spot.place = number
        end = lay_out(
            job, size, worth, keeps, place, left.shelf, rules.failures, mood.guide, spot.first,
            room.work,
        )  # fmt: skip
        spot.end = end
        known += 1
    return known, end, seen


@njit(cache=True, nogil=True)
def _stands(place: int, spots: Array, first: int, known: int) -> bool:
    """Whether a place is known already."""
    one = first
    while one < known and spots[one].place != place:
        one += 1
    return one < known


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
def _together(
    job: Record, limit: float, size: int, known: int, failures: Floats, shelf: Array, room: Desk,
    guide: float, score: float,
) -> tuple[float, int]:  # fmt: skip
    """(score, parts) of the spots put together, in `room.chosen`; no parts if that scores no more."""
    spots, pieces, work, parts = room.work.spots, room.work.pieces, room.work, 0
    low, high = pieces[0].gain, pieces[0].gain
    for one in range(known):
        low = min(low, pieces[spots[one].end - 1].gain)
        high = max(high, pieces[spots[one].first].gain)
    low, toll, most, count = 2 * low - high, 0.0, np.inf, 0
    sites = min(job.sites_most, size // spots[0].least)
    for _ in range(_TOLLS):
        total, count, gpus, same = weigh(known, toll, sites, count, work)
        # No gang of so many gains more, whatever the toll.
        most = min(most, total + toll * (job.least if toll < 0 else size))
        if most <= score + _CLOSE:
            break
        if gpus >= job.least:
            low = toll
        else:
            high = toll
        toll = (low + high) / 2
        if count < 2 or same:
            continue
        found, gpus, some = gather(
            job, size, limit, work.picked[:count], shelf, failures, guide, work, room.trial
        )
        if gpus >= job.least and found > score:
            score, parts = found, some
            room.chosen[:some] = room.trial[:some]
            if most <= score + _CLOSE:
                break
    return score, parts
