"""The owner comes first: their hours, their programs, their word."""

from datetime import datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.owner import ASKED, Load, Mood, Rules, Window, follow, why_busy

OFFICE = Window(days=["mon", "tue", "wed", "thu", "fri"], start="08:00", end="18:00")
NIGHT = Window(days=["sat"], start="22:00", end="06:00")
MONDAY = datetime(2026, 11, 23, 12, 0)


@pytest.mark.parametrize(
    ("window", "day", "clock", "holds"),
    [
        (OFFICE, 23, "07:59", False),
        (OFFICE, 23, "08:00", True),
        (OFFICE, 23, "17:59", True),
        (OFFICE, 23, "18:00", False),
        (OFFICE, 28, "12:00", False),  # a Saturday
        (NIGHT, 28, "21:59", False),
        (NIGHT, 28, "23:00", True),
        (NIGHT, 29, "05:59", True),
        (NIGHT, 29, "06:00", False),
        (NIGHT, 29, "23:00", False),
    ],
)
def test_a_window_holds_its_hours(window: Window, day: int, clock: str, holds: bool):
    hour, minute = map(int, clock.split(":"))
    assert window.holds(datetime(2026, 11, day, hour, minute)) is holds


@given(some.sampled_from([OFFICE, NIGHT]), some.datetimes())
def test_any_moment_is_in_a_window_or_not(window, now):
    assert window.holds(now) in (True, False)


def test_the_reasons_come_in_order():
    rules = Rules(windows=[OFFICE])
    assert why_busy(rules, MONDAY, Mood(busy=True), drain_asked=True) == ASKED
    assert "08:00 to 18:00" in why_busy(rules, MONDAY, Mood(busy=True), drain_asked=False)
    assert "own programs" in why_busy(Rules(), MONDAY, Mood(busy=True), drain_asked=False)
    assert why_busy(Rules(), MONDAY, Mood(), drain_asked=False) == ""


def test_load_counts_once_it_lasts_and_for_a_while_after():
    rules = Rules(busy_share=0.5, busy_s=20, calm_s=60)
    mood, story = Mood(), []
    for share in [0.9] * 3 + [0.1] + [0.9] * 5 + [0.0] * 13:
        mood = follow(mood, Load(share), 5, rules)
        story.append(mood.busy)
    assert story.index(True) == 7  # 20 s of it, after the pause in between
    assert story[7:].index(False) == 13  # and a minute of calm
    assert story[-1] is False


def test_another_program_on_the_gpu_counts_as_load():
    rules = Rules(busy_share=0.5, busy_s=0)
    assert follow(Mood(), Load(0.0, "process 7"), 5, rules).busy


def test_load_does_not_matter_unless_the_owner_says_so():
    assert follow(Mood(busy=True), Load(1.0, "process 7"), 5, Rules()) == Mood()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"windows": [{"days": ["mon"], "start": "25:00", "end": "08:00"}]}', "start"),
        ('{"windows": [{"days": ["someday"], "start": "07:00", "end": "08:00"}]}', "someday"),
        ('{"busy_share": 7}', "busy_share"),
        ('{"busy_shares": 0.5}', "busy_shares"),
    ],
)
def test_a_slip_in_the_rules_is_named(text: str, words: str):
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.json.decode(text, type=Rules)
