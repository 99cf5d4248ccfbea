"""Quotes: every place where an order could run now, its price, and why not elsewhere."""

from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.core.errors import Invalid
from scheduler.matching import book as shelves
from scheduler.matching.book import Book, Order, SiteRow
from scheduler.matching.check import check
from scheduler.matching.clear import clear
from scheduler.matching.quote import Candidate, Quotes
from tests.matching.rows import SITE, a_book, a_node, an_order, books, orders

pytestmark = pytest.mark.timeout(300)  # its loops are compiled first
CLASSES = ["sxm", "pcie"]


def quoted(order: Order, book: Book, last: Any = None) -> list[Candidate]:
    """All quotes for an order, which the first must be the best of."""
    return asked(order, book, last)[0]


def asked(order: Order, book: Book, last: Any = None) -> tuple[list[Candidate], dict[int, str]]:
    """The same, and why each node that doesn't fit doesn't."""
    quotes = Quotes(book, CLASSES, last)
    answer, best = quotes.every(order), quotes.best(order)
    fitting = [answer.place(at) for at in range(len(answer.found))]
    assert (best is None) == (not fitting)
    if best is not None:
        assert worth(best) == pytest.approx(worth(fitting[0]), abs=1e-6)
    which, sentences = answer.whys(answer.unfit)
    alone = {node: answer.why(node) for node in answer.unfit.tolist()}
    assert [sentences[at] for at in which] == list(alone.values())
    return fitting, alone


def worth(candidate: Candidate) -> float:
    """What it is ranked by."""
    return candidate.surplus if candidate.surplus > -1e-9 else candidate.gain - 1e6


def whys(order: Order, book: Book) -> list[str]:
    """Why each node that doesn't fit doesn't."""
    return list(asked(order, book)[1].values())


def test_the_best_comes_first_and_what_does_not_fit_says_so() -> None:
    nodes = [a_node(1, ask=1.5), a_node(2, ask=9.0), a_node(3, ask=0.5), a_node(4, ask=1.0)]
    candidates, unfit = asked(an_order(), a_book([], nodes))
    assert [candidate.nodes for candidate in candidates] == [(2,), (3,), (0,)]
    assert [candidate.surplus for candidate in candidates] == [1.5, 1.0, 0.5]
    assert list(unfit) == [1]


@pytest.mark.parametrize("gpus", [16, 128, 4096])
def test_a_gang_too_large_for_all_there_is_says_why(gpus: int) -> None:
    order = an_order(gpus_min=gpus, gpus_max=gpus, level=1)
    candidates, unfit = asked(order, a_book([], [a_node()]))
    assert candidates == []
    assert str(gpus) in unfit[0]


def test_the_price_is_the_ask_or_the_last_price_if_that_is_more() -> None:
    nodes = [a_node(1, ask=1.0), a_node(2, ask=1.4)]
    last = np.array([(1.2, 1.3, 1.4, 1.6)] * 2)
    for gpus, (first, second) in {1: (1.2, 1.4), 2: (1.3, 1.4), 8: (1.6, 1.6)}.items():
        found = quoted(an_order(gpus_min=gpus, gpus_max=gpus), a_book([], nodes), last)
        prices = {candidate.nodes[0]: candidate.prices[0] for candidate in found}
        assert prices == {0: first, 1: second}


def test_an_uneven_share_pays_the_mean_of_its_slots() -> None:
    last = np.array([(1.1, 1.4, 1.4, 1.4)])
    [candidate] = quoted(an_order(gpus_min=3, gpus_max=3), a_book([], [a_node()]), last)
    assert candidate.prices == (pytest.approx((1.1 + 2 * 1.4) / 3),)


def test_a_price_of_exactly_the_limit_is_the_buyers_to_take() -> None:
    book = a_book([], [a_node(tier=2)], failures_per_gpu_hour=(0.1, 0.1, 0.1))
    [candidate] = quoted(an_order(limits={"sxm": 1.0}, hours_lost=5.0), book)
    assert candidate.surplus == pytest.approx(-0.5)


