"""Weekly windows."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.core.errors import Invalid
from marketplace.core.windows import WEEK_MINUTES, check, closes_at, opens_at

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def at(minute: float) -> datetime:
    return MONDAY + timedelta(minutes=minute)


def test_without_windows_an_offer_always_stands():
    assert closes_at([], MONDAY) is not None


def test_outside_its_windows_it_does_not_stand():
    assert closes_at([[60, 120]], at(59.9)) is None
    assert closes_at([[60, 120]], at(120)) is None


def test_inside_it_stands_to_the_end():
    assert closes_at([[60, 120]], at(60.5)) == at(120)


def test_windows_that_touch_are_one():
    assert closes_at([[60, 120], [120, 180]], at(61)) == at(180)


def test_a_weekend_is_one_window_over_the_end_of_the_week():
    windows = [[WEEK_MINUTES - 60, WEEK_MINUTES], [0, 60]]
    assert closes_at(windows, at(WEEK_MINUTES - 30)) == at(WEEK_MINUTES + 60)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 80)), max_size=6),
       st.integers(0, WEEK_MINUTES - 1))  # fmt: skip
def test_it_closes_after_now_and_not_later_than_a_week_and_a_day(pairs, minute):
    windows = [[start, min(start + length, WEEK_MINUTES)] for start, length in pairs]
    closing = closes_at(windows, at(minute))
    if windows and closing is not None:
        assert at(minute) < closing <= at(minute) + timedelta(days=15)


@pytest.mark.parametrize(
    "bad", [[[1]], [[5, 5]], [[9, 3]], [[-1, 3]], [[0, WEEK_MINUTES + 1]], [[0.5, 3]], [["a", 1]]]
)
def test_windows_that_can_not_be_are_refused(bad):
    with pytest.raises(Invalid, match="minutes of the week"):
        check(bad)


@pytest.mark.parametrize(
    ("now", "opens"),
    [(0, 60), (59, 60), (60, None), (119, None), (120, 600), (700, WEEK_MINUTES + 60)],
)
def test_a_closed_offer_opens_with_its_next_window(now, opens):
    found = opens_at([[60, 120], [600, 660]], at(now) + timedelta(seconds=30))
    assert found == (None if opens is None else at(opens))


def test_what_always_stands_never_opens():
    assert opens_at([], at(5)) is None
