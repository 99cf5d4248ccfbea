"""The most that each job could gain alone at published prices, over all places there are.

It is what `alone` reckons by short lists, without lists: places are tried from the cheapest on, as
long as one could gain more than the best so far. That is soon over, so that a proof costs little more
than a step of the ascent.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.alone import in_one_node, on_site
from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.lending import lent
from scheduler.matching.lists import (
    enough,
    find_cheapest,
    gainful,
    promising_sites,
    promising_sources,
    there,
)
from scheduler.matching.ordering import sorted_by
from scheduler.matching.spanning import Span, over_sites, span
from scheduler.matching.tables import SHARE, TIERS, Rules, Tables, accepts, kept


class Ranks(NamedTuple):
    """The least price of a GPU at each place; places class by class, in each by that price; and what
    any site of a class [C] asks and sends at best, USD per GPU-hour and Mbit/s."""

    cheapest: Floats
    place: Ints
    least: Floats
    uplink: Floats


class Priced(NamedTuple):
    """Prices [K, 4], the places ranked by them, and what single nodes offer at them, with `sharp` [C]
    as the width of wishes."""

    price: Floats
    ranked: Ranks
    sharp: Floats
    wide: Array


class _Room(NamedTuple):
    """What one pass works with."""

    now: Array
    best: Array
    span: Span
    hope: Floats
    which: Ints
    gpus: Ints
    sites: Ints


def ranks(of: Tables, price: Floats) -> Ranks:
    """At these prices [K, 4]."""
    cheapest = np.empty(len(of.places))
    find_cheapest(of.places, price, cheapest)
    least, uplink = np.full(of.limit.shape[1], np.inf), np.zeros(of.limit.shape[1])
    source_class = of.cells["gpu_class"][of.sources["cell"]]
    for where, cost, sends in (
        (of.places["gpu_class"], cheapest, of.places["uplink"]),
        (source_class, price[of.sources["cell"], 0], of.sources["uplink"]),
    ):
        np.minimum.at(least, where, cost)
        np.maximum.at(uplink, where, sends)
    return Ranks(cheapest, sorted_by(of.places["gpu_class"], cheapest), least, uplink)


def best_alone(of: Tables, at: Priced, first: int, end: int) -> float:
    """Σ over the jobs from `first` to `end`, USD per hour."""
    longest = int(np.max(np.diff(of.place_start) + np.diff(of.source_start), initial=0))
    parts, most = 2 * TIERS * (longest + 1), int(of.jobs["least"].max(initial=2))
    room = _Room(
        np.zeros(parts, SHARE), np.zeros(parts, SHARE), span(longest), np.empty(longest + 1),
        np.empty(longest + 1, np.int32), np.empty(longest + 1, np.int32),
        np.zeros(most + 1, np.int64),
    )  # fmt: skip
    return float(_sum(of, *at, room, first, end))


@njit(cache=True, nogil=True)
def _sum(
    of: Tables, price: Floats, ranked: Ranks, sharp: Floats, wide: Array, room: _Room, first: int,
    end: int,
) -> float:  # fmt: skip
    of, price, ranked, sharp = lent((of, price, ranked, sharp))
    wide, room = lent((wide, room))
    total = 0.0
    for at in range(first, end):
        job, limit = of.jobs[at], of.limit[at]
        gain, _, _, _ = in_one_node(job, limit, of.rules.in_node, of.rules.failures, wide, sharp)
        if job.most > 1 and job.level >= 1:
            gain = _on_sites(
                job, limit, of.places, of.place_start, of.rules, price, ranked, room, gain
            )
            if job.level >= 2 and job.sites_most > 1:
                gain = _over_sites(job, limit, of, price, ranked, room, gain)
        total += gain
    return total


@njit(cache=True, nogil=True)
def _on_sites(
    job: Record, limit: Floats, places: Array, place_start: Ints, rules: Rules, price: Floats,
    ranked: Ranks, room: _Room, gain: float,
) -> float:  # fmt: skip
    """The most that one site gains, or `gain` if that is more."""
    least = max(job.least, 2)
    keeps = 1 - job.kappa * rules.in_site.min() - rules.failures[0] * job.lost * least
    for gpu_class in range(len(limit)):
        for one in range(place_start[gpu_class], place_start[gpu_class + 1]):
            at = ranked.place[one]
            hope = limit[gpu_class] * keeps - ranked.cheapest[at]
            if hope * job.most <= gain:
                break
            place = places[at]
            if accepts(job, place) and there(job, place) >= least:
                gain, _ = on_site(
                    job, place, limit[gpu_class], 1 - job.kappa * rules.in_site[place.net],
                    rules.failures, price, room.now, room.best, gain,
                )  # fmt: skip
    return gain


@njit(cache=True, nogil=True)
def _over_sites(
    job: Record, limit: Floats, of: Tables, price: Floats, ranked: Ranks, room: _Room, gain: float
) -> float:
    """The most that several sites gain, or `gain` if that is more."""
    places, sources, cells = of.places, of.sources, of.cells
    hope, which, gpus = room.hope, room.which, room.gpus
    for gpu_class in range(len(limit)):
        worth = limit[gpu_class] * kept(job, ranked.uplink[gpu_class]) - ranked.least[gpu_class]
        if worth * job.most <= gain:
            continue
        count = promising_sites(
            job, limit[gpu_class], places, of.place_start[gpu_class],
            of.place_start[gpu_class + 1], ranked.cheapest, hope, which, gpus,
        )  # fmt: skip
        count = promising_sources(
            job, limit[gpu_class], cells, sources, of.source_start[gpu_class],
            of.source_start[gpu_class + 1], len(places), price, hope, which, gpus, count,
        )  # fmt: skip
        if enough(job, sources, len(places), which[:count], gpus[:count], room.sites):
            count = gainful(hope, which, count)
            gain, _ = over_sites(
                job, limit, cells, places, sources, which[:count], of.rules.failures, price,
                ranked.cheapest, room.span, room.best, gain,
            )  # fmt: skip
    return gain