def test_what_failures_cost_decides_the_rank() -> None:
    nodes = [a_node(1, ask=1.0, tier=2), a_node(2, ask=1.1, tier=0)]
    book = a_book([], nodes, failures_per_gpu_hour=(0.0, 0.0, 0.1))
    assert [each.nodes for each in quoted(an_order(hours_lost=1.0), book)] == [(1,), (0,)]


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
    assert whys(an_order(**order), a_book([], [a_node(**node)])) == [why]


def test_a_node_left_out_of_a_better_gang_says_so() -> None:
    nodes = [a_node(1, gpus=4), a_node(2, gpus=4), a_node(3, gpus=4, ask=1.9)]
    gang = an_order(gpus_min=8, gpus_max=8, level=1)
    assert whys(gang, a_book([], nodes)) == [
        "it has 4 GPUs free, and other nodes make a better gang of 8"
    ]


def test_a_gang_is_quoted_in_each_node_on_each_site_and_over_sites() -> None:
    sites = [SITE, replace(SITE, id="b"), replace(SITE, id="c")]
    nodes = [a_node(1), a_node(2, gpus=4, site="b"), a_node(3, gpus=4, site="b"),
             a_node(4, gpus=4, site="c", ask=0.7)]  # fmt: skip
    gang = an_order(gpus_min=8, gpus_max=8, level=2, sync_s=60.0, sync_mb=1.0, sites_max=2)
    found = quoted(gang, a_book([], nodes, sites))
    reached = {candidate.level: candidate for candidate in found}
    assert reached[0].nodes == (0,)
    assert set(reached[1].nodes) == {1, 2}
    assert 3 in reached[2].nodes
    assert all(sum(candidate.gpus) == 8 for candidate in reached.values())


@pytest.mark.parametrize("seed", range(20))
def test_over_sites_the_best_of_all_classes_is_the_best_of_any(seed: int) -> None:
    draw = Random(seed)
    sites = [replace(SITE, id=f"s{n}", up_mbps=draw.choice((1e3, 1e4))) for n in range(24)]
    nodes = [
        a_node(n, gpus=draw.choice((1, 2, 4)), site=f"s{n}", ask=draw.uniform(1.0, 1.05),
               gpu_class=draw.choice(CLASSES))
        for n in range(24)
    ]  # fmt: skip
    quotes = Quotes(a_book([], nodes, sites), CLASSES)
    gang = an_order(gpus_min=6, gpus_max=draw.choice((6, 8)), level=2, sync_s=60.0, sync_mb=30.0,
                    sites_max=4, limits={"sxm": 2.0, "pcie": draw.uniform(1.95, 2.05)})  # fmt: skip
    alone = [
        quotes.best(replace(gang, limits={name: limit})) for name, limit in gang.limits.items()
    ]
    best = quotes.best(gang)
    assert best is not None
    assert worth(best) == max(worth(each) for each in alone if each is not None)


def test_an_elastic_order_is_quoted_for_as_much_as_fits() -> None:
    nodes = [a_node(1, gpus=2), a_node(2, gpus=8), a_node(3, gpus=1)]
    candidates = quoted(an_order(gpus_min=2, gpus_max=4), a_book([], nodes))
    assert [(candidate.nodes, candidate.gpus) for candidate in candidates] == [
        ((1,), (4,)),
        ((0,), (2,)),
    ]


def test_a_market_without_nodes_has_no_quotes() -> None:
    assert quoted(an_order(), a_book([], [])) == []


@pytest.mark.parametrize(("least", "most"), [(0, 1), (2, 1), (1, 5000)])
def test_an_order_without_sense_is_refused(least: int, most: int) -> None:
    with pytest.raises(Invalid, match="1 to 4096 GPUs"):
        Quotes(a_book([], [a_node()]), CLASSES).best(an_order(gpus_min=least, gpus_max=most))


