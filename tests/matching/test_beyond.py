"""Gangs over several sites look at hundreds of places and lay out a few: those that matter."""

from typing import Any

import numpy as np
import pytest

from scheduler.matching import beyond
from scheduler.matching.arrays import Array
from scheduler.matching.book import SiteRow, reordered
from scheduler.matching.cells import SLOTS, cells, slots
from scheduler.matching.clear import clear
from scheduler.matching.desks import Desk, Mood, desk
from scheduler.matching.hoping import NOTHING
from scheduler.matching.supply import PART, Stock, let, priced, ranked_by_prices, stock, supply
from scheduler.matching.synthetic import Plan, make
from scheduler.matching.tables import Tables, tables
from scheduler.matching.weighing import lay_out_best, weigh
from tests.matching.rows import a_book, a_node, an_order, checked

_NODES = 600


class _Floor:
    """A book of which a part is let, at some prices."""

    def __init__(self, seed: int, guide: float, alone: float) -> None:
        random = np.random.default_rng(seed)
        book = make(Plan(jobs=200, nodes=_NODES, seed=seed, alone=alone))
        order = np.lexsort((book.node_gpus, book.node_ask))
        book = reordered(book, np.arange(book.jobs), order)
        self.of: Tables = tables(book, cells(book))
        sold = supply(book)
        ladder = np.sort(random.uniform(0.5, 1.5, (_NODES, 4)), axis=1)
        priced(sold.seats, sold.shelf, book.node_ask[:, None] * ladder)
        self.guide, self.sold = guide, ranked_by_prices(sold, guide) if guide else sold
        self.left: Stock = stock(self.sold)
        for seat in random.permutation(_NODES)[: _NODES // 3]:
            gpus = int(random.integers(1, self.left.free[seat] + 1))
            part = np.array([(seat, gpus)], PART)
            let(sold.seats, sold.kinds, self.left, 0, part)
        self.room: Desk = desk(4096, self.sold, seed)

    def spots(self, at: int, gpu_class: int) -> int:
        """How many spots the job knows of a class, on the bench."""
        job, limit = self.of.jobs[at], self.of.limit[at, gpu_class]
        return beyond._spots(
            job, limit, int(job["least"]), gpu_class, self.of.rules, self.sold, self.left, self.room,
            Mood(self.guide, 64, NOTHING),
        )  # fmt: skip

    def weighed(self, at: int, gpu_class: int, known: int, tolls: list[float]) -> list[Any]:
        """(gain, GPUs, places) of the best spots at each toll in turn, few of them laid out."""
        job, limit, work = self.of.jobs[at], self.of.limit[at, gpu_class], self.room.work
        size, sites = int(job["least"]), self.sites(at)
        terms = self.sold.places, self.left.shelf, self.of.rules.failures, self.guide
        end = lay_out_best(job, size, limit, known, sites, -1.0, *terms, work)
        count, found = 0, []
        for toll in tolls:
            total, count, gpus, _, end = weigh(
                job, size, limit, known, toll, sites, count, *terms, end, work
            )
            places = work.spots["place"][work.picked[:count]].tolist()
            found.append((total, gpus, places))
        return found

    def sites(self, at: int) -> int:
        """How many a job accepts at most."""
        job = self.of.jobs[at]
        return int(min(job["sites_most"], job["least"] // job["site_least"]))

    def plain(self, at: int, gpu_class: int, spots: Array, toll: float) -> Any:
        """The same, of all spots."""
        gains = [self._gain(at, gpu_class, spot, toll) for spot in spots]
        best = sorted(range(len(spots)), key=lambda one: (-gains[one][0], one))
        best = [one for one in best[: self.sites(at)] if gains[one][0] > 0]
        return (
            sum(gains[one][0] for one in best),
            sum(gains[one][1] for one in best),
            spots["place"][best].tolist(),
        )

    def _gain(self, at: int, gpu_class: int, spot: Array, toll: float) -> tuple[float, int]:
        """(what a place gains beyond a toll, GPUs that it gives for it)."""
        job, place = self.of.jobs[at], self.sold.places[spot["place"]]
        worth, failures = self.of.limit[at, gpu_class], self.of.rules.failures
        pieces = []
        for one in self.left.shelf[place["first"] : place["end"]]:
            if one["free"] and one["tier"] <= job["tier"] and one["long"] >= job["long"]:
                cost = np.maximum(one["ask"], self.guide * one["price"])
                paid = sum(size * cost[SLOTS.index(size)] for size in slots(int(one["free"])))
                risk = failures[one["tier"]] * job["least"] * job["lost"]
                pieces.append((worth * (spot["keeps"] - risk) - paid / one["free"], one["free"]))
        gain, gives = 0.0, 0
        for each, free in sorted(pieces, key=lambda piece: -piece[0]):
            most = spot["most"] if each > toll else spot["least"]
            take = max(min(free, most - gives), 0)
            gain, gives = gain + take * (each - toll), gives + take
        return gain, gives


@pytest.mark.parametrize("alone", [0.2, 0.8])
@pytest.mark.parametrize("guide", [0.0, 0.97])
@pytest.mark.parametrize("seed", [0, 1])
def test_few_places_are_laid_out_and_the_best_of_all_are_found(
    seed: int, guide: float, alone: float
) -> None:
    floor, tried, laid_out, known_of = _Floor(seed, guide, alone), 0, 0, 0
    jobs, limit = floor.of.jobs, floor.of.limit
    for at in np.flatnonzero((jobs["level"] == 2) & (jobs["least"] > 2 * jobs["site_least"])):
        for gpu_class in np.flatnonzero(limit[at] > 0):
            known = floor.spots(at, gpu_class)
            if known < 2:
                continue
            high = floor.room.work.spots["hope"][:known].max()
            tolls = [0.0, 0.5 * high, 0.8 * high, 0.2 * high]
            found = floor.weighed(at, gpu_class, known, tolls)
            spots = floor.room.work.spots[:known]
            laid_out, known_of = laid_out + int((spots["end"] > 0).sum()), known_of + known
            for toll, (total, gpus, places) in zip(tolls, found, strict=True):
                expected = floor.plain(at, gpu_class, spots, toll)
                assert total == pytest.approx(expected[0], abs=1e-9)
                assert (gpus, places) == expected[1:]
            tried += 1
    assert tried > 5
    assert laid_out < known_of


def test_the_largest_sites_serve_a_gang_that_needs_them_however_dear_they_are() -> None:
    sites = [SiteRow(name, 0, 1, 0, 1000.0) for name in "abcd"]
    rows = [("a", 7, 1.0), ("b", 7, 1.0), ("c", 8, 9.2), ("d", 8, 9.2)]
    nodes = [a_node(n, site=site, gpus=gpus, ask=ask) for n, (site, gpus, ask) in enumerate(rows)]
    gang = an_order(gpus_min=16, gpus_max=16, level=2, sites_max=2, limits={"sxm": 10.0},
                    sync_s=1000.0)  # fmt: skip
    book = a_book([gang], nodes, sites)
    matches = checked(book, clear(book))
    assert dict(zip(matches.node, matches.gpus, strict=True)) == {2: 8, 3: 8}
