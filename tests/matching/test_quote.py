"""Quotes: every place where an order could run now, its price, and why not elsewhere."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.matching.book import Book, Order, SiteRow
from scheduler.matching.cells import Names, cells, labels
from scheduler.matching.check import check
from scheduler.matching.clear import clear
from scheduler.matching.quote import Candidate, quote
from tests.matching.rows import SITE, a_book, a_node, an_order, books

CLASSES = ["sxm", "pcie"]


def quoted(book: Book, last: dict[str, tuple[float, ...]] | None = None) -> list[Candidate]:
    """Quotes for a book's first order."""
    names = [f"site-{number}" for number in range(len(book.site_region))]
    return quote(book, 0, last or {}, Names(CLASSES, names))


def whys(book: Book) -> list[str]:
    """Why each node that doesn't fit doesn't."""
    return [candidate.why for candidate in quoted(book) if not candidate.fits]


def test_the_best_comes_first_and_what_does_not_fit_last() -> None:
    nodes = [a_node(1, ask=1.5), a_node(2, ask=9.0), a_node(3, ask=0.5), a_node(4, ask=1.0)]
    candidates = quoted(a_book([an_order()], nodes))
    assert [candidate.nodes for candidate in candidates] == [(2,), (3,), (0,), (1,)]
    assert [candidate.fits for candidate in candidates] == [True, True, True, False]
    assert [candidate.surplus for candidate in candidates[:3]] == [1.5, 1.0, 0.5]


def test_the_price_is_the_ask_or_the_last_price_if_that_is_more() -> None:
    nodes = [a_node(1, ask=1.0), a_node(2, ask=1.4)]
    last = {"sxm/site-0/tier-0": (1.2, 1.3, 1.4, 1.6)}
    for gpus, (first, second) in {1: (1.2, 1.4), 2: (1.3, 1.4), 8: (1.6, 1.6)}.items():
        book = a_book([an_order(gpus_min=gpus, gpus_max=gpus)], nodes)
        prices = {candidate.nodes[0]: candidate.prices[0] for candidate in quoted(book, last)}
        assert prices == {0: first, 1: second}


def test_an_uneven_share_pays_the_mean_of_its_slots() -> None:
    book = a_book([an_order(gpus_min=3, gpus_max=3)], [a_node()])
    [candidate] = quoted(book, {"sxm/eu-west-trust-1/tier-0": (1.1, 1.4, 1.4, 1.4)})
    assert candidate.prices == (pytest.approx((1.1 + 2 * 1.4) / 3),)
    assert candidate.hourly == pytest.approx(1.1 + 2 * 1.4)


def test_a_price_of_exactly_the_limit_is_the_buyers_to_take() -> None:
    book = a_book([an_order(limits={"sxm": 1.0}, hours_lost=5.0)], [a_node(tier=2)],
                  failures_per_gpu_hour=(0.1, 0.1, 0.1))  # fmt: skip
    [candidate] = quoted(book)
    assert candidate.fits
    assert candidate.surplus == pytest.approx(-0.5)


def test_what_failures_cost_decides_the_rank() -> None:
    nodes = [a_node(1, ask=1.0, tier=2), a_node(2, ask=1.1, tier=0)]
    book = a_book([an_order(hours_lost=1.0)], nodes, failures_per_gpu_hour=(0.0, 0.0, 0.1))
    assert [candidate.nodes for candidate in quoted(book)] == [(1,), (0,)]


REASONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sxm has too little memory, or no limit of yours": ({"limits": {"pcie": 1.0}}, {}),
    "it stands in a region that you don't accept": ({"regions": 2}, {}),
    "its site is verified; you accept contracted or better": ({"trust": 0}, {}),
    "it is normal; you accept steady or better": ({"tier": 0}, {"tier": 1}),
    "it offers no window that is long enough": ({"long": True}, {}),
    "all its GPUs are let": ({}, {"gpus": 0}),
    "it has 4 GPUs free; you need 6 in one node": ({"gpus_min": 6, "gpus_max": 6}, {"gpus": 4}),
    "it costs 2.5 per GPU-hour; your limit is 2": ({}, {"ask": 2.5}),
    "it costs 1.95 per GPU-hour; 2 GPUs run at 95% of their speed in this node, where your limit"
    " of 2 is worth 1.9": (
        {"limits": {"pcie": 2.0}, "gpus_min": 2, "gpus_max": 2, "kappa": 0.5},
        {"gpu_class": "pcie", "ask": 1.95},
    ),
    "it has 4 GPUs free, and with the others that you accept on one site there are fewer than 6"
    " worth their price": ({"gpus_min": 6, "gpus_max": 6, "level": 1}, {"gpus": 4}),
}