@given(orders(1), books(most=8))
@settings(max_examples=150, deadline=None)
def test_a_quote_never_breaks_a_term_of_the_order(order: Order, book: Book) -> None:
    """And costs no less than was asked, and no more than it is worth before failures."""
    for candidate in quoted(order, book):
        nodes, gpus = list(candidate.nodes), np.array(candidate.gpus)
        assert (book.node_ask[nodes] <= candidate.prices).all()
        assert order.gpus_min <= gpus.sum() <= order.gpus_max
        assert (book.node_gpus[nodes] >= gpus).all()
        assert (book.node_class[nodes] == candidate.gpu_class).all()
        assert candidate.level <= order.level
        worth = order.limits[CLASSES[candidate.gpu_class]] * candidate.keeps
        hourly = float(gpus @ candidate.prices)
        assert candidate.gain == pytest.approx(worth * gpus.sum() - hourly, abs=1e-6)
        assert candidate.gain >= -1e-6
        site = book.node_site[nodes]
        assert (order.regions >> book.site_region[site].astype(np.uint64) & np.uint64(1)).all()
        assert (book.site_trust[site] <= order.trust).all()
        assert (book.node_tier[nodes] <= order.tier).all()
        assert (book.node_long[nodes] >= order.long).all()


@given(orders(1), books(most=8))
@settings(max_examples=60, deadline=None)
def test_every_node_is_either_offered_or_says_why(order: Order, book: Book) -> None:
    candidates, unfit = asked(order, book)
    offered = {node for candidate in candidates for node in candidate.nodes}
    assert offered | set(unfit) == set(range(book.nodes))
    assert all(unfit.values())


def best_by_force(
    order: Order, book: Book, price: Any, *, plain: bool = False
) -> tuple[float, float]:
    """(surplus, gain) of the best legal gang in a node or on a site, each on its own: every share of
    every node is tried, at one price a node. `plain`: but no gang that is spread over a site only for
    its network, which may be faster than the inside of a node."""
    rules, best, most = book.params, -1.0, -1.0
    for gpu_class, site in product(range(len(CLASSES)), range(len(book.site_region))):
        limit = order.limits[CLASSES[gpu_class]]
        here = [
            node for node in np.flatnonzero(book.node_site == site)
            if book.node_class[node] == gpu_class and book.node_tier[node] <= order.tier
            and book.node_long[node] >= order.long
        ]  # fmt: skip
        if not (
            limit > 0 and book.site_trust[site] <= order.trust
            and order.regions >> int(book.site_region[site]) & 1
        ):  # fmt: skip
            continue
        for shares in product(*(range(int(book.node_gpus[node]) + 1) for node in here)):
            size, several = sum(shares), sum(share > 0 for share in shares) > 1
            if not order.gpus_min <= size <= order.gpus_max or (several and order.level < 1):
                continue
            slow = 0.0 if book.class_nvlink[gpu_class] or size == 1 else rules.penalty_node_pcie
            slow = rules.penalty_site[book.site_net[site]] if several else slow
            gain = risk = 0.0
            costs = {
                node: price[node] + size * order.hours_lost * limit
                * rules.failures_per_gpu_hour[book.node_tier[node]]
                for node, share in zip(here, shares, strict=True) if share
            }  # fmt: skip
            if plain and several:
                dear = max(costs.values()) > limit * (1 - order.kappa * slow)
                least = min(costs.values()) + 1e-9
                fits = any(book.node_gpus[n] >= size for n in costs if costs[n] <= least)
                if fits or (dear and size > order.gpus_min):
                    continue
            for node, share in zip(here, shares, strict=True):
                failing = rules.failures_per_gpu_hour[book.node_tier[node]]
                gain += share * (limit * (1 - order.kappa * slow) - price[node])
                risk += share * failing * size * order.hours_lost * limit
            best, most = max(best, gain - risk), max(most, gain)
    return best, most


