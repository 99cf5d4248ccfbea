"""What is believed of a kind's speed follows what was seen, and no single supplier's word."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.core.paces import Foretold, accuracy, believed


def test_nothing_seen_leaves_the_default_with_a_wide_range():
    pace = believed(0.35, {}, {})
    assert (pace.share, pace.jobs) == (0.35, 0)
    assert 2 < pace.spread < 2.2


def test_each_job_narrows_the_range_and_draws_the_mean():
    paces = [believed(0.35, {n: [0.5] for n in range(count)}, {}) for count in (0, 1, 3, 10, 30)]
    spreads = [pace.spread for pace in paces]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 1.15
    assert paces[-1].share == pytest.approx(0.5, rel=0.02)
    assert 0.35 < paces[1].share < 0.5


def test_jobs_that_differ_keep_the_range_wide():
    alike = believed(0.35, {n: [0.4] for n in range(10)}, {})
    mixed = believed(0.35, {n: [0.2 if n % 2 else 0.8] for n in range(10)}, {})
    assert mixed.spread > 1.5 > alike.spread


def test_one_supplier_is_one_voice_however_many_jobs_it_ran():
    honest = {n: [0.3] for n in range(5)}
    loud = believed(0.35, {**honest, "loud": [1.5] * 500}, {})
    assert loud.share < 0.45


def test_what_no_device_reaches_is_not_believed():
    assert believed(0.35, {"liar": [40.0, 1e9, 1e-9]}, {}).share == 0.35


def test_the_overhead_is_learnt_beside_the_speed():
    before = believed(0.35, {}, {})
    after = believed(0.35, {}, {"one": [0.6, 0.65], "two": [0.7]})
    assert before.overhead == 1
    assert after.overhead == pytest.approx(0.66, rel=0.05)
    assert after.overhead_spread < before.overhead_spread
    assert (after.share, after.spread) == (before.share, before.spread)
    assert believed(0.35, {}, {"liar": [-1.0, 0.0, 1000.0]}).overhead == 1


@given(
    default=st.floats(0.05, 1.0),
    shares=st.lists(st.floats(0.01, 1.9), min_size=1, max_size=20),
)
def test_the_mean_lies_between_what_was_thought_and_seen(default, shares):
    pace = believed(default, dict(enumerate([share] for share in shares)), {})
    middle = math.exp(sum(map(math.log, shares)) / len(shares))
    low, high = sorted((default, middle))
    assert low * 0.999 <= pace.share <= high * 1.001
    assert pace.spread > 1


def test_accuracy_is_told_over_all_finished_runs():
    runs = [
        Foretold(100, 80, 130, seconds, 1000, micros)
        for seconds, micros in ((90, 900), (100, 1000), (150, 1500))
    ]
    told = accuracy(runs)
    assert told is not None
    assert (told.jobs, told.time_error, told.cost_error) == (
        3,
        pytest.approx(0.1),
        pytest.approx(0.1),
    )
    assert told.within == pytest.approx(2 / 3)
    assert accuracy([]) is None
