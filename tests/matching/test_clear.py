"""Clearing: legal, whole, fair to both sides, and the same whatever the order of the rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.matching.book import Book, SiteRow, renumbered, reordered
from scheduler.matching.clear import clear
from scheduler.matching.matches import Matches
from scheduler.matching.synthetic import Plan, make
from tests.matching.rows import SITE, a_book, a_node, an_order, books, checked, edited


def placed(matches: Matches) -> list[int]:
    """Which jobs run."""
    return np.flatnonzero(matches.level >= 0).tolist()


def where(matches: Matches, job: int = 0) -> dict[int, int]:
    """Node → GPUs of one job."""
    gpus: dict[int, int] = {}
    for row in np.flatnonzero(matches.job == job):
        node = int(matches.node[row])
        gpus[node] = gpus.get(node, 0) + int(matches.gpus[row])
    return gpus


def cleared(book: Book) -> Matches:
    """Matches that the checker finds right."""
    return checked(book, clear(book))


# What holds for every book


@given(books())
@settings(max_examples=150, deadline=None)
def test_the_checker_finds_nothing(book: Book) -> None:
    cleared(book)


@given(books())
@settings(max_examples=40, deadline=None)
def test_nobody_pays_over_the_limit_or_gets_less_than_asked(book: Book) -> None:
    matches = clear(book)
    limit = book.job_limit[matches.job, book.node_class[matches.node]]
    # A gang's whole counts: one of its GPUs may cost more than another.
    paid, most = (np.bincount(matches.job, matches.gpus * each) for each in (matches.price, limit))
    assert (paid <= most * (1 + 1e-12)).all()
    assert (matches.price >= book.node_ask[matches.node]).all()
    assert matches.make_whole == 0
    assert 0 <= matches.welfare <= matches.bound * (1 + 1e-12) + 1e-12


@given(books())
@settings(max_examples=40, deadline=None)
def test_a_gang_is_whole_or_waits(book: Book) -> None:
    matches = clear(book)
    gpus = np.bincount(matches.job, matches.gpus, book.jobs)
    runs = matches.level >= 0
    assert (gpus[~runs] == 0).all()
    assert (gpus[runs] >= book.job_gpus_min[runs]).all()
    assert (gpus[runs] <= book.job_gpus_max[runs]).all()


@given(books())
@settings(max_examples=30, deadline=None)
def test_clearing_twice_gives_the_same_to_the_bit(book: Book) -> None:
    one, other = clear(book).as_arrays(), clear(book).as_arrays()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


@given(books(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_rows_means_nothing(book: Book, random: Any) -> None:
    jobs, nodes, sites, classes = (
        np.array(random.sample(range(n), n), np.int64)
        for n in (book.jobs, book.nodes, len(book.site_region), len(book.class_nvlink))
    )
    same = clear(renumbered(reordered(book, jobs, nodes), classes, sites))
    first = clear(book)
    rows = sorted(zip(first.job, first.node, first.gpus, first.price, strict=True))
    again = sorted(zip(jobs[same.job], nodes[same.node], same.gpus, same.price, strict=True))
    assert rows == again
    assert (first.level[jobs] == same.level).all()
    assert (first.cell_price[nodes] == same.cell_price).all()
    assert first.welfare == same.welfare
    assert first.bound == pytest.approx(same.bound, rel=1e-12)


@given(books(), st.integers(0, 11))
@settings(max_examples=30, deadline=None)
def test_money_has_no_unit(book: Book, power: int) -> None:
    """In other coins (here powers of two, which floats hold exactly) the same jobs run."""
    factor = 2.0**power
    richer = edited(book, job_limit=book.job_limit * factor, node_ask=book.node_ask * factor)
    one, other = clear(book), clear(richer)
    assert one.level.tolist() == other.level.tolist()
    assert one.node.tolist() == other.node.tolist()
    assert one.welfare * factor == pytest.approx(other.welfare)


@pytest.mark.parametrize("seed", range(4))
def test_a_market_of_many_is_cleared_right(seed: int) -> None:
    book = make(Plan(jobs=300, nodes=900, seed=seed, alone=0.25 * seed))
    matches = cleared(book)
    assert len(placed(matches)) > 150
    assert set(matches.level) == {-1, 0, 1, 2}


# One order, one node


def test_an_order_finds_its_gpu() -> None:
    matches = cleared(a_book([an_order()], [a_node()]))
    assert matches.as_arrays()["class"].tolist() == [0]
    assert where(matches) == {0: 1}
    assert matches.price.tolist() == [1.0]
    assert matches.welfare == pytest.approx(1.0)


MISSES = {
    "no limit for the class, or too little memory": ({"limits": {"pcie": 9.0}}, {}, {}),
    "a limit below the ask": ({"limits": {"sxm": 0.999999}}, {}, {}),
    "too few GPUs in the node": ({"gpus_min": 9, "gpus_max": 9}, {}, {}),
    "nothing free": ({}, {"gpus": 0}, {}),
    "a region not accepted": ({"regions": 0b1011}, {}, {"region": 2}),
    "a site less trusted": ({"trust": 0}, {}, {}),
    "a node less reliable": ({"tier": 0}, {"tier": 1}, {}),
    "a window too short": ({"long": True}, {}, {}),
    "slower without NVLink": (
        {"limits": {"pcie": 1.04}, "gpus_min": 2, "gpus_max": 2, "kappa": 1.0},
        {"gpu_class": "pcie"},
        {},
    ),
}
"""Why the order waits → terms of the order, the node, the site."""


@pytest.mark.parametrize("why", MISSES)
def test_an_order_waits_rather_than_take(why: str) -> None:
    order, node, site = MISSES[why]
    matches = cleared(a_book([an_order(**order)], [a_node(**node)], [replace(SITE, **site)]))
    assert placed(matches) == []
    assert matches.level.tolist() == [-1]
    assert matches.gpu_class.tolist() == [-1]
    assert matches.welfare == 0


HITS = {
    "one of several regions": ({"regions": 0b0110}, {}, {"region": 2}),
    "the worst trust accepted": ({"trust": 1}, {}, {}),
    "the worst tier accepted": ({"tier": 1}, {"tier": 1}, {}),
    "a long window": ({"long": True}, {"long": True}, {}),
    "a limit of exactly the ask": ({"limits": {"sxm": 1.0}}, {}, {}),
    "another class": ({"limits": {"pcie": 2.0}}, {"gpu_class": "pcie"}, {}),
    "a whole node": ({"gpus_min": 8, "gpus_max": 8}, {}, {}),
    "an uneven share": ({"gpus_min": 7, "gpus_max": 7}, {}, {}),
    "NVLink, however much it talks": (
        {"limits": {"sxm": 1.04}, "gpus_min": 2, "gpus_max": 2, "kappa": 1.0}, {}, {},
    ),
    "a single GPU, however much it talks": (
        {"limits": {"pcie": 1.04}, "kappa": 1.0}, {"gpu_class": "pcie"}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HITS)
def test_an_order_takes(what: str) -> None:
    order, node, site = HITS[what]
    matches = cleared(a_book([an_order(**order)], [a_node(**node)], [replace(SITE, **site)]))
    assert where(matches) == {0: order.get("gpus_min", 1)}


def test_seven_gpus_are_let_as_four_two_and_one() -> None:
    matches = cleared(a_book([an_order(gpus_min=7, gpus_max=7)], [a_node()]))
    assert matches.gpus.tolist() == [4, 2, 1]


def test_what_failures_would_cost_counts_against_a_node() -> None:
    order = an_order(limits={"sxm": 1.1}, hours_lost=10.0)
    rules = {"failures_per_gpu_hour": (1e-3, 1e-3, 1e-1)}
    assert placed(cleared(a_book([order], [a_node(tier=2)], **rules))) == []
    assert placed(cleared(a_book([order], [a_node(tier=0)], **rules))) == [0]


def test_a_cheaper_node_may_cost_more_when_it_fails() -> None:
    order = an_order(hours_lost=2.0)
    nodes = [a_node(1, ask=0.9, tier=2), a_node(2, ask=1.0, tier=0)]
    rules = {"failures_per_gpu_hour": (0.0, 0.0, 0.1)}
    assert where(cleared(a_book([order], nodes, **rules))) == {1: 1}


# Gangs


def test_a_gang_does_not_leave_its_node_unless_it_says_so() -> None:
    nodes = [a_node(1, gpus=4), a_node(2, gpus=4)]
    gang = an_order(gpus_min=8, gpus_max=8)
    assert placed(cleared(a_book([gang], nodes))) == []
    matches = cleared(a_book([replace(gang, level=1)], nodes))
    assert where(matches) == {0: 4, 1: 4}
    assert matches.level.tolist() == [1]


def test_a_gang_does_not_leave_its_site_unless_it_says_so() -> None:
    nodes = [a_node(1, gpus=4), a_node(2, gpus=4, site="b")]
    sites = [SITE, replace(SITE, id="b")]
    gang = an_order(gpus_min=8, gpus_max=8, level=1, sync_s=60.0, sync_mb=1.0, sites_max=2)
    assert placed(cleared(a_book([gang], nodes, sites))) == []
    matches = cleared(a_book([replace(gang, level=2)], nodes, sites))
    assert where(matches) == {0: 4, 1: 4}
    assert matches.level.tolist() == [2]


def test_a_gang_has_one_class() -> None:
    nodes = [a_node(1, gpus=4), a_node(2, gpus=4, gpu_class="pcie")]
    gang = an_order(limits={"sxm": 2.0, "pcie": 2.0}, gpus_min=8, gpus_max=8, level=1)
    assert placed(cleared(a_book([gang], nodes))) == []


def test_a_slow_network_is_worth_less() -> None:
    nodes = [a_node(1, gpus=4), a_node(2, gpus=4)]
    gang = an_order(limits={"sxm": 1.5}, gpus_min=8, gpus_max=8, level=1, kappa=1.0)
    assert placed(cleared(a_book([gang], nodes, [replace(SITE, net=0)]))) == [0]
    assert placed(cleared(a_book([gang], nodes, [replace(SITE, net=2)]))) == []


SPREAD: dict[str, Any] = {"gpus_min": 8, "gpus_max": 8, "level": 2, "sync_s": 60.0}


@pytest.mark.parametrize(
    ("order", "up_mbps"),
    [
        ({"sites_max": 1}, 1000.0),
        ({"sites_max": 2, "site_gpus_min": 5}, 1000.0),
        ({"sites_max": 2, "sync_s": 0.0}, 1000.0),
        ({"sites_max": 2}, 0.0),
        ({"sites_max": 2, "sync_mb": 5000.0}, 1000.0),
    ],
    ids=["one site only", "more in each site", "never computing", "no uplink", "too much to send"],
)
def test_a_gang_over_sites_keeps_to_its_terms(order: dict[str, Any], up_mbps: float) -> None:
    nodes = [a_node(1, gpus=4), a_node(2, gpus=4, site="b")]
    sites = [replace(SITE, up_mbps=up_mbps), replace(SITE, id="b", up_mbps=up_mbps)]
    assert placed(cleared(a_book([an_order(**SPREAD | order)], nodes, sites))) == []


def test_a_gang_over_sites_leaves_none_with_too_few() -> None:
    nodes = [a_node(1, gpus=7), a_node(2, gpus=4, site="b", ask=1.5)]
    sites = [SITE, replace(SITE, id="b")]
    gang = an_order(**SPREAD | {"sites_max": 2, "site_gpus_min": 3})
    assert where(cleared(a_book([gang], nodes, sites))) == {0: 5, 1: 3}


def test_an_elastic_gang_over_sites_takes_what_gains_it_anything() -> None:
    """Between its least and its most: the two at 3.0 are worth less than they ask."""
    sites = [SITE, replace(SITE, id="b")]
    nodes = [a_node(1, gpus=4), a_node(2, gpus=2, site="b"), a_node(3, gpus=2, ask=3.0, site="b")]
    gang = an_order(**SPREAD | {"gpus_min": 5, "gpus_max": 8, "sites_max": 2})
    assert where(cleared(a_book([gang], nodes, sites))) == {0: 4, 1: 2}
    # But it takes them where it must.
    gang = replace(gang, gpus_min=8, limits={"sxm": 4.0})
    assert where(cleared(a_book([gang], nodes, sites))) == {0: 4, 1: 2, 2: 2}


def test_few_large_sites_serve_a_gang_that_may_span_few() -> None:
    sites = [SiteRow(name, 0, 1, 0, 1000.0) for name in "abcd"]
    nodes = [
        a_node(n, site=site, gpus=gpus, ask=ask)
        for n, (site, gpus, ask) in enumerate(
            [("a", 4, 1.5), ("b", 4, 1.5), ("c", 1, 0.5), ("d", 1, 0.5)]
        )
    ]
    gang = an_order(**SPREAD | {"sites_max": 2})
    assert where(cleared(a_book([gang], nodes, sites))) == {0: 4, 1: 4}


def test_an_elastic_gang_takes_as_much_as_there_is() -> None:
    gang = an_order(gpus_min=2, gpus_max=16)
    assert where(cleared(a_book([gang], [a_node(gpus=5)]))) == {0: 5}
    assert where(cleared(a_book([replace(gang, level=1)], [a_node(1), a_node(2, gpus=4)]))) == {
        0: 8,
        1: 4,
    }
    assert placed(cleared(a_book([gang], [a_node(gpus=1)]))) == []


def test_a_gang_too_dear_as_a_whole_takes_what_gains_it_most() -> None:
    """n · (1.1 − 1 − 0.02 · n · 1.1) is largest for two."""
    gang = an_order(gpus_min=1, gpus_max=8, limits={"sxm": 1.1}, hours_lost=1.0)
    rules = {"failures_per_gpu_hour": (0.02, 0.02, 0.02)}
    assert where(cleared(a_book([gang], [a_node()], **rules))) == {0: 2}


# Who comes first, and at which price


def test_the_lowest_asks_serve_the_highest_limits() -> None:
    orders = [an_order(n, limits={"sxm": 1.0 + n}) for n in range(4)]
    nodes = [a_node(n, gpus=1, ask=0.5 + n) for n in range(4)]
    matches = cleared(a_book(orders, nodes))
    assert placed(matches) == [2, 3]
    assert set(matches.node.tolist()) == {0, 1}
    # One price, and it keeps out the order at 2.00 that found the cheap nodes taken.
    assert matches.price.tolist() == [2.0, 2.0]


def test_with_room_to_spare_a_bid_says_nothing_about_its_price() -> None:
    for limit in (1.0, 1.5, 90.0):
        matches = cleared(a_book([an_order(limits={"sxm": limit})], [a_node()]))
        assert matches.price.tolist() == [1.0]


def test_all_of_a_cell_pay_one_price() -> None:
    orders = [an_order(n, limits={"sxm": 3.0 + n / 10}) for n in range(6)]
    nodes = [a_node(n, gpus=2, ask=1.0 + n / 10) for n in range(3)]
    matches = cleared(a_book(orders, nodes))
    assert matches.price.tolist() == [1.2] * 6


def test_a_whole_block_costs_no_less_a_gpu_than_its_parts() -> None:
    orders = [an_order(1, gpus_min=8, gpus_max=8), an_order(2, limits={"sxm": 1.9})]
    matches = cleared(a_book(orders, [a_node(1), a_node(2, gpus=1, ask=1.5)]))
    assert dict(zip(matches.gpus.tolist(), matches.price.tolist(), strict=True)) == {8: 1.5, 1: 1.5}


def test_trades_that_can_not_agree_on_a_price_are_not_made() -> None:
    """Both could trade (2.0 at 1.0, 0.6 at 0.5) but for one price of 1.0 or more."""
    orders = [
        an_order(1, gpus_min=8, gpus_max=8, limits={"sxm": 2.0}),
        an_order(2, gpus_min=2, gpus_max=2, limits={"sxm": 0.6}),
    ]
    nodes = [a_node(1, ask=1.0), a_node(2, ask=0.5, gpus=2)]
    matches = cleared(a_book(orders, nodes))
    # The block's price may lie above that of pairs, so here both ladders hold.
    assert placed(matches) == [0, 1]
    orders[1] = replace(orders[1], gpus_min=8, gpus_max=8)
    nodes[1] = replace(nodes[1], gpus=8)
    orders.append(an_order(3, gpus_min=8, gpus_max=8, limits={"sxm": 2.0}))
    assert placed(cleared(a_book(orders, nodes))) == [0, 2]


def test_of_equal_nodes_the_tighter_is_taken() -> None:
    nodes = [a_node(1, gpus=8), a_node(2, gpus=2), a_node(3, gpus=4)]
    order = an_order(gpus_min=2, gpus_max=2)
    assert where(cleared(a_book([order], nodes))) == {1: 2}


def test_who_has_waited_goes_first() -> None:
    orders = [an_order(1, limits={"sxm": 2.1}), an_order(2, age_h=3.0)]
    nodes = [a_node(gpus=1)]
    rules = {"ageing_per_hour": 0.1, "ageing_cap": 0.5}
    assert placed(cleared(a_book(orders, nodes, **rules))) == [1]
    orders[1] = replace(orders[1], age_h=0.0)
    assert placed(cleared(a_book(orders, nodes, **rules))) == [0]


def test_waiting_counts_only_up_to_a_cap() -> None:
    orders = [an_order(1, limits={"sxm": 4.0}), an_order(2, age_h=1000.0)]
    assert placed(cleared(a_book(orders, [a_node(gpus=1)]))) == [0]


def test_the_seed_breaks_ties_and_each_gets_a_turn() -> None:
    orders = [an_order(number) for number in range(4)]
    book = a_book(orders, [a_node(gpus=1)])
    winners = {
        placed(cleared(replace(book, params=replace(book.params, seed=seed))))[0]
        for seed in range(64)
    }
    assert winners == {0, 1, 2, 3}


def test_prices_are_whole_micros_where_asks_are() -> None:
    """But for what a gang pays to which they are too dear: all that it is worth to it."""
    book = make(Plan(jobs=200, nodes=300, seed=5))
    matches = clear(book)
    slot = np.log2(matches.gpus).astype(int)
    uncapped = matches.price == matches.cell_price[matches.node, slot]
    assert uncapped.mean() > 0.85
    price = matches.price[uncapped] * 1e6
    np.testing.assert_allclose(price, np.round(price), atol=1e-6)


def test_an_untraded_cell_shows_what_the_next_order_would_pay() -> None:
    nodes = [a_node(1, gpus=2, ask=0.8), a_node(2, ask=1.4)]
    matches = cleared(a_book([], nodes))
    assert matches.cell_price.tolist() == [[0.8, 0.8, 1.4, 1.4]] * 2


def test_books_without_orders_or_without_nodes_clear_to_nothing() -> None:
    for book in (a_book([], []), a_book([an_order()], []), a_book([], [a_node()])):
        matches = cleared(book)
        assert len(matches.job) == 0
        assert matches.welfare == matches.bound == 0
