"""Which running gang takes which idle GPUs: only what gains, only once, and within what it accepts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.core.errors import Invalid
from scheduler.matching import values
from scheduler.matching.book import Order
from scheduler.matching.grow import Elastic, grow
from scheduler.matching.synthetic import CLASSES, Plan, make


def elastic(book, gangs, *, idle_h=0.02, over_h=1.0):
    """Gangs as (order, {node: GPUs}), which accept every node and pay what is asked."""
    rows = [
        (number, node, gpus) for number, (_, has) in enumerate(gangs) for node, gpus in has.items()
    ]
    gang, node, gpus = (np.array(column) for column in zip(*rows, strict=True))
    count = len(gangs)
    return Elastic(
        [order for order, _ in gangs], gang, node, gpus, book.node_ask[node].copy(),
        np.ones((count, book.nodes), bool), np.full(count, idle_h), np.full(count, over_h),
    )  # fmt: skip


def order(limit=5.0, most=8, level=1, kappa=0.0):
    return Order(0, {CLASSES[0]: limit}, gpus_max=most, level=level, kappa=kappa)


def book(free, ask, sites=None, nvlink=1):
    """Nodes of one class, all on one site unless told."""
    made = make(Plan(jobs=1, nodes=len(free), seed=0))
    count = len(free)
    return replace(
        made,
        node_gpus=np.array(free, np.int8), node_ask=np.array(ask, float),
        node_class=np.zeros(count, np.int16), node_site=np.array(sites or [0] * count, np.int32),
        node_tier=np.zeros(count, np.int8), class_nvlink=np.full(len(made.class_nvlink), nvlink, np.int8),
        site_region=np.zeros(3, np.int8), site_trust=np.zeros(3, np.int8),
        site_net=np.zeros(3, np.int8), site_up_mbps=np.full(3, 1000.0, np.float32),
    )  # fmt: skip


def test_it_takes_what_is_free_in_its_own_node_up_to_its_most():
    (found,) = grow(book([6, 8], [1, 1]), elastic(book([6, 8], [1, 1]), [(order(most=4), {0: 2})]),
                    least_gain=0.1)  # fmt: skip
    assert (found.nodes, found.gpus) == ((0,), (4,))
    # Two more GPUs at a surplus of 4 each, less what two lose while they move: 0.02 h of 2 · 5.
    assert found.gain == pytest.approx(8 - 0.2)


def test_over_the_site_it_grows_only_where_the_job_accepts_that():
    here = book([0, 8], [1, 1])
    for level, expected in ((0, []), (1, [((0, 1), (2, 6))])):
        found = grow(here, elastic(here, [(order(level=level), {0: 2})]), least_gain=0.1)
        assert [(each.nodes, each.gpus) for each in found] == expected


def test_a_node_that_would_not_do_is_left():
    here = book([0, 8], [1, 1])
    running = elastic(here, [(order(), {0: 2})])
    refused = replace(running, accepts=np.array([[True, False]]))
    assert grow(here, refused, least_gain=0.1) == []


def test_another_site_is_not_grown_over():
    here = book([0, 8], [1, 1], sites=[0, 1])
    assert grow(here, elastic(here, [(order(), {0: 2})]), least_gain=0.1) == []


def test_a_slower_link_may_cost_more_than_the_gpus_bring():
    here = book([0, 8], [1, 1])
    fast, slow = (
        grow(here, elastic(here, [(order(limit=1.3, kappa=kappa), {0: 2})]), least_gain=0.1)
        for kappa in (0.0, 4.0)
    )
    assert fast
    assert not slow


def test_what_the_move_costs_must_be_earned_back_in_time():
    here = book([6], [1])
    for over_h, grows in ((1.0, True), (0.01, False)):
        running = elastic(here, [(order(most=4), {0: 2})], over_h=over_h)
        assert bool(grow(here, running, least_gain=0.1)) is grows


def test_it_can_pay_what_it_pays_now():
    here = book([6], [1])
    running = elastic(here, [(order(limit=3), {0: 2})])
    assert grow(here, running, least_gain=0.1)
    assert not grow(here, replace(running, price=np.array([3.5])), least_gain=0.1)


def test_no_gpu_is_promised_twice_and_the_larger_gain_goes_first():
    here = book([4], [1])
    gangs = [(order(limit=4, most=8), {0: 2}), (order(limit=9, most=5), {0: 2})]
    found = grow(here, elastic(here, gangs), least_gain=0.1)
    assert [(each.gang, each.gpus) for each in found] == [(1, (5,)), (0, (3,))]


def test_columns_that_do_not_belong_together_are_refused_by_name():
    here = book([4], [1])
    running = elastic(here, [(order(), {0: 2})])
    with pytest.raises(Invalid, match="price"):
        replace(running, price=np.zeros(2))
    with pytest.raises(Invalid, match="idle_h"):
        replace(running, idle_h=np.zeros(3))
    with pytest.raises(Invalid, match="some time"):
        replace(running, over_h=np.zeros(1))


@given(st.data())
def test_growth_gains_keeps_what_it_has_and_promises_what_there_is(data):
    count = data.draw(st.integers(1, 6))
    money = st.integers(1, 20).map(lambda cents: cents / 4)
    here = book(
        data.draw(st.lists(st.integers(0, 8), min_size=count, max_size=count)),
        data.draw(st.lists(money, min_size=count, max_size=count)),
        data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)),
        data.draw(st.integers(0, 1)),
    )
    gangs = data.draw(
        st.lists(
            st.tuples(
                st.builds(order, money, st.integers(1, 16), st.integers(0, 2), st.floats(0, 2)),
                st.dictionaries(st.integers(0, count - 1), st.integers(1, 4), min_size=1),
            ),
            min_size=1, max_size=4,
        )
    )  # fmt: skip
    running = elastic(here, gangs)
    found = grow(here, running, least_gain=0.1)
    assert len({each.gang for each in found}) == len(found)
    promised = np.zeros(count, int)
    for each in found:
        asked, has = gangs[each.gang]
        then = dict(zip(each.nodes, each.gpus, strict=True))
        assert all(then[node] >= gpus for node, gpus in has.items())
        assert sum(has.values()) < sum(then.values()) <= asked.gpus_max
        for node, gpus in then.items():
            promised[node] += gpus - has.get(node, 0)
        nodes, gpus = (np.array(column) for column in zip(*then.items(), strict=True))
        zeros = np.zeros(len(nodes), int)
        larger, _ = values.of_gangs(here, [asked], zeros, nodes, gpus)
        nodes, gpus = (np.array(column) for column in zip(*has.items(), strict=True))
        zeros = np.zeros(len(nodes), int)
        now, _ = values.of_gangs(here, [asked], zeros, nodes, gpus)
        assert 0 < each.gain <= larger[0] - now[0] + 1e-9
    assert (promised <= here.node_gpus).all()
