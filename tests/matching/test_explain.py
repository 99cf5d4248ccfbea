"""Why a job waits and what would place it: each change is made, the book cleared again, and the
job is placed."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from scheduler.matching import clear, synthetic
from scheduler.matching.book import Book, SiteRow
from scheduler.matching.cells import Names
from scheduler.matching.explain import Term, Waiting, Why, changed, waiting
from scheduler.matching.saying import what_helps, why_waits
from scheduler.matching.synthetic import Plan
from tests.matching.rows import SITE, a_book, a_node, an_order, books

NAMES = Names(["sxm", "pcie"], ())


def explained(book: Book) -> list[Waiting]:
    """Of every job that a clearing leaves waiting."""
    matches = clear.clear(book)
    return waiting(book, matches, np.flatnonzero(matches.level < 0).tolist())


def only(order: dict[str, Any], node: dict[str, Any], **site: Any) -> Waiting:
    """One order that finds no place on one node."""
    book = a_book([an_order(**order)], [a_node(**node)], [replace(SITE, **site)])
    [found] = explained(book)
    return found


@given(book=books())
@settings(max_examples=150, deadline=None)
def test_each_change_alone_places_the_job(book: Book) -> None:
    for found in explained(book):
        for change in found.changes:
            again = clear.clear(changed(book, found.job, change))
            assert again.level[found.job] >= 0, change


def test_nearly_every_change_places_the_job_in_markets_of_usual_prices() -> None:
    """Where a raise is worth a micro to the whole market, another matching may do without it."""
    held, failed = Counter[Term](), Counter[Term]()
    for seed in range(4):
        book = synthetic.make(Plan(40, 50, seed))
        for found in explained(book):
            for change in found.changes:
                again = clear.clear(changed(book, found.job, change))
                (held if again.level[found.job] >= 0 else failed)[change.term] += 1
    assert {Term.LIMIT, Term.GPUS, Term.REGION, Term.TRUST, Term.TIER} <= set(held)
    assert failed.total() <= 0.03 * held.total()


@given(book=books())
@settings(max_examples=100, deadline=None)
def test_a_raise_is_the_smallest_that_does(book: Book) -> None:
    """Two micros less, and the job needs the raise as before."""
    matches = clear.clear(book)
    for found in explained(book):
        for change in found.changes:
            less = replace(change, to=round(change.to - 2e-6, 6))
            if change.term is not Term.LIMIT or less.to <= 0:
                continue
            assert change.to > book.job_limit[found.job, change.gpu_class]
            [again] = waiting(changed(book, found.job, less), matches, [found.job])
            assert (change.to, change.nodes) in [(one.to, one.nodes) for one in again.changes]


@pytest.mark.parametrize("micros", [1_000_001, 1_998_701, 2_173_914, 4_999_999, 99_999_937])
def test_a_raise_to_an_ask_of_odd_micros_is_one_micro_above_it(micros: int) -> None:
    """As a float such an ask may lie a hair below its micros."""
    found = only({"limits": {"sxm": 1.0}}, {"ask": micros / 1e6})
    assert round(found.changes[0].to * 1e6) == micros + 1


@given(book=books())
@settings(max_examples=100, deadline=None)
def test_changes_are_ranked_by_what_the_same_work_costs(book: Book) -> None:
    for found in explained(book):
        costs = [change.cost for change in found.changes]
        assert costs == sorted(costs)
        assert all(change.hourly <= change.cost + 1e-9 for change in found.changes)


def test_work_on_a_class_counts_by_the_limit_that_its_buyer_set_on_it() -> None:
    """An hour of `pcie` is worth half to them, so it must cost less than half to come first."""
    nodes = [a_node(1, ask=3.0), a_node(2, ask=1.4, gpu_class="pcie")]
    [found] = explained(a_book([an_order(limits={"sxm": 2.0, "pcie": 1.0})], nodes))
    assert [(change.gpu_class, change.hourly, change.cost) for change in found.changes] == [
        (1, 1.4, 2.8), (0, 3.0, 3.0),
    ]  # fmt: skip


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "no node on offer fits its terms": ({"limits": {"pcie": 1.0}}, {}, {}),
    "it needs 6 GPUs in one node, and no node that it accepts has more than 4 free": (
        {"gpus_min": 6, "gpus_max": 6}, {"gpus": 4}, {},
    ),
    "it needs 6 GPUs on one site, and no site that it accepts has more than 4 free": (
        {"gpus_min": 6, "gpus_max": 6, "level": 1}, {"gpus": 4}, {},
    ),
    "sxm costs 2.50 a GPU-hour, and its limit is 2.00": ({}, {"ask": 2.5}, {}),
}  # fmt: skip


@pytest.mark.parametrize("words", CASES)
def test_a_job_is_told_why_it_waits(words: str) -> None:
    order, node, site = CASES[words]
    assert why_waits(only(order, node, **site), NAMES) == words


HELP: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "raise the limit on sxm to 2.500001: 1 × sxm, 2.50 an hour": ({}, {"ask": 2.5}, {}),
    "do with 4 GPUs: 4 × sxm in one node, 4.00 an hour": (
        {"gpus_min": 6, "gpus_max": 6}, {"gpus": 4}, {},
    ),
    "accept region eu-central: 1 × sxm, 1.00 an hour": ({"regions": 1}, {}, {"region": 1}),
    "accept community sites: 1 × sxm, 1.00 an hour": ({"trust": 1}, {}, {"trust": 3}),
    "accept unproven nodes: 1 × sxm, 1.00 an hour": ({"tier": 0}, {"tier": 2}, {}),
    "do without a long window: 1 × sxm, 1.00 an hour": ({"long": True}, {}, {}),
}  # fmt: skip


@pytest.mark.parametrize("words", HELP)
def test_a_job_is_told_what_would_place_it(words: str) -> None:
    order, node, site = HELP[words]
    [change] = only(order, node, **site).changes
    assert what_helps(change, NAMES) == words


def test_a_gang_is_told_of_a_site_if_no_node_has_room() -> None:
    nodes = [a_node(1, gpus=4), a_node(2, gpus=4, ask=1.5)]
    book = a_book([an_order(gpus_min=8, gpus_max=8, kappa=0.5)], nodes)
    [found] = explained(book)
    level = next(change for change in found.changes if change.term is Term.LEVEL)
    assert what_helps(level, NAMES) == (
        "accept a gang over several nodes of one site: 8 × sxm on one site, 10.00 an hour"
    )
    assert level.nodes == (0, 1)
    # It loses 2.5 % of its speed there, so the same work costs more than an hour of it.
    assert level.cost == pytest.approx(10 / 0.975)


def test_a_gang_in_the_money_is_told_why_it_was_rejected() -> None:
    """Two single jobs that pay more leave three GPUs in each of two nodes."""
    singles = [an_order(n, limits={"sxm": 9.0}) for n in (1, 2)]
    gang = an_order(3, gpus_min=4, gpus_max=4)
    nodes = [a_node(1, gpus=4), a_node(2, gpus=4, site="b")]
    book = a_book([*singles, gang], nodes, [SITE, replace(SITE, id="b")])
    matches = clear.clear(book)
    one = replace(
        matches,
        job=np.array([0, 1], "<i4"), node=np.array([0, 1], "<i4"), gpus=np.array([1, 1], "|i1"),
        price=np.ones(2), level=np.array([0, 0, -1], "|i1"), gpu_class=np.array([0, 0, -1], "<i2"),
        cell_price=np.ones((2, 4)),
    )  # fmt: skip
    [found] = waiting(book, one, [2])
    assert found.why is Why.REJECTED
    assert why_waits(found, NAMES) == (
        "its limit on sxm covers the price of 1.00, but of the 6 GPUs left to it at most 3 are in"
        " one node, and it needs 4: the price is one for all, and a gang is placed whole or not at"
        " all"
    )
    assert [change.term for change in found.changes] == [Term.GPUS]


def test_who_was_outbid_for_all_there_is_is_told_the_price() -> None:
    orders = [an_order(1, limits={"sxm": 3.0}), an_order(2, limits={"sxm": 1.5})]
    [found] = explained(a_book(orders, [a_node(gpus=1)]))
    assert found.changes == ()
    assert why_waits(found, NAMES) == "sxm costs 1.50 a GPU-hour, which is just its limit"


def test_the_cheapest_class_and_region_come_first() -> None:
    sites = [SITE, SiteRow("b", region=1, trust=1), SiteRow("c", region=2, trust=1)]
    nodes = [a_node(1, ask=2.2), a_node(2, ask=1.8, site="b"), a_node(3, ask=1.2, site="c")]
    [found] = explained(a_book([an_order(regions=1)], nodes, sites))
    assert [(change.term, change.to) for change in found.changes] == [
        (Term.REGION, 2), (Term.REGION, 1), (Term.LIMIT, 2.200001),
    ]  # fmt: skip


def test_a_book_without_nodes_fits_nobody() -> None:
    [found] = explained(a_book([an_order()], []))
    assert (found.why, found.changes) == (Why.UNFIT, ())
