"""The engine that looks for better as long as there is time: legal whatever the book, and near the
optimum."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.market.optimum import optimum
from scheduler.matching.book import Book, renumbered, reordered
from scheduler.matching.clear import clear
from scheduler.matching.matches import Matches
from scheduler.matching.synthetic import Plan, make
from tests.matching.rows import SITE, a_book, a_node, an_order, books, checked, edited
from tests.matching.test_clear import HITS, MISSES, placed, where

pytestmark = pytest.mark.timeout(300)  # its loops are compiled first


def cleared(book: Book) -> Matches:
    """Matches that the checker finds right."""
    return checked(book, clear(book))


@given(books())
@settings(max_examples=150, deadline=None)
def test_the_checker_finds_nothing_and_nobody_needs_making_whole(book: Book) -> None:
    matches = cleared(book)
    assert matches.make_whole == 0
    assert (matches.price >= book.node_ask[matches.node] - 1e-9).all()


@given(books(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_rows_means_nothing(book: Book, random: Any) -> None:
    jobs, nodes, sites, classes = (
        np.array(random.sample(range(n), n), np.int64)
        for n in (book.jobs, book.nodes, len(book.site_region), len(book.class_nvlink))
    )
    same = clear(renumbered(reordered(book, jobs, nodes), classes, sites))
    first = clear(book)
    rows = sorted(zip(first.job, first.node, first.gpus, strict=True))
    assert rows == sorted(zip(jobs[same.job], nodes[same.node], same.gpus, strict=True))
    assert first.bound == pytest.approx(same.bound, rel=1e-9)


@given(books(), st.integers(0, 11))
@settings(max_examples=30, deadline=None)
def test_money_has_no_unit(book: Book, power: int) -> None:
    factor = 2.0**power
    richer = edited(book, job_limit=book.job_limit * factor, node_ask=book.node_ask * factor)
    assert clear(book).welfare * factor == pytest.approx(clear(richer).welfare)


@pytest.mark.parametrize("why", MISSES)
def test_an_order_waits_rather_than_take(why: str) -> None:
    order, node, site = MISSES[why]
    book = a_book([an_order(**order)], [a_node(**node)], [replace(SITE, **site)])
    assert placed(cleared(book)) == []


@pytest.mark.parametrize("what", HITS)
def test_an_order_takes(what: str) -> None:
    order, node, site = HITS[what]
    book = a_book([an_order(**order)], [a_node(**node)], [replace(SITE, **site)])
    assert where(cleared(book)) == {0: order.get("gpus_min", 1)}


@pytest.mark.parametrize("seed", range(4))
def test_it_comes_near_the_optimum(seed: int) -> None:
    """By a mixed-integer program; and no bound lies below it."""
    book = make(Plan(jobs=40, nodes=60, seed=seed))
    matches, best = cleared(book), optimum(book)
    assert 0.97 * best <= matches.welfare <= best * (1 + 1e-6)
    assert matches.bound >= best * (1 - 1e-6)


def test_more_time_makes_it_better() -> None:
    book = make(Plan(jobs=300, nodes=900, seed=1))
    looks = iter([True] * 40)
    longer = clear(book, lambda: next(looks, False))
    shorter = clear(book, lambda: False)
    checked(book, longer)
    assert shorter.welfare < longer.welfare


def test_who_has_waited_counts_for_more() -> None:
    orders = [an_order(1, limits={"sxm": 2.1}), an_order(2, age_h=3.0)]
    rules = {"ageing_per_hour": 0.1, "ageing_cap": 0.5}
    assert placed(cleared(a_book(orders, [a_node(gpus=1)], **rules))) == [1]


def test_books_without_orders_or_without_nodes_clear_to_nothing() -> None:
    for book in (a_book([], []), a_book([an_order()], []), a_book([], [a_node()])):
        matches = cleared(book)
        assert len(matches.job) == 0
        assert matches.welfare == matches.bound == 0
