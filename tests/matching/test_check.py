"""The checker finds every kind of wrong in matches that were right."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scheduler.matching.book import Book, SiteRow
from scheduler.matching.check import check
from scheduler.matching.check_bound import proven_bound
from scheduler.matching.clear import clear
from scheduler.matching.matches import Matches
from tests.matching.rows import a_book, a_node, an_order, edited

RULES = {"failures_per_gpu_hour": (1e-4, 1e-3, 1e-2)}


@pytest.fixture
def book() -> Book:
    """Job 0 has one GPU, 1 seven of one node, 2 a site, 3 two sites; 4 is outbid; all fits."""
    terms: dict[str, Any] = {"kappa": 0.2, "hours_lost": 0.5}
    orders = [
        an_order(10, limits={"sxm": 3.0}, trust=1, tier=0, regions=1, **terms),
        an_order(11, limits={"pcie": 2.0}, gpus_min=7, gpus_max=7, long=True, **terms),
        an_order(12, limits={"sxm": 2.0}, gpus_min=10, gpus_max=12, level=1, **terms),
        an_order(13, limits={"pcie": 2.0}, gpus_min=6, gpus_max=6, level=2, sync_mb=1.0,
                 sync_s=60.0, site_gpus_min=2, sites_max=2, **terms),
        an_order(14, limits={"sxm": 0.2}, **terms),
    ]  # fmt: skip
    nodes = [
        a_node(20, site="a", gpus=8, ask=1.0),
        a_node(21, site="a", gpus=6, ask=1.1),
        a_node(22, site="b", gpu_class="pcie", gpus=7, ask=0.7, long=True),
        a_node(23, site="c", gpu_class="pcie", gpus=3, ask=0.8),
        a_node(24, site="d", gpu_class="pcie", gpus=4, ask=0.9, tier=1),
        a_node(25, site="e", gpus=0, ask=0.1, tier=2),
    ]
    sites = [SiteRow("a", 0, 1, 0, 1e3), SiteRow("b", 1, 2, 1, 1e3), SiteRow("c", 2, 2, 1, 5e2),
             SiteRow("d", 3, 2, 2, 1e2), SiteRow("e", 4, 3, 2, 1e2)]  # fmt: skip
    return a_book(orders, nodes, sites, **RULES)


def tampered(matches: Matches, **columns: Any) -> Matches:
    """The matches with some arrays or sums replaced; values take the array's own type."""
    return replace(
        matches,
        **{
            name: np.array(value, getattr(matches, name).dtype)
            if isinstance(getattr(matches, name), np.ndarray)
            else float(value)
            for name, value in columns.items()
        },
    )


def changed(array: np.ndarray, at: Any, value: Any) -> np.ndarray:
    """A copy with one entry changed."""
    copy = array.copy()
    copy[at] = value
    return copy


def test_the_book_of_these_tests_is_cleared_right(book: Book) -> None:
    matches = clear(book)
    assert check(book, matches) == []
    assert matches.level.tolist() == [0, 0, 1, 2, -1]


