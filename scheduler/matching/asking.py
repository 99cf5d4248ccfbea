"""The loops of a quote: one new order against what stands free, at prices known beforehand.

Seats carry the most that a GPU of theirs may cost in place of their asks, so that gangs are chosen
as the rounds choose them (`choosing`). The cheapest node for so many GPUs is known of each kind, and
of what a kind's buyers accept besides: better trust, longer windows, other regions. So most orders are a
few looks into a table.

What failures cost decides where an order goes; if it makes all places bad, the order goes where it
costs least against its worth, for a price up to that is the buyer's to accept.
"""

from typing import Final

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Record
from scheduler.matching.beyond import over_sites
from scheduler.matching.book import NODE_GPUS
from scheduler.matching.choosing import fill, on_site
from scheduler.matching.desks import Desk, Mood
from scheduler.matching.hoping import NOTHING
from scheduler.matching.lending import lent
from scheduler.matching.offers import FAR
from scheduler.matching.placing import ANY, NODE, SITE
from scheduler.matching.supply import Stock, Supply
from scheduler.matching.tables import NOWHERE, TIERS, TRUSTS, Rules, accepts, goes_anywhere, kept

CHEAPEST: Final = np.dtype([("price", "f8"), ("free", "i4"), ("seat", "i4")], align=True)
"""What so many GPUs of one node cost each, and where; of equals the one that has least free."""
SHARE: Final = np.dtype(
    [("price", "f8"), ("keeps", "f8"), ("node", "i4"), ("gpus", "i4")], align=True
)
"""A node's part in a gang: what a GPU costs there, and the speed that it keeps."""
RATED: Final = np.dtype(
    [("gain", "f8"), ("surplus", "f8"), ("gpus", "i4"), ("first", "i4"), ("parts", "i4"),
     ("why", "i4")],
    align=True,
)  # fmt: skip
"""A node or place for one order. `gain` is surplus before what failures cost."""
FITS, LIMIT, REGION, TRUST, TIER, WINDOW, LET, SMALL, DEAR, SLOW, APART = range(11)
"""Why a node is nothing for an order by itself; APART: it could be a part of a gang."""
_SIZES: Final = 8
"""So many sizes of an elastic gang on one site are tried: all, unless there are more."""
_SPOTS: Final = 16
"""Of the sites for a gang over several so many of each network are looked at, the cheapest, and the
largest size and the least are tried: as in the rounds."""
_EVERY: Final = 2**31 - 1


@njit(cache=True, nogil=True)
def look_up(seats: Array, kinds: Array, price: Floats, wide: Array) -> None:
    """Fills `wide` [GPUs - 1, class, tier, trust, window, region] from `price` [seat, 17]: of this
    trust or better, this window or longer; the last region stands for all."""
    every = wide.shape[5] - 1
    for here in wide.flat:
        here.price, here.free, here.seat = FAR, 0, NOWHERE
    for seat in range(len(seats)):
        kind = kinds[seats[seat].kind]
        for gpus in range(1, seats[seat].gpus + 1):
            _lower(
                wide[gpus - 1, kind.gpu_class, kind.tier, kind.trust, kind.long, kind.region],
                price[seat, gpus], seats[seat].gpus, seat,
            )  # fmt: skip
    for gpus in range(wide.shape[0]):
        for gpu_class in range(wide.shape[1]):
            for at in range(TIERS * TRUSTS * 2):
                tier, trust, long = at // (TRUSTS * 2), at // 2 % TRUSTS, 1 - at % 2
                table = wide[gpus, gpu_class, tier]
                for region in range(every):
                    here = table[trust, long, region]
                    if long == 0:
                        _merge(here, table[trust, 1, region])
                    if trust > 0:
                        _merge(here, table[trust - 1, long, region])
                    _merge(table[trust, long, every], here)


@njit(cache=True, nogil=True)
def _merge(here: Record, other: Record) -> None:
    if other.seat != NOWHERE:
        _lower(here, other.price, other.free, other.seat)


