"""Against the true optimum of small books: never above it, and near enough to be of use."""

import pytest
from hypothesis import given, settings

from benchmarks.market.optimum import optimum
from scheduler.matching.book import Book
from scheduler.matching.clear import clear
from scheduler.matching.synthetic import Plan, make
from tests.matching.rows import books


@given(books(most=6))
@settings(max_examples=60, deadline=None)
def test_no_matches_beat_the_optimum_and_the_bound_is_above_it(book: Book) -> None:
    matches, best = clear(book), optimum(book)
    assert matches.welfare <= best + 1e-5
    assert best <= matches.bound * (1 + 1e-6) + 1e-5


@pytest.mark.parametrize("size", [20, 60])
def test_on_made_up_markets_most_of_the_optimum_is_reached(size: int) -> None:
    """Usually some 95 %; a single large gang may cost a small book much more."""
    reached = possible = 0.0
    for seed in range(8):
        book = make(Plan(jobs=size, nodes=size, seed=seed))
        reached += clear(book).welfare
        possible += optimum(book)
    assert 0.8 * possible <= reached <= possible + 1e-4
