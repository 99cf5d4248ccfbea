"""How near a clearing comes to the optimum, and what it makes of more time."""

import pytest

from benchmarks.market.optimum import optimum
from scheduler.matching.clear import clear
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