@pytest.mark.parametrize("why", REASONS)
def test_a_node_that_does_not_fit_says_why(why: str) -> None:
    order, node = REASONS[why]
    assert whys(a_book([an_order(**order)], [a_node(**node)])) == [why]


def test_a_node_left_out_of_a_better_gang_says_so() -> None:
    nodes = [a_node(1, gpus=4), a_node(2, gpus=4), a_node(3, gpus=4, ask=1.9)]
    book = a_book([an_order(gpus_min=8, gpus_max=8, level=1)], nodes)
    assert whys(book) == ["it has 4 GPUs free, and other nodes make a better gang of 8"]


def test_a_gang_is_quoted_in_each_node_on_each_site_and_over_sites() -> None:
    sites = [SITE, replace(SITE, id="b"), replace(SITE, id="c")]
    nodes = [a_node(1), a_node(2, gpus=4, site="b"), a_node(3, gpus=4, site="b"),
             a_node(4, gpus=4, site="c", ask=0.7)]  # fmt: skip
    gang = an_order(gpus_min=8, gpus_max=8, level=2, sync_s=60.0, sync_mb=1.0, sites_max=2)
    reached = {candidate.level: candidate for candidate in quoted(a_book([gang], nodes, sites))}
    assert reached[0].nodes == (0,)
    assert set(reached[1].nodes) == {1, 2}
    assert 3 in reached[2].nodes
    assert all(candidate.fits for candidate in reached.values())
    assert all(sum(candidate.gpus) == 8 for candidate in reached.values())


def test_an_elastic_order_is_quoted_for_as_much_as_fits() -> None:
    nodes = [a_node(1, gpus=2), a_node(2, gpus=8), a_node(3, gpus=1)]
    candidates = quoted(a_book([an_order(gpus_min=2, gpus_max=4)], nodes))
    assert [(candidate.nodes, candidate.gpus) for candidate in candidates if candidate.fits] == [
        ((1,), (4,)),
        ((0,), (2,)),
    ]


def test_a_market_without_nodes_has_no_quotes() -> None:
    assert quoted(a_book([an_order()], [])) == []


@given(books(most=8), st.integers(0, 7))
@settings(max_examples=80, deadline=None)
def test_a_quote_never_breaks_a_term_of_the_order(book: Book, which: int) -> None:
    """Every candidate that fits is what the checker would call right, at no less than the ask."""
    if not book.jobs:
        return
    job = which % book.jobs
    names = Names(CLASSES, [str(site) for site in range(len(book.site_region))])
    for candidate in quote(book, job, {}, names):
        total = sum(candidate.gpus)
        asks = book.node_ask[list(candidate.nodes)]
        assert (asks <= candidate.prices).all()
        if not candidate.fits:
            continue
        assert book.job_gpus_min[job] <= total <= book.job_gpus_max[job]
        assert (book.node_gpus[list(candidate.nodes)] >= candidate.gpus).all()
        assert (book.node_class[list(candidate.nodes)] == candidate.gpu_class).all()
        assert candidate.level <= book.job_level[job]
        limit = book.job_limit[job, candidate.gpu_class]
        assert max(candidate.prices) <= limit


@given(books(most=8))
@settings(max_examples=60, deadline=None)
def test_every_node_is_either_offered_or_says_why(book: Book) -> None:
    if not book.jobs:
        return
    candidates = quoted(book)
    fits = [candidate.fits for candidate in candidates]
    assert fits == sorted(fits, reverse=True)
    assert {node for candidate in candidates for node in candidate.nodes} == set(range(book.nodes))


def test_a_round_s_ladder_prices_the_next_quotes() -> None:
    """From matches to the mapping that the next quote is given."""
    sites = [SiteRow("a", 0, 1), SiteRow("b", 1, 1)]
    nodes = [a_node(1, gpus=1, ask=1.0), a_node(2, gpus=1, ask=1.3), a_node(3, site="b")]
    orders: list[Order] = [an_order(1), an_order(2)]
    book = a_book(orders, nodes, sites)
    matches = clear(book)
    assert check(book, matches) == []
    names = Names(CLASSES, ["a", "b"])
    called = labels(cells(book), names)
    last = {
        called[cell]: tuple(ladder)
        for cell, ladder in zip(cells(book).of_node, matches.cell_price.tolist(), strict=True)
    }
    best = quote(book, 0, last, names)[0]
    assert best.prices == (last[called[cells(book).of_node[best.nodes[0]]]][0],)