@given(orders(1), books(most=4), st.lists(st.sampled_from((0.0, 0.7, 1.0, 1.6)), min_size=4))
@settings(max_examples=200, deadline=None)
def test_the_best_is_what_trying_everything_finds(
    order: Order, book: Book, cells: list[float]
) -> None:
    order = replace(order, level=min(order.level, 1))
    last = np.array(cells[: book.nodes]).reshape(-1, 1).repeat(4, axis=1)
    price = np.maximum(book.node_ask, last[:, 0])
    surplus, gain = best_by_force(order, book, price)
    best = Quotes(book, CLASSES, last).best(order)
    if surplus > 1e-6:
        plain, _ = best_by_force(order, book, price, plain=True)
        assert best is not None
        assert plain - 1e-6 <= best.surplus <= surplus + 1e-6
    elif gain > 1e-6:
        _, plain = best_by_force(order, book, price, plain=True)
        assert best is not None
        assert plain - 1e-6 <= best.gain <= gain + 1e-6
    elif gain < -1e-6:
        assert best is None


@given(orders(1), books(most=8))
@settings(max_examples=150, deadline=None)
def test_an_order_alone_is_cleared_to_where_it_was_quoted(order: Order, book: Book) -> None:
    limits = [[order.limits[name] for name in CLASSES]]
    alone = shelves.build([order], [], [], [], seed=0)
    named = {name: getattr(alone, name) for name in shelves.JOBS} | {"job_limit": np.array(limits)}
    book = replace(book, **named)
    matches, best = clear(book), Quotes(book, CLASSES).best(order)
    assert check(book, matches) == []
    quoted = best.surplus if best is not None else 0.0
    if best is not None and best.level < 2 and order.gpus_max - order.gpus_min < 2:
        assert matches.welfare == pytest.approx(max(quoted, 0.0), rel=1e-6, abs=1e-6)
    assert max(quoted, 0.0) >= matches.welfare - 1e-6


@given(orders(1), books(most=8), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_the_order_of_the_rows_means_nothing(order: Order, book: Book, random: Any) -> None:
    nodes, classes, sites = (
        random.sample(range(count), count)
        for count in (book.nodes, len(CLASSES), len(book.site_region))
    )
    other = shelves.renumbered(
        shelves.reordered(book, np.arange(0), np.array(nodes, int)),
        np.array(classes), np.array(sites),
    )  # fmt: skip
    best = Quotes(book, CLASSES).best(order)
    same = Quotes(other, [CLASSES[old] for old in classes]).best(order)
    assert (best is None) == (same is None)
    if best is not None and same is not None:
        assert [book.node_id[node] for node in best.nodes] == [
            other.node_id[node] for node in same.nodes
        ]
        assert (best.gpus, best.prices, best.level) == (same.gpus, same.prices, same.level)


@given(orders(1), books(most=8))
@settings(max_examples=80, deadline=None)
def test_in_another_currency_the_best_is_the_same(order: Order, book: Book) -> None:
    dear = replace(order, limits={name: 4 * limit for name, limit in order.limits.items()})
    best = Quotes(book, CLASSES).best(order)
    same = Quotes(replace(book, node_ask=book.node_ask * 4), CLASSES).best(dear)
    assert (best is None) == (same is None)
    if best is not None and same is not None:
        assert (best.nodes, best.gpus, best.level) == (same.nodes, same.gpus, same.level)
        assert same.surplus == pytest.approx(4 * best.surplus)


def test_a_round_s_ladder_prices_the_next_quotes() -> None:
    sites = [SiteRow("a", 0, 1), SiteRow("b", 1, 1)]
    nodes = [a_node(1, gpus=1, ask=1.0), a_node(2, gpus=1, ask=1.3), a_node(3, site="b")]
    book = a_book([an_order(1), an_order(2)], nodes, sites)
    matches = clear(book)
    assert check(book, matches) == []
    best = quoted(an_order(), book, matches.cell_price)[0]
    assert best.prices == (max(book.node_ask[best.nodes[0]], matches.cell_price[best.nodes[0], 0]),)


@given(orders(1), books(most=8), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_steep_ladders_make_no_quote_dearer_than_it_is_worth(
    order: Order, book: Book, step: int
) -> None:
    last = np.tile(0.5 + 0.1 * step * np.arange(4), (book.nodes, 1))
    answer = Quotes(book, CLASSES, last).every(order)
    for candidate in map(answer.place, range(len(answer.found))):
        assert candidate.gain >= -1e-6
        assert min(candidate.prices) >= 0.5
