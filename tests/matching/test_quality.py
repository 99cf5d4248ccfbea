"""How near a clearing comes to the optimum, and what it makes of more time."""

import pytest

from benchmarks.market.optimum import optimum
from scheduler.matching.book import Book
from scheduler.matching.clear import clear
from scheduler.matching.matches import Matches
from scheduler.matching.synthetic import Plan, make
from tests.matching.rows import a_book, a_node, an_order, checked
from tests.matching.test_clear import cleared, placed

pytestmark = pytest.mark.timeout(300)  # its loops are compiled first


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


@pytest.fixture(scope="module", params=range(2))
def many(request: pytest.FixtureRequest) -> tuple[Book, Matches]:
    """A book too large for the prices of small ones, and its matches."""
    book = make(Plan(jobs=600, nodes=1500, seed=request.param, alone=0.3 * request.param))
    return book, checked(book, clear(book, lambda: False))


def test_hardly_anything_is_made_whole_in_large_books(many: tuple[Book, Matches]) -> None:
    book, matches = many
    below = book.node_ask[matches.node] - matches.price
    assert (matches.gpus * below.clip(min=0)).sum() == pytest.approx(matches.make_whole)
    assert 0 < matches.make_whole <= 0.001 * (matches.gpus * matches.price).sum()
    assert (below <= 0.05 * book.node_ask[matches.node] + 1.001e-6).all(), (
        "the fee of each row pays it"
    )


def test_a_round_goes_on_from_the_prices_of_the_last(many: tuple[Book, Matches]) -> None:
    book, cold = many
    warm = checked(book, clear(book, lambda: False, cold.cell_price))
    assert warm.bound <= cold.bound * 1.01
    assert warm.welfare >= cold.welfare * 0.98
    again = clear(book, lambda: False, cold.cell_price)
    assert (again.price == warm.price).all()


def test_prices_of_cells_that_are_new_are_found_all_the_same(many: tuple[Book, Matches]) -> None:
    book, cold = many
    last = cold.cell_price.copy()
    last[::4] = 0
    warm = checked(book, clear(book, lambda: False, last))
    assert warm.bound <= cold.bound * 1.02
