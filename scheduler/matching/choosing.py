"""The best choice of one job among what is left: a node, a site, or several sites.

GPUs count for what others would pay for them: what a node's free GPUs are worth in the largest
slots, less what the rest is worth without them (`held`). So a job leaves whole blocks, and whatever
is in demand, to those who gain more by it. How much of prices counts (`guide`, 0 to 1) is the
caller's; at 0 it is asks.
"""

from typing import Final

from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.beyond import over_sites
from scheduler.matching.book import NODE_GPUS
from scheduler.matching.desks import Desk, Mood, free_for, rank
from scheduler.matching.gathering import gather, lay_out, promises
from scheduler.matching.hoping import NOTHING, Hopes
from scheduler.matching.offers import FAR
from scheduler.matching.placing import ANY, NODE, SITE
from scheduler.matching.supply import NETS, Stock, Supply, first_with, taken
from scheduler.matching.tables import NOWHERE, TIERS, Rules, Tables, accepts
from scheduler.matching.weighing import hope_for

_SEATS: Final = 8
"""So many nodes of a kind are looked at, where prices may make a dearer one the better."""


@njit(cache=True, nogil=True, forceinline=True)
def choose(
    at: int, of: Tables, hoped: Hopes, sold: Supply, left: Stock, room: Desk, mood: Mood
) -> tuple[float, int, int]:
    """(score, level, parts) of job `at`, the parts in `room.chosen`; no parts if nothing gains."""
    job, limit = of.jobs[at], of.limit[at]
    kind = hoped.kind[hoped.start[at] : hoped.start[at + 1]]
    promise = hoped.gain[hoped.start[at] : hoped.start[at + 1]]
    # Without prices what it scores is what it brings.
    score = max(NOTHING, mood.floor) if mood.guide == 0 else NOTHING
    level, parts = NOWHERE, 0
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
        if promise[one] * gpus <= max(score, mood.floor):
            break
        here = kinds[kind[one]]
        seat = head[kind[one], size]
        if not known:
            seat = first_with(tree, here.first, here.end, gpus)
        keeps = 1 - job.kappa * in_node[here.gpu_class] if gpus > 1 else 1.0
        worth = limit[here.gpu_class] * (keeps - failures[here.tier] * job.lost * gpus)
        for _ in range(_SEATS):
            if seat >= here.end or gpus * (worth - seats[seat].ask) <= max(score, mood.floor):
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
    failures: Floats, mood: Mood, room: Desk, parts: Array, score: float,
) -> tuple[float, int, int]:  # fmt: skip
    """(score, GPUs, parts) of up to `size` GPUs of a place: the best first, by the risk of so many; as
    many as the job needs whatever they gain, and then those that gain something. No parts if it can't
    score more than so much, or hardly, where prices guide: pieces of a node are then cheaper one by one."""
    spot = room.work.spots[0]
    spot.keeps, spot.first, spot.least = keeps, 0, 0
    spot.end = lay_out(
        job, size, limit, keeps, place, shelf, failures, mood.guide, spot.first, size, room.work
    )
    # An elastic gang that ends up smaller bears less risk, and may gain more than it promises.
    if size == job.least and promises(size, spot, room.work) <= score:
        return score, 0, 0
    picked = room.work.picked[:1]
    picked[0] = 0
    return gather(job, size, limit, picked, shelf, failures, mood.guide, room.work, parts)


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
            promise = size * (worth * (keeps - least_risk) - ranked[one].ask)
            if promise <= max(score, mood.floor) or seen > mood.look:
                break
            if not accepts(job, ranked[one]):
                continue
            there, place = left.there[ranked[one].place], places[ranked[one].place]
            hope = _hope(
                job, worth, keeps, size, ranked[one].ask, place, there, failures, mood.guide,
                room.work.spots[0],
            )  # fmt: skip
            if hope <= score:
                continue
            seen += 1
            found, gpus, count = fill(
                job, size, worth, keeps, place, shelf, failures, mood, room, trial,
                score,
            )  # fmt: skip
            if gpus < job.least or count < 2 or found <= score:
                continue
            score, parts = found, count
            chosen[:count] = trial[:count]
    return score, parts


@njit(cache=True, nogil=True)
def _hope(
    job: Record, worth: float, keeps: float, size: int, mean: float, place: Record, there: Ints,
    failures: Floats, guide: float, spot: Record,
) -> float:  # fmt: skip
    """No less than up to so many GPUs of a place gain, the cheapest of which cost so much in the mean;
    less than nothing if it hasn't as many as the job needs, on several nodes."""
    most = min(free_for(job, there), size)
    if most < job.least or place.end - place.first < 2:
        return -FAR
    # An elastic gang that ends up smaller bears less risk.
    hope = most * (worth * (keeps - failures[0] * job.lost * job.least) - mean)
    # By asks, which lie far apart, the cheapest of each tier say no more.
    if guide == 0:
        return float(hope)
    spot.keeps, total, gpus = keeps, 0.0, 0
    hope_for(job, worth, job.least, place, there, failures, spot)
    for at in range(TIERS):
        most = size if spot.hope[at] > 0 else job.least
        take = max(min(spot.there[at], most - gpus), 0)
        total += take * spot.hope[at]
        gpus += take
    return float(min(hope, total))
