"""A round of ruin may lose a little: what is let stays whole, and the best that was met comes back."""

import numpy as np
import pytest

from scheduler.matching import improving, searching
from scheduler.matching.ascent import Ascent
from scheduler.matching.book import reordered
from scheduler.matching.cells import cells
from scheduler.matching.desks import desk
from scheduler.matching.hoping import Now, hopes
from scheduler.matching.ruining import Market
from scheduler.matching.supply import priced, stock, supply
from scheduler.matching.synthetic import Plan, make
from scheduler.matching.tables import tables

pytestmark = pytest.mark.timeout(300)  # its loops are compiled first


def a_market(seed: int) -> Market:
    """All have chosen by asks, and know what they hope for."""
    plan = Plan(jobs=60 + 10 * seed, nodes=60, seed=seed, alone=(0.0, 0.3, 0.9)[seed % 3])
    book = make(plan)
    book = reordered(book, np.arange(book.jobs), np.argsort(book.node_ask, kind="stable"))
    kinds = cells(book)
    of, sold = tables(book, kinds), supply(book)
    prices = Ascent(of)
    prices.climb(10)
    priced(sold.seats, sold.shelf, prices.best[kinds.of_node])
    room = desk(int(of.jobs["most"].max()), sold, seed)
    nowhere = hopes(of, sold, np.arange(0))
    market = Market(of, nowhere, sold, stock(sold), room, *improving.gangs(of, book))
    market = searching._hopeful(market)
    improving.fill(market, np.arange(book.jobs, dtype=np.int32), 0.0, improving.LOOK)
    return market


def check_stock(market: Market) -> None:
    """What is left of each seat is what its tenants' parts leave."""
    free, tenants = stock(market.sold).free, [[] for _ in market.sold.seats]
    for at, gang in enumerate(market.gangs):
        parts = market.parts[gang["first"] : gang["first"] + gang["parts"]]
        assert not gang["is_out"]
        assert gang["size"] == parts["gpus"].sum()
        np.subtract.at(free, parts["seat"], parts["gpus"])
        for seat in parts["seat"]:
            tenants[seat].append(at)
    left = market.left
    assert (free >= 0).all()
    assert (free == left.free).all()
    assert (free == left.shelf["free"][market.sold.seats["shelved"]]).all()
    for seat, there in enumerate(tenants):
        assert sorted(there) == sorted(left.tenants[seat][: left.tenant_count[seat]].tolist())
    for number, kind in enumerate(market.sold.kinds):
        for size, first in enumerate(left.head[number]):
            enough = np.flatnonzero(free[kind["first"] : kind["end"]] >= 1 << size)
            assert first - kind["first"] == enough[0] if len(enough) else first >= kind["end"]


@pytest.mark.parametrize("heat", [0.0, 0.003, 0.1, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_that_was_met_comes_back(seed: int, heat: float) -> None:
    market = a_market(seed)
    spare, begun = improving.undo(market), searching._worth(market)
    best, least = begun, begun
    for _ in range(300):
        improving.improve(market, 1, spare, heat * begun / len(market.gangs))
        now = searching._worth(market)
        best, least = max(best, now), min(least, now)
    improving.return_to_best(market, spare)
    check_stock(market)
    assert searching._worth(market) == pytest.approx(best)
    assert best > begun
    assert heat or least == begun


@pytest.mark.parametrize("seed", range(3))
def test_who_moves_never_brings_less(seed: int) -> None:
    market = a_market(seed)
    before = market.gangs["surplus"].copy()
    alone = np.flatnonzero(market.gangs["parts"] == 1).astype(np.int32)
    now = Now(market.left.free, before)
    hoped = hopes(market.of, market.sold, alone, now=now)
    improving.move(market._replace(hoped=hoped), alone)
    check_stock(market)
    assert (market.gangs["surplus"] >= before).all()
