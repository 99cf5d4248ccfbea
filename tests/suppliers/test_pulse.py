"""Whether the market listened, and how fast a peer may speak: small rules, tested without a net."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from suppliers import pulse
from suppliers.models import Pulse
from suppliers.throttle import Bucket

SECOND = timedelta(seconds=1)


def test_a_process_listens_since_its_start_as_long_as_it_beats(db, now):
    for second in range(5):
        pulse.beat("a", now=now + second * SECOND, gap_s=3)
    assert pulse.listening_since(now=now + 5 * SECOND, gap_s=3) == now
    assert Pulse.objects.count() == 1


def test_a_pause_starts_the_gapless_time_anew(db, now):
    pulse.beat("a", now=now, gap_s=3)
    pulse.beat("a", now=now + 10 * SECOND, gap_s=3)
    assert pulse.listening_since(now=now + 10 * SECOND, gap_s=3) == now + 10 * SECOND


def test_nobody_listens_when_the_last_beat_is_old(db, now):
    assert pulse.listening_since(now=now, gap_s=3) is None
    pulse.beat("a", now=now, gap_s=3)
    assert pulse.listening_since(now=now + 4 * SECOND, gap_s=3) is None


def test_a_process_that_stopped_left_a_gap_when_it_stopped(db, now):
    for process in ("a", "b"):
        pulse.beat(process, now=now, gap_s=3)
    for second in range(1, 100):
        pulse.beat("b", now=now + second * SECOND, gap_s=3)
    later = now + 99 * SECOND
    # The nodes of "a" had to find "b": silence counts from when "a" was last heard itself.
    assert pulse.listening_since(now=later, gap_s=3) == now
    pulse.beat("c", now=later, gap_s=3)
    assert pulse.listening_since(now=later, gap_s=3) == later


def test_a_beat_that_comes_late_turns_no_clock_back(db, now):
    pulse.beat("a", now=now + 2 * SECOND, gap_s=3)
    pulse.beat("a", now=now + SECOND, gap_s=3)
    assert Pulse.objects.get().at == now + 2 * SECOND


def test_old_processes_are_forgotten(db, now):
    pulse.beat("a", now=now, gap_s=3)
    pulse.forget(before=now + SECOND)
    assert not Pulse.objects.exists()


@given(
    st.lists(st.floats(0, 5), min_size=1, max_size=200),
    st.floats(0.1, 50),
    st.integers(1, 20),
)
def test_whoever_waits_as_told_gets_no_more_than_burst_and_rate(pauses, rate, burst):
    bucket, now = Bucket(rate, burst), 0.0
    for taken, pause in enumerate(pauses, 1):
        now += pause
        now += bucket.take(now)
        assert taken <= burst + rate * now + 1e-6


def test_what_is_not_allowed_is_not_counted():
    bucket = Bucket(rate=1, burst=2)
    assert bucket.allows(0, 2)
    assert not bucket.allows(0)
    assert not bucket.allows(0.5)
    assert bucket.allows(1.0)