@njit(cache=True, nogil=True)
def _lower(here: Record, price: float, free: int, seat: int) -> None:
    if price < here.price or (
        price == here.price and (free < here.free or (free == here.free and seat < here.seat))
    ):
        here.price, here.free, here.seat = price, free, seat


@njit(cache=True, nogil=True)
def ask(
    jobs: Array, limit: Floats, wide: Array, price: Floats, rules: Rules, sold: Supply, left: Stock,
    room: Desk, shares: Array,
) -> tuple[int, int, float, float, float]:  # fmt: skip
    """(level, parts in `shares`, gain, surplus, η in the mean) of the best place for jobs[0]; no parts:
    none."""
    jobs, limit, wide, price, rules = lent((jobs, limit, wide, price, rules))
    sold, left, room, shares = lent((sold, left, room, shares))
    job = jobs[0]
    level, parts = _best(job, limit, wide, rules, sold, left, room)
    if parts == 0 and job.lost > 0:
        lost = job.lost
        job.lost = 0.0
        level, parts = _best(job, limit, wide, rules, sold, left, room)
        job.lost = lost
    found = _reckon(job, limit, level, parts, price, rules, sold, room.chosen, shares)
    return level, parts, *found


@njit(cache=True, nogil=True)
def _best(
    job: Record, limit: Floats, wide: Array, rules: Rules, sold: Supply, left: Stock, room: Desk,
) -> tuple[int, int]:  # fmt: skip
    """(level, parts in `room.chosen`) of what gains most, if anything does."""
    score, level, parts = NOTHING, NODE, 0
    found, seat, gpus = _node(job, limit, wide, rules.in_node, rules.failures)
    if seat != NOWHERE:
        score, parts = found, 1
        room.chosen[0].seat, room.chosen[0].gpus = seat, gpus
    if job.most == 1 or job.level == NODE:
        return level, parts
    for one in range(_sizes(job)):
        size = _size(job, one)
        if size == 1:
            continue
        mood = Mood(0.0, _EVERY, NOTHING)
        found, count = on_site(job, limit, size, rules, sold, left, room, mood, score)
        if count:
            score, level, parts = found, SITE, count
        if _spans(job, one):
            mood = Mood(0.0, _SPOTS, NOTHING)
            found, count = over_sites(job, limit, size, rules, sold, left, room, mood, score)
            if count:
                score, level, parts = found, ANY, count
    return level, parts


@njit(cache=True, nogil=True)
def _node(
    job: Record, limit: Floats, wide: Array, in_node: Floats, failures: Floats
) -> tuple[float, int, int]:
    """(score, seat, GPUs) of the best single node; of equals the larger gang."""
    score, seat, free, size = NOTHING, NOWHERE, 0, 0
    every = wide.shape[5] - 1
    anywhere = goes_anywhere(job, every)
    for gpus in range(min(job.most, wide.shape[0]), job.least - 1, -1):
        for gpu_class in range(len(limit)):
            if limit[gpu_class] <= 0:
                continue
            keeps = 1.0 - job.kappa * in_node[gpu_class] if gpus > 1 else 1.0
            for tier in range(job.tier + 1):
                worth = limit[gpu_class] * (keeps - failures[tier] * job.lost * gpus)
                table = wide[gpus - 1, gpu_class, tier, job.trust, job.long]
                if gpus * (worth - table[every].price) < score:
                    continue
                for region in range(every if anywhere else 0, every + 1 if anywhere else every):
                    if not anywhere and not job.regions >> np.uint64(region) & np.uint64(1):
                        continue
                    here = table[region]
                    found = gpus * (worth - here.price)
                    if found > score or (
                        found == score and gpus == size
                        and (here.free < free or (here.free == free and here.seat < seat))
                    ):  # fmt: skip
                        score, seat, free, size = found, here.seat, here.free, gpus
    return score, seat, size


@njit(cache=True, nogil=True)
def _sizes(job: Record) -> int:
    return int(min(job.most - job.least + 1, _SIZES))


