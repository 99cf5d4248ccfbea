"""When an offer stands: weekly windows in minutes since Monday 00:00 UTC."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from marketplace.core.errors import Invalid

WEEK_MINUTES: Final = 7 * 24 * 60
Window = Sequence[int]


def check(windows: Sequence[Window]) -> list[list[int]]:
    """The same windows, sorted; raises Invalid unless each is [start, end) within one week."""
    for window in windows:
        whole = len(window) == 2 and all(type(minute) is int for minute in window)
        if not whole or not 0 <= window[0] < window[1] <= WEEK_MINUTES:
            raise Invalid(
                f"a window is [start, end] in minutes of the week, 0 to {WEEK_MINUTES}, "
                f"not {list(window)}",
                field="windows",
            )
    return sorted([list(window) for window in windows])


def closes_at(windows: Sequence[Window], now: datetime) -> datetime | None:
    """When the offer that stands now ends; None if it doesn't stand now.

    Without any window it stands always: a year ahead is as good as never. Windows that touch,
    over the end of the week too, count as one.
    """
    if not windows:
        return now + timedelta(days=365)
    minute = now.weekday() * 1440 + now.hour * 60 + now.minute
    end = _end(windows, minute)
    if end is None:
        return None
    passed = timedelta(minutes=minute, seconds=now.second, microseconds=now.microsecond)
    total = end
    while total % WEEK_MINUTES == 0 or _end(windows, total % WEEK_MINUTES) is not None:
        further = _end(windows, total % WEEK_MINUTES)
        if further is None or total - minute >= WEEK_MINUTES:
            break
        total += further - total % WEEK_MINUTES
    return now - passed + timedelta(minutes=total)


def opens_at(windows: Sequence[Window], now: datetime) -> datetime | None:
    """When an offer that doesn't stand now stands next; None if it stands now or always."""
    if closes_at(windows, now) is not None:
        return None
    minute = now.weekday() * 1440 + now.hour * 60 + now.minute
    passed = timedelta(seconds=now.second, microseconds=now.microsecond)
    ahead = min((start - minute) % WEEK_MINUTES for start, _ in windows)
    return now - passed + timedelta(minutes=ahead)


def _end(windows: Sequence[Window], minute: int) -> int | None:
    ends = [end for start, end in windows if start <= minute < end]
    return max(ends, default=None)
