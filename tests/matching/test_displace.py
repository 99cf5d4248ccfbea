"""Who leaves for whom: by what the market gains, and by what is lost since the last checkpoint."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from marketplace.core.errors import Invalid
from scheduler.matching.book import ClassRow, Order, SiteRow, Supply, build
from scheduler.matching.displace import Rules, Running, displace

SITES = [SiteRow("a", 0), SiteRow("b", 0), SiteRow("c", 0)]


def book_of(orders, nodes):
    return build(orders, nodes, SITES, [ClassRow("h100", nvlink=True)], seed=1)


def running(*rows):
    """Rows of (gang, node, gpus, surplus, lost, age_h, interruptible[, price])."""
    columns = list(zip(*(row if len(row) == 8 else (*row, 0.0) for row in rows), strict=True))
    kinds = (np.int64, np.int64, np.int64, float, float, float, bool, float)
    return Running(*(np.array(c, kind) for c, kind in zip(columns, kinds, strict=True)))


def order(number=0, limit=5.0, **changes):
    return Order(id=number, limits={"h100": limit}, **changes)


def node(number=0, site="a", gpus=0, ask=1.0, **changes):
    return Supply(id=number, gpu_class="h100", site=site, gpus=gpus, ask=ask, **changes)


def decided(orders, nodes, run, rules=None):
    book = book_of(orders, nodes)
    return displace(book, np.arange(len(orders)), run, rules or Rules())


def test_a_job_worth_more_displaces_one_worth_less_and_is_held_its_gpu():
    (found,) = decided([order()], [node()], running((0, 0, 1, 1.0, 0.5, 1.0, True)))
    assert (found.job, found.gangs, found.nodes, found.gpus) == (0, (0,), (0,), (1,))
    assert found.gain == pytest.approx((5 - 1) - 1.0 - 0.5)


def test_what_is_lost_is_spread_over_the_hours_that_the_newcomer_is_thought_to_stay():
    run = running((0, 0, 1, 1.0, 4.0, 1.0, True))
    assert not decided([order()], [node()], run)
    assert decided([order()], [node()], run, Rules(stay_h=4))


@pytest.mark.parametrize(
    "row",
    [
        (0, 0, 1, 0.0, 0.0, 1.0, False),
        (0, 0, 1, 0.0, 0.0, 0.16, True),
        (0, 0, 1, 3.7, 0.0, 1.0, True),
        (0, 0, 1, 0.0, 3.7, 1.0, True),
    ],
    ids=["protected", "young", "too small a gain by surplus", "by what is lost"],
)
def test_who_is_not_displaced(row):
    assert not decided([order()], [node()], running(row))


def test_the_victim_that_loses_least_leaves():
    run = running(
        (0, 0, 1, 1.0, 1.0, 1.0, True), (1, 0, 1, 1.0, 0.2, 1.0, True), (2, 0, 1, 1.0, 0.6, 1, True)
    )
    (found,) = decided([order()], [node()], run)
    assert found.gangs == (1,)


def test_two_small_victims_leave_rather_than_a_large_one_that_loses_more():
    run = running(
        (0, 0, 2, 0.0, 3.0, 1.0, True), (1, 0, 1, 0.0, 1.0, 1.0, True), (2, 0, 1, 0.0, 1.0, 1, True)
    )
    (found,) = decided([order(gpus_min=2, gpus_max=2)], [node()], run)
    assert found.gangs == (1, 2)


def test_a_gang_leaves_whole_or_stays():
    shared = [(0, 0, 1, 3.0, 0.0, 1.0, True), (0, 1, 1, 3.0, 0.0, 1.0, True)]
    (found,) = decided([order(limit=9)], [node(0), node(1)], running(*shared))
    assert found.gangs == (0,)
    assert sum(found.gpus) == 1
    half = [shared[0], (0, 1, 1, 3.0, 0.0, 1.0, False)]
    assert not decided([order(limit=9)], [node(0), node(1)], running(*half))


def test_what_is_free_beside_the_victims_is_used_too():
    run = running((0, 0, 2, 1.0, 0.0, 1.0, True))
    (found,) = decided([order(gpus_min=4, gpus_max=4)], [node(gpus=2)], run)
    assert (found.gangs, found.gpus) == ((0,), (4,))


def test_a_job_that_fits_in_what_is_free_is_left_to_the_rounds():
    run = running((0, 0, 1, 0.0, 0.0, 1.0, True))
    assert not decided([order()], [node(0), node(1, site="b", gpus=1)], run)


def test_a_gang_gets_room_over_the_nodes_of_a_site_if_it_accepts_that():
    run = running((0, 0, 2, 1.0, 0.0, 1.0, True), (1, 1, 2, 1.0, 0.0, 1.0, True))
    nodes = [node(0), node(1)]
    wide = order(gpus_min=4, gpus_max=4, level=1)
    (found,) = decided([wide], nodes, run)
    assert (found.gangs, found.nodes, found.gpus) == ((0, 1), (0, 1), (2, 2))
    assert not decided([replace(wide, level=0)], nodes, run)


def test_the_largest_gain_goes_first_and_no_gpu_is_promised_twice():
    run = running((0, 0, 1, 0.0, 0.0, 1.0, True), (1, 1, 1, 0.0, 1.0, 1.0, True))
    nodes = [node(0), node(1, site="b")]
    found = decided([order(0, 4.0), order(1, 6.0), order(2, 5.0)], nodes, run)
    assert [(each.job, each.gangs) for each in found] == [(1, (0,)), (2, (1,))]


def test_what_runs_is_given_in_columns_that_fit():
    good = running((0, 0, 1, 1.0, 0.5, 1.0, True))
    for change in ({"lost": np.array([-1.0])}, {"gpus": np.array([0])}, {"node": np.array([0, 1])},
                   {"surplus": np.array([np.nan])}):  # fmt: skip
        with pytest.raises(Invalid):
            replace(good, **change)


@pytest.fixture(params=range(40))
def market(request):
    """Some jobs, nodes and leases, drawn by a seed."""
    draw = np.random.default_rng(request.param)
    nodes = [
        node(number, site="abc"[draw.integers(3)], gpus=int(draw.integers(3)),
             ask=float(draw.uniform(0.5, 2)), tier=int(draw.integers(3)))
        for number in range(8)
    ]  # fmt: skip
    orders = []
    for number in range(12):
        least = int(draw.choice([1, 1, 2, 4, 8]))
        orders.append(
            order(number, float(draw.uniform(1, 8)), gpus_min=least, gpus_max=2 * least,
                  level=int(draw.integers(3)), kappa=float(draw.uniform(0, 0.5)),
                  tier=int(draw.integers(3)), hours_lost=float(draw.uniform(0, 1)))
        )  # fmt: skip
    rows = []
    for gang in range(14):
        surplus, lost, age = draw.uniform(-1, 4), draw.uniform(0, 2), draw.uniform(0, 0.6)
        where = draw.choice(8, size=int(draw.integers(1, 3)), replace=False)
        may = draw.random() < 0.7
        rows += [(gang, int(at), int(draw.integers(1, 4)), surplus, lost, age, may) for at in where]
    return orders, nodes, running(*rows)


def test_whatever_the_market_its_rules_hold(market):
    orders, nodes, run = market
    found = decided(orders, nodes, run)
    gangs = [gang for each in found for gang in each.gangs]
    assert len(gangs) == len(set(gangs))
    assert len({each.job for each in found}) == len(found)
    promised = np.zeros(len(nodes), int)
    for each in found:
        assert each.gain > 0
        assert each.gangs
        assert sum(each.gpus) == orders[each.job].gpus_min
        np.add.at(promised, list(each.nodes), each.gpus)
    leaving = np.isin(run.gang, gangs)
    assert run.interruptible[leaving].all()
    assert (run.age_h[leaving] >= Rules().least_age_h).all()
    there = np.array([each.gpus for each in nodes])
    np.add.at(there, run.node[leaving], run.gpus[leaving])
    assert (promised <= there).all()


def test_a_higher_limit_never_loses_a_job_its_room(market):
    orders, nodes, run = market
    for each in decided(orders, nodes, run):
        higher = list(orders)
        limit = orders[each.job].limits["h100"]
        higher[each.job] = replace(orders[each.job], limits={"h100": limit * 1.3})
        assert each.job in {other.job for other in decided(higher, nodes, run)}


def test_doubling_all_money_changes_nothing(market):
    orders, nodes, run = market
    twice = decided(
        [replace(each, limits={"h100": 2 * each.limits["h100"]}) for each in orders],
        [replace(each, ask=2 * each.ask) for each in nodes],
        replace(run, surplus=2 * run.surplus, lost=2 * run.lost),
    )
    once = decided(orders, nodes, run)
    assert [replace(each, gain=0.0) for each in twice] == [replace(each, gain=0.0) for each in once]


def test_no_other_victims_in_a_node_would_lose_less(market):
    _, nodes, run = market
    for least in (1, 2, 4):
        for found in decided([order(limit=50, gpus_min=least, gpus_max=least)], nodes, run):
            (at,) = found.nodes
            price = dict(zip(run.gang, np.maximum(run.surplus, 0) + run.lost, strict=True))
            here = {g: n for g, w, n in zip(run.gang, run.node, run.gpus, strict=True) if w == at}
            may = [
                gang
                for gang in here
                if all((run.interruptible & (run.age_h >= 1 / 6))[run.gang == gang])
            ]
            enough = [
                sum(price[gang] for gang in some)
                for size in range(1, len(may) + 1)
                for some in combinations(may, size)
                if nodes[at].gpus + sum(here[gang] for gang in some) >= least
            ]
            assert sum(price[gang] for gang in found.gangs) == pytest.approx(min(enough))
