"""Why a node was not let, and the ask at which a second clearing lets it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from scheduler.matching import clear, synthetic
from scheduler.matching.book import Book
from scheduler.matching.idling import Idle, Lost, among, idle, let_at, tries
from scheduler.matching.saying import why_idles
from scheduler.matching.synthetic import Plan
from tests.matching.rows import SITE, a_book, a_node, an_order, books

ENGINES = [clear.clear]
NEVER = {Lost.QUIET, Lost.UNWANTED, Lost.SMALL}


def idles(book: Book, engine=clear.clear) -> list[Idle]:
    """Every node with something free of which nothing was let."""
    matches = engine(book)
    free = np.flatnonzero(book.node_gpus > 0)
    return idle(book, matches, np.setdiff1d(free, matches.node).tolist())


def at_ask(book: Book, node: int, ask: float) -> Book:
    asks = book.node_ask.copy()
    asks[node] = ask
    return replace(book, node_ask=asks)


def only(order: dict[str, Any], node: dict[str, Any], **site: Any) -> Idle:
    """One node that one order does not take."""
    [found] = idles(a_book([an_order(**order)], [a_node(**node)], [replace(SITE, **site)]))
    return found


@pytest.mark.parametrize("engine", ENGINES)
@given(book=books(most=8))
@settings(max_examples=60, deadline=None)
def test_what_is_said_of_asks_is_true(engine, book: Book) -> None:
    """The node is let at the ask that is named; and for nothing it is not if nobody could have it."""
    matches = engine(book)
    for found in idles(book, engine):
        if found.why in NEVER:
            assert found.node not in engine(at_ask(book, found.node, 0.0)).node
            continue
        tried = tries(book, matches, found.node)
        assert tried == sorted(tried, reverse=True)
        assert all(0 <= ask < book.node_ask[found.node] for ask in tried)
        ask = let_at(book, found.node, tried, engine)
        if ask is not None:
            assert found.node in engine(at_ask(book, found.node, ask)).node


@pytest.mark.parametrize("engine", ENGINES)
def test_in_a_usual_market_nearly_every_idle_node_has_such_an_ask(engine) -> None:
    book = synthetic.make(Plan(40, 60, 1))
    matches = engine(book)
    priced = [found for found in idles(book, engine) if found.why not in NEVER]
    asks = [let_at(book, one.node, tries(book, matches, one.node), engine) for one in priced]
    assert len(priced) > 10
    assert sum(ask is not None for ask in asks) >= 0.8 * len(asks)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "none of 1 waiting job could run on it; 1 want another GPU class, or more than it has": (
        {"limits": {"pcie": 1.0}}, {}, {},
    ),
    "none of 1 waiting job could run on it; 1 want another region": ({"regions": 2}, {}, {}),
    "none of 1 waiting job could run on it; 1 want a site that is trusted more": (
        {"trust": 0}, {}, {},
    ),
    "none of 1 waiting job could run on it; 1 want a node that is better proven": (
        {"tier": 0}, {"tier": 1}, {},
    ),
    "none of 1 waiting job could run on it; 1 want a longer window": ({"long": True}, {}, {}),
    "the jobs that could run on it need 6 GPUs or more together": (
        {"gpus_min": 6, "gpus_max": 6}, {"gpus": 4}, {},
    ),
    "nothing like it was let, so there is no price to go by": ({}, {"ask": 2.5}, {}),
}  # fmt: skip


@pytest.mark.parametrize("words", CASES)
def test_a_supplier_is_told_why(words: str) -> None:
    order, node, site = CASES[words]
    assert why_idles(only(order, node, **site)) == words


def test_a_dear_node_is_told_the_price_of_its_like_and_would_be_let_for_it() -> None:
    orders = [an_order(1), an_order(2)]
    nodes = [a_node(1, gpus=1), a_node(2, gpus=1, ask=1.2), a_node(3, gpus=1, ask=1.6)]
    book = a_book(orders, nodes)
    [found] = idles(book)
    assert (found.why, found.own_cell) == (Lost.DEAR, True)
    assert why_idles(found) == "its ask was above what its like was let for, 1.20"
    # At just this ask it ties with the second, and the book's seed decides for it.
    assert let_at(book, 2, tries(book, clear.clear(book), 2), clear.clear) == 1.2


def test_a_node_of_another_site_is_told_the_price_of_its_class() -> None:
    sites = [SITE, replace(SITE, id="b", trust=2)]
    nodes = [a_node(1, gpus=1), a_node(2, gpus=1, ask=1.6, site="b")]
    [found] = idles(a_book([an_order()], nodes, sites))
    assert why_idles(found) == "its ask was above what others of its class were let for, 1.00"


def test_in_a_long_market_a_node_is_told_so() -> None:
    nodes = [a_node(number, gpus=1) for number in (1, 2, 3)]
    book = a_book([an_order()], nodes)
    for found in idles(book):
        assert found.why is Lost.LONG
        assert why_idles(found) == "its like was let for 1.00, and more was free than wanted"
        ask = let_at(book, found.node, tries(book, clear.clear(book), found.node), clear.clear)
        assert ask == 0.999999


def test_fewer_clearings_tell_fewer_asks_apart() -> None:
    asks = list(range(18, 0, -1))
    assert among(asks, 1) == [9]
    assert among(asks, 2) == [14, 9, 5]
    assert among(asks, 5) == asks
    assert among([], 3) == []


def test_without_jobs_nothing_is_to_be_said_but_that() -> None:
    [found] = idles(a_book([], [a_node()]))
    assert why_idles(found) == "no job waited"


def test_what_would_not_be_let_for_nothing_is_never_promised() -> None:
    """The search looks at no ask that the clearing does not confirm."""
    book = a_book([an_order(limits={"pcie": 1.0})], [a_node()])
    assert let_at(book, 0, [0.9, 0.5, 0.1], clear.clear) is None