# What was done to the matches → how, and what the checker must say.
TAMPERS: dict[str, tuple[Callable[[Matches], Matches], str]] = {
    "one GPU let twice": (
        lambda m: tampered(m, node=np.where(m.job == 0, m.node[m.job == 2][0], m.node),
                           gpus=np.where(m.job == 0, 8, m.gpus)),
        "lets",
    ),
    "a GPU that was not free": (lambda m: tampered(m, node=np.where(m.job == 0, 5, m.node)), "lets"),
    "a gang cut short": (
        lambda m: _without(m, np.flatnonzero(m.job == 1)[0]), "has 3 GPUs and wants 7",
    ),
    "a gang too large": (
        lambda m: tampered(m, gpus=changed(m.gpus, np.flatnonzero(m.job == 0)[0], 2)), "wants 1",
    ),
    "a slot of no size": (lambda m: tampered(m, gpus=changed(m.gpus, 0, 3)), "slots have 1, 2, 4"),
    "a row twice": (lambda m: _with_copy(m, np.flatnonzero(m.job == 1)[-1]), "2 slots of 1"),
    "a job that is not there": (lambda m: tampered(m, job=changed(m.job, 0, 99)), "of job 99"),
    "a node that is not there": (lambda m: tampered(m, node=changed(m.node, 0, 99)), "on node 99"),
    "a gang of two classes": (
        lambda m: tampered(m, node=changed(m.node, np.flatnonzero(m.job == 2)[0], 2)),
        "several classes",
    ),
    "another class said": (lambda m: tampered(m, gpu_class=changed(m.gpu_class, 0, 1)), "class says 1"),
    "a class said of who waits": (
        lambda m: tampered(m, gpu_class=changed(m.gpu_class, 4, 0)), "class says 0",
    ),
    "a closer level said": (lambda m: tampered(m, level=changed(m.level, 2, 0)), "level says 0"),
    "a level said of who waits": (lambda m: tampered(m, level=changed(m.level, 4, 0)), "level says 0"),
    "a placed job said to wait": (lambda m: tampered(m, level=changed(m.level, 0, -1)), "says -1"),
    "a price above the cell's": (lambda m: _repriced(m, 0, 1.01), "where the price is"),
    "a price below the cell's": (lambda m: _repriced(m, 0, 0.99), "where the price is"),
    "a price below the ask, with its ladder": (
        lambda m: tampered(_repriced(m, 0, 0.5), cell_price=m.cell_price * 0.5), "make_whole is",
    ),
    "a ladder that falls": (
        lambda m: tampered(m, cell_price=m.cell_price * [1.5, 1.2, 1.1, 1.0]), "fall with",
    ),
    "a balance that falls": (
        lambda m: tampered(m, balance=m.balance * [1.5, 1.2, 1.1, 1.0]), "balance of node 0 fall",
    ),
    "a balance that nobody has": (lambda m: tampered(m, balance=m.balance * 2), "bound is"),
    "two prices in one cell": (
        lambda m: tampered(m, cell_price=changed(m.cell_price, (1, 3), 99.0)), "differ in price",
    ),
    "more welfare than there is": (lambda m: tampered(m, welfare=m.welfare + 0.01), "welfare is"),
    "less welfare than there is": (lambda m: tampered(m, welfare=m.welfare - 0.01), "welfare is"),
    "a tighter bound than is proven": (lambda m: tampered(m, bound=m.welfare), "bound is"),
    "a looser bound": (lambda m: tampered(m, bound=m.bound + 1), "bound is"),
    "money for nobody": (lambda m: tampered(m, make_whole=0.5), "make_whole is"),
    "the matches of a book with more jobs": (
        lambda m: tampered(m, level=[*m.level, -1], gpu_class=[*m.gpu_class, -1]), "for 5 jobs",
    ),
    "the matches of a book with fewer nodes": (
        lambda m: tampered(m, cell_price=m.cell_price[:-1], balance=m.balance[:-1]), "for 6 nodes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERS)
def test_the_checker_catches(book: Book, what: str) -> None:
    tamper, said = TAMPERS[what]
    faults = check(book, tamper(clear(book)))
    assert any(said in fault for fault in faults), faults


def _without(m: Matches, row: int) -> Matches:
    return tampered(m, **{name: np.delete(getattr(m, name), row)
                          for name in ("job", "node", "gpus", "price")})  # fmt: skip


def _with_copy(m: Matches, row: int) -> Matches:
    return tampered(m, **{name: np.append(getattr(m, name), getattr(m, name)[row])
                          for name in ("job", "node", "gpus", "price")})  # fmt: skip


def _repriced(m: Matches, row: int, factor: float) -> Matches:
    return tampered(m, price=changed(m.price, row, m.price[row] * factor))


# A term that the order or the node has in truth, and the matches were made without → what is said.
TERMS: dict[str, tuple[dict[str, tuple[Any, Any]], str]] = {
    "the class": ({"job_limit": ((0, 0), 0.0)}, "class or memory"),
    "the region": ({"job_regions": (0, 2)}, "region"),
    "the trust": ({"job_trust": (0, 0)}, "trust"),
    "the reliability": ({"node_tier": (slice(0, 2), 1)}, "reliability"),
    "the window": ({"node_long": (2, 0)}, "window"),
    "the least size": ({"job_gpus_max": (2, 13), "job_gpus_min": (2, 13)}, "wants 13 to 13"),
    "the most size": ({"job_gpus_max": (2, 11), "job_gpus_min": (2, 1)}, "wants 1 to 11"),
    "the level of a site gang": ({"job_level": (2, 0)}, "accepts level 0 and got 1"),
    "the level of a gang over sites": ({"job_level": (3, 1)}, "accepts level 1 and got 2"),
    "the number of sites": ({"job_sites_max": (3, 1)}, "accepts 1 sites and got 2"),
    "the least on each site": ({"job_site_gpus_min": (3, 4)}, "fewer than it accepts"),
    "what is free": ({"node_gpus": (0, 4)}, "has 4 free"),
    "the limit": ({"job_limit": ((0, 0), 0.9)}, "worth 0.9"),
    "the ask": ({"node_ask": (0, 1.2)}, "make_whole is"),
    "the uplink": ({"site_up_mbps": (slice(2, 4), 0.1)}, "for what is worth"),
    "the network": ({"job_kappa": (2, 1.0), "site_net": (0, 2)}, "welfare is"),
    "the hours lost": ({"job_hours_lost": (3, 5.0)}, "welfare is"),
    "a value nobody counted": ({"job_limit": ((4, 0), 0.8)}, ""),
}


@pytest.mark.parametrize("what", TERMS)
def test_matches_made_without_a_term_are_caught(book: Book, what: str) -> None:
    changes, said = TERMS[what]
    truth = edited(
        book, **{name: changed(getattr(book, name), *change) for name, change in changes.items()}
    )
    faults = check(truth, clear(book))
    assert any(said in fault for fault in faults) if said else faults == []


def test_a_buyer_at_the_limit_may_pay_less_than_the_price() -> None:
    """Later engines cap a price at the buyer's value, and make the seller whole."""
    book = a_book([an_order(limits={"sxm": 1.5})], [a_node(ask=1.2)])
    matches = clear(book)
    over = tampered(matches, cell_price=np.full((1, 4), 1.6))
    capped = tampered(over, price=[1.5])
    assert check(book, capped) == []
    assert check(book, tampered(capped, price=[1.4])) != []
    assert check(book, tampered(capped, price=[1.6])) != []


def test_who_is_made_whole_is_counted() -> None:
    book = a_book([an_order(limits={"sxm": 1.5})], [a_node(ask=1.2)])
    below = tampered(clear(book), price=[1.1], cell_price=np.full((1, 4), 1.1))
    assert any("make_whole" in fault for fault in check(book, below))
    assert check(book, tampered(below, make_whole=0.1)) == []


def test_a_bound_from_before_it_had_prices_of_its_own_may_be_looser(book: Book) -> None:
    before = replace(clear(book), balance=None)
    proven = proven_bound(book, before.cell_price)
    assert check(book, replace(before, bound=proven + 1)) == []
    assert any("bound is" in fault for fault in check(book, replace(before, bound=proven - 1)))
