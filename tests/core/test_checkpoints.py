"""When a job saves, what that costs, and which of its saves are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.core import checkpoints
from marketplace.core.checkpoints import Kept

saves = st.floats(min_value=0.001, max_value=600)
rates = st.floats(min_value=1e-5, max_value=10)


@given(save=saves, rate=rates)
def test_saving_never_costs_more_than_two_per_cent_of_a_run(save, rate):
    every = checkpoints.interval(save, failures_per_hour=rate)
    assert checkpoints.overhead(save, every) <= 0.02 + 1e-12
    assert every >= 60


def test_it_is_youngs_interval_where_nothing_else_binds():
    # a save of 5 s, a failure a day: √(2 · 5 · 86,400)
    assert checkpoints.interval(5, failures_per_hour=1 / 24) == pytest.approx(929.5, abs=0.1)


def test_a_node_that_fails_more_often_saves_more_often():
    steady = checkpoints.interval(1, failures_per_hour=0.002)
    shaky = checkpoints.interval(1, failures_per_hour=0.2)
    assert shaky < steady


def test_a_cheap_save_is_made_once_a_minute_at_most():
    assert checkpoints.interval(0.001, failures_per_hour=5) == 60


def test_what_was_measured_counts_before_what_is_assumed():
    assert checkpoints.save_seconds(None, 30) == 30
    assert checkpoints.save_seconds(0.5, 30) == 0.5
    assert checkpoints.reserve_seconds(0.6) == 2


class TestRetention:
    def retired(self, *found: Kept) -> list[object]:
        return checkpoints.retired(found, most=2, unproven=3)

    def test_keeps_the_newest_few(self):
        found = [Kept(n, 1, False) for n in (4, 3, 2, 1)]
        assert self.retired(*found) == [2, 1]

    def test_keeps_what_was_gone_on_from_until_the_new_attempt_has_left_enough(self):
        old = Kept("good", 1, True)
        assert self.retired(Kept(3, 2, False), Kept(2, 2, False), old) == []
        new = [Kept(n, 2, False) for n in (4, 3, 2)]
        assert self.retired(*new, old) == [2, "good"]

    def test_of_an_earlier_attempt_only_the_good_and_the_last_stay(self):
        found = [Kept(5, 2, False), Kept(4, 2, False), Kept(3, 1, False), Kept(2, 1, True),
                 Kept(1, 1, False)]  # fmt: skip
        assert self.retired(*found) == [1]

    def test_of_nothing_removes_nothing(self):
        assert self.retired() == []