@njit(cache=True, nogil=True)
def _size(job: Record, one: int) -> int:
    """From the largest down to the least."""
    return int(job.most - one * (job.most - job.least) // max(_sizes(job) - 1, 1))


@njit(cache=True, nogil=True)
def _spans(job: Record, one: int) -> bool:
    """Whether this size is tried over several sites."""
    at_an_end = one == 0 or one == _sizes(job) - 1
    enough = _size(job, one) >= max(2, 2 * job.site_least)
    return at_an_end and enough and job.level == ANY and job.sites_most > 1


@njit(cache=True, nogil=True)
def _reckon(
    job: Record, limit: Floats, level: int, parts: int, price: Floats, rules: Rules, sold: Supply,
    chosen: Array, shares: Array,
) -> tuple[float, float, float]:  # fmt: skip
    """(gain, surplus, η in the mean) of these parts; what each costs goes to `shares`."""
    seats, places, size, gain, risk, kept_on = sold.seats, sold.places, 0, 0.0, 0.0, 0.0
    keeps = 1.0
    for one in range(parts):
        size += chosen[one].gpus
    for one in range(parts):
        seat, gpus = seats[chosen[one].seat], chosen[one].gpus
        place = places[seat.place]
        worth = limit[place.gpu_class]
        keeps = 1.0
        if level == NODE and size > 1:
            keeps = 1.0 - job.kappa * rules.in_node[place.gpu_class]
        elif level == SITE:
            keeps = 1.0 - job.kappa * rules.in_site[place.net]
        elif level == ANY:
            keeps = kept(job, place.uplink)
        cost = price[chosen[one].seat, gpus]
        gain += gpus * (worth * keeps - cost)
        kept_on += gpus * keeps
        risk += gpus * worth * rules.failures[seat.tier] * job.lost * size
        shares[one].node, shares[one].gpus = seat.node, gpus
        shares[one].price, shares[one].keeps = cost, keeps
    if level != ANY:
        return gain, gain - risk, keeps
    return gain, gain - risk, kept_on / max(size, 1)


@njit(cache=True, nogil=True)
def rate_nodes(
    jobs: Array, limit: Floats, price: Floats, rules: Rules, seats: Array, kinds: Array,
    rated: Array,
) -> None:  # fmt: skip
    """What each seat by itself is to jobs[0], with so many GPUs as are best there."""
    job = jobs[0]
    for seat in range(len(seats)):
        kind, here = kinds[seats[seat].kind], rated[seat]
        here.gpus = min(max(seats[seat].gpus, 1), job.most)
        here.why = _unmet(job, limit, kind, seats[seat].gpus)
        if here.why != FITS:
            continue
        worth, slow = limit[kind.gpu_class], job.kappa * rules.in_node[kind.gpu_class]
        failing = rules.failures[kind.tier] * job.lost
        if seats[seat].gpus < job.least:
            here.why = DEAR if price[seat, seats[seat].gpus] > worth else APART
            continue
        size = _gpus(job, worth, slow, failing, price[seat], seats[seat].gpus)
        keeps = 1.0 - slow if size > 1 else 1.0
        here.gpus, here.gain = size, size * (worth * keeps - price[seat, size])
        here.surplus = here.gain - size * worth * failing * size
        if here.gain < NOTHING:
            here.gpus = job.least
            here.why = DEAR if price[seat, job.least] > worth else SLOW


@njit(cache=True, nogil=True)
def _gpus(job: Record, worth: float, slow: float, failing: float, price: Floats, free: int) -> int:
    """How many GPUs of a node are best: as in all of `ask`, by surplus, or if there is none by gain."""
    size = job.least
    for careful in range(2):
        score = NOTHING
        for gpus in range(min(free, job.most), job.least - 1, -1):
            keeps = 1.0 - slow if gpus > 1 else 1.0
            risk = failing * gpus if careful == 0 else 0.0
            found = gpus * (worth * (keeps - risk) - price[gpus])
            if found > score:
                score, size = found, gpus
        if score > NOTHING:
            break
    return int(size)


@njit(cache=True, nogil=True)
def _unmet(job: Record, limit: Floats, kind: Record, free: int) -> int:
    """The first of the order's terms that a node doesn't meet."""
    if limit[kind.gpu_class] <= 0:
        return LIMIT
    if not job.regions >> np.uint64(kind.region) & np.uint64(1):
        return REGION
    if kind.trust > job.trust:
        return TRUST
    if kind.tier > job.tier:
        return TIER
    if kind.long < job.long:
        return WINDOW
    if free == 0:
        return LET
    if free < job.least and job.level == NODE:
        return SMALL
    return FITS


@njit(cache=True, nogil=True)
def rate_places(
    jobs: Array, limit: Floats, price: Floats, rules: Rules, sold: Supply, left: Stock, room: Desk,
    rated: Array, shares: Array,
) -> None:  # fmt: skip
    """The best gang of each place over several of its nodes; its parts stand in `shares` from
    `first` on, none where there is none that gains."""
    job, used = jobs[0], 0
    for at in range(len(sold.places)):
        place, here = sold.places[at], rated[at]
        here.first, here.parts = used, 0
        if limit[place.gpu_class] <= 0 or not accepts(job, place) or place.end - place.first < 2:
            continue
        count = _gang(job, limit[place.gpu_class], place, rules, left, room)
        if count == 0 and job.lost > 0:
            lost = job.lost
            job.lost = 0.0
            count = _gang(job, limit[place.gpu_class], place, rules, left, room)
            job.lost = lost
        here.gain, here.surplus, _ = _reckon(
            job, limit, SITE, count, price, rules, sold, room.chosen, shares[used:]
        )
        here.parts = count
        used += count


@njit(cache=True, nogil=True)
def _gang(job: Record, limit: float, place: Record, rules: Rules, left: Stock, room: Desk) -> int:
    """How many nodes the best gang of a place has; they stand in `room.chosen`."""
    keeps, score, parts = 1.0 - job.kappa * rules.in_site[place.net], NOTHING, 0
    for one in range(_sizes(job)):
        size = _size(job, one)
        found, gpus, count = fill(
            job, size, limit, keeps, place, left.shelf, rules.failures, Mood(0.0, _EVERY, NOTHING), room,
            room.trial, score,
        )  # fmt: skip
        if gpus >= job.least and count > 1 and found > score:
            score, parts = found, count
            room.chosen[:count] = room.trial[:count]
    return parts


@njit(cache=True, nogil=True)
def ask_over_sites(
    jobs: Array, limit: Floats, price: Floats, rules: Rules, sold: Supply, left: Stock, room: Desk,
    shares: Array,
) -> tuple[int, float, float]:  # fmt: skip
    """(parts in `shares`, gain, surplus) of the best gang over several sites."""
    job, score, parts = jobs[0], NOTHING, 0
    for one in range(_sizes(job)):
        size = _size(job, one)
        if _spans(job, one):
            mood = Mood(0.0, _SPOTS, NOTHING)
            found, count = over_sites(job, limit, size, rules, sold, left, room, mood, score)
            if count:
                score, parts = found, count
    gain, surplus, _ = _reckon(job, limit, ANY, parts, price, rules, sold, room.chosen, shares)
    return parts, gain, surplus


def table(seats: Array, kinds: Array, price: Floats, classes: int) -> Array:
    """The cheapest seats, by what an order asks; see `look_up`."""
    regions = int(kinds["region"].max(initial=0)) + 1
    most = int(min(max(seats["gpus"].max(initial=1), 1), NODE_GPUS))
    wide = np.zeros((most, classes, TIERS, TRUSTS, 2, regions + 1), CHEAPEST)
    look_up(seats, kinds, price, wide)
    return wide


def ratings(count: int) -> Array:
    """Room for what `rate_nodes` and `rate_places` find."""
    return np.zeros(count, RATED)


def room_for_shares(count: int) -> Array:
    """Room for parts of gangs."""
    return np.zeros(count, SHARE)
