"""How near a clearing comes to the optimum, and what it makes of more time."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.market.books import churned, following
from benchmarks.market.optimum import optimum
from scheduler.matching.arrays import Floats
from scheduler.matching.book import Book, rearranged
from scheduler.matching.cells import cells
from scheduler.matching.clear import clear, follow
from scheduler.matching.matches import Matches
from scheduler.matching.placing import NODE
from scheduler.matching.synthetic import Plan, make
from scheduler.matching.values import eligible, terms
from tests.matching.rows import SITE, a_book, a_node, an_order, books, checked, edited
from tests.matching.test_clear import cleared, placed

pytestmark = pytest.mark.timeout(300)  # its loops are compiled first


@pytest.mark.parametrize("seed", range(4))
def test_it_comes_near_the_optimum(seed: int) -> None:
    """By a mixed-integer program; and no bound lies below it."""
    book = make(Plan(jobs=40, nodes=60, seed=seed))
    matches, best = cleared(book), optimum(book)
    assert 0.97 * best <= matches.welfare <= best * (1 + 1e-6)
    assert matches.bound >= best * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_gang_that_is_alone_finds_the_best_few_sites(seed: int) -> None:
    book = make(Plan(jobs=150, nodes=60, seed=seed))
    nodes, classes = np.arange(book.nodes), np.arange(len(book.class_nvlink))
    reached = possible = 0.0
    for job in np.flatnonzero((book.job_level == 2) & (book.job_gpus_max > 1)):
        sites = np.arange(len(book.site_region))
        alone = rearranged(book, np.array([job]), nodes, classes, sites)
        reached += checked(alone, clear(alone, lambda: False)).welfare
        possible += optimum(alone)
    assert reached >= 0.98 * possible > 0


@given(books(), st.data())
@settings(max_examples=60)
def test_a_higher_limit_never_loses_a_job_its_place(book: Book, data: st.DataObject) -> None:
    for job in placed(clear(book)):
        limits = book.job_limit.copy()
        limits[job] *= data.draw(st.sampled_from((1.01, 1.5, 10.0)))
        assert clear(edited(book, job_limit=limits)).level[job] >= 0


def test_more_time_makes_it_better() -> None:
    book = make(Plan(jobs=300, nodes=900, seed=1))
    looks = iter([True] * 40)
    longer = clear(book, lambda: next(looks, False))
    shorter = clear(book, lambda: False)
    checked(book, longer)
    assert shorter.welfare < longer.welfare


@pytest.mark.parametrize("seed", range(3))
def test_hardly_anybody_would_do_better_on_a_node_that_stands_idle(seed: int) -> None:
    """Where most nodes are alone and many cost alike by prices, cheap ones are not left for dear ones;
    what all could gain, one by one, is counted as if they could have the same node."""
    book = make(Plan(jobs=1000, nodes=5000, seed=seed, alone=0.6))
    matches = clear(book, lambda: False)
    kinds, free = cells(book), book.node_gpus - np.bincount(matches.node, matches.gpus, book.nodes)
    missed = 0.0
    for job, rows in enumerate(np.bincount(matches.job, minlength=book.jobs)):
        if matches.level[job] != NODE or rows != 1:
            continue
        [at] = np.flatnonzero(matches.job == job)
        gpus, wants = int(matches.gpus[at]), terms(book, kinds, job)
        keeps = wants.in_node if gpus > 1 else 1.0
        each = (wants.limit * keeps - gpus * wants.risk)[kinds.of_node] - book.node_ask
        could = each[eligible(book, kinds, job)[kinds.of_node] & (free >= gpus)]
        missed += gpus * max(could.max(initial=0.0) - each[matches.node[at]], 0.0)
    assert missed < 0.01 * matches.welfare


def test_who_has_waited_counts_for_more() -> None:
    orders = [an_order(1, limits={"sxm": 2.1}), an_order(2, age_h=3.0)]
    rules = {"ageing_per_hour": 0.1, "ageing_cap": 0.5}
    assert placed(cleared(a_book(orders, [a_node(gpus=1)], **rules))) == [1]


@pytest.fixture(scope="module", params=range(2))
def many(request: pytest.FixtureRequest) -> tuple[Book, Matches, Floats]:
    """A book too large for the prices of small ones, its matches, and what balanced it."""
    book = make(Plan(jobs=600, nodes=1500, seed=request.param, alone=0.3 * request.param))
    matches, balance = follow(book, None, lambda: False)
    return book, checked(book, matches), balance


def test_hardly_anything_is_made_whole_in_large_books(many: tuple[Book, Matches, Floats]) -> None:
    book, matches, _ = many
    below = book.node_ask[matches.node] - matches.price
    assert (matches.gpus * below.clip(min=0)).sum() == pytest.approx(matches.make_whole)
    assert 0 < matches.make_whole <= 0.001 * (matches.gpus * matches.price).sum()
    assert (below <= 0.05 * book.node_ask[matches.node] + 1.001e-6).all(), (
        "the fee of each row pays it"
    )


def test_rounds_that_go_on_from_each_other_are_as_good_as_new_ones(
    many: tuple[Book, Matches, Floats],
) -> None:
    """Neither prices nor welfare drift away, however many rounds there are."""
    book, _, balance = many
    for round in range(6):
        book = churned(book, 0.02, round)
        warm, balance = follow(book, balance, lambda: False)
    cold = clear(book, lambda: False)
    checked(book, warm)
    assert warm.welfare >= cold.welfare * 0.99
    assert warm.bound <= cold.bound * 1.01


def test_a_round_goes_on_in_the_same_way_each_time(many: tuple[Book, Matches, Floats]) -> None:
    book, _, balance = many
    (one, left), (other, same) = (follow(book, balance, lambda: False) for _ in range(2))
    assert (one.price == other.price).all()
    assert (one.node == other.node).all()
    assert (left == same).all()


def test_prices_of_cells_that_are_new_are_found_all_the_same(
    many: tuple[Book, Matches, Floats],
) -> None:
    book, cold, balance = many
    last = balance.copy()
    last[::4] = 0
    warm, _ = follow(book, last, lambda: False)
    assert checked(book, warm).bound <= cold.bound * 1.02


def test_what_is_left_of_a_market_goes_on_from_its_prices(
    many: tuple[Book, Matches, Floats],
) -> None:
    """Who was placed has left, and new ones have come."""
    book, matches, balance = many
    after, last = following(book, matches, 0.7, 1, balance)
    warm, _ = follow(after, last, lambda: False)
    cold = checked(after, clear(after, lambda: False))
    assert checked(after, warm).welfare >= cold.welfare * 0.99
    assert warm.bound <= cold.bound * 1.02


def _lone(sizes: Sequence[tuple[int, float, int]]) -> Book:
    """A gang of 32 GPUs over four sites at most, and sites of one node: (GPUs, ask, tier)."""
    gang = an_order(gpus_min=32, gpus_max=32, level=2, sync_s=60.0, sites_max=4)
    nodes = [
        a_node(n, site=n, gpus=gpus, ask=ask, tier=tier)
        for n, (gpus, ask, tier) in enumerate(sizes)
    ]
    return a_book([gang], nodes, [replace(SITE, id=n) for n in range(len(nodes))])


def test_a_gang_over_few_sites_finds_the_large_among_many_cheaper_ones() -> None:
    book = _lone([(1, 0.5, 0)] * 200 + [(8, 1.0, 0)] * 4)
    assert checked(book, clear(book)).welfare == pytest.approx(32.0)


def test_a_gang_over_few_sites_is_not_thought_to_have_the_best_gpus_of_many() -> None:
    """Nor all that it wants of each of the few: either would let it gain 48. 33 is the best."""
    book = _lone([(1, 0.5, 1)] * 32 + [(16, 1.0, 0)] * 3)
    matches = checked(book, clear(book))
    assert 32.0 <= matches.welfare <= 33.0 <= matches.bound < 36.0
