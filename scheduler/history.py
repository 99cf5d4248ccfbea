"""What classes were let at: the figures of a day and a week, and the curve of a chart.

A week of rounds has millions of prices. So each round also adds to its classes' spans of five
minutes, and only the last hour is read from the rounds themselves. Prices are micros per GPU-hour.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import connection

from marketplace.core.errors import Invalid
from scheduler.models import Round

_DAY: Final = timedelta(days=1)
_WEEK: Final = timedelta(days=7)


@dataclass(frozen=True)
class Range:
    """How far back a chart reaches, and how wide each of its points is."""

    name: str
    words: str
    length: timedelta
    step: timedelta


RANGES: Final[Mapping[str, Range]] = {
    each.name: each
    for each in (
        Range("hour", "1 hour", timedelta(hours=1), timedelta(minutes=1)),
        Range("day", "24 hours", _DAY, timedelta(minutes=15)),
        Range("week", "7 days", _WEEK, timedelta(hours=2)),
    )
}


@dataclass(frozen=True)
class Point:
    """Some minutes of a class in which something was let."""

    at: datetime
    price: int
    """Mean over the GPUs let."""
    low: int
    high: int
    gpus: int


@dataclass(frozen=True)
class Traded:
    """A class over the last day and week; None where nothing was let."""

    last: int
    last_at: datetime
    day_low: int | None
    day_high: int | None
    week_low: int
    week_high: int
    day_gpus: int
    week_gpus: int


def range_of(name: str) -> Range:
    """Raises Invalid for one that we don't have."""
    if name not in RANGES:
        raise Invalid(f"range must be one of {', '.join(RANGES)}", field="range")
    return RANGES[name]


def record(round: Round) -> None:
    """Adds a round's prices to its classes' spans. Once for each round, in its transaction."""
    with connection.cursor() as cursor:
        cursor.execute(_RECORD, [round.pk])


def traded(*, now: datetime) -> dict[str, Traded]:
    """Class → its figures, for each that was let within a week. One query."""
    with connection.cursor() as cursor:
        cursor.execute(_TRADED, {"day": now - _DAY, "week": now - _WEEK, "now": now})
        return {row[0]: Traded(*row[1:]) for row in cursor.fetchall()}


def points(gpu_class: str, over: Range, *, now: datetime) -> list[Point]:
    """The curve of a class, oldest first; steps in which nothing was let are left out. One query."""
    given: dict[str, Any] = {
        "class": gpu_class,
        "step": over.step,
        "since": now - over.length,
        "now": now,
    }
    with connection.cursor() as cursor:
        cursor.execute(_FROM_ROUNDS if over.name == "hour" else _FROM_SPANS, given)
        return [Point(*row) for row in cursor.fetchall()]


_RECORD: Final = """
    INSERT INTO scheduler_pricespan AS span
        (gpu_class, at, gpus, turnover_micros, low_micros, high_micros, last_micros, last_at)
    SELECT gpu_class, date_bin('5 minutes', at, 'epoch'), sum(gpus), sum(price_micros * gpus),
           min(price_micros), max(price_micros), sum(price_micros * gpus) / sum(gpus), max(at)
    FROM scheduler_clearingprice WHERE round_id = %s AND gpus > 0 GROUP BY 1, 2
    ON CONFLICT (gpu_class, at) DO UPDATE SET
        gpus = span.gpus + excluded.gpus,
        turnover_micros = span.turnover_micros + excluded.turnover_micros,
        low_micros = least(span.low_micros, excluded.low_micros),
        high_micros = greatest(span.high_micros, excluded.high_micros),
        last_micros = excluded.last_micros, last_at = excluded.last_at
"""
_TRADED: Final = """
    SELECT gpu_class, (array_agg(last_micros ORDER BY at DESC))[1], max(last_at),
           min(low_micros) FILTER (WHERE last_at >= %(day)s),
           max(high_micros) FILTER (WHERE last_at >= %(day)s),
           min(low_micros), max(high_micros),
           coalesce(sum(gpus) FILTER (WHERE last_at >= %(day)s), 0)::bigint, sum(gpus)::bigint
    FROM scheduler_pricespan WHERE at > %(week)s AND at <= %(now)s
    GROUP BY gpu_class ORDER BY gpu_class
"""
_FROM_SPANS: Final = """
    SELECT date_bin(%(step)s, at, 'epoch') AS step, (sum(turnover_micros) / sum(gpus))::bigint,
           min(low_micros), max(high_micros), sum(gpus)::bigint
    FROM scheduler_pricespan
    WHERE gpu_class = %(class)s AND at > %(since)s AND at <= %(now)s
    GROUP BY step ORDER BY step
"""
_FROM_ROUNDS: Final = """
    SELECT date_bin(%(step)s, at, 'epoch') AS step,
           (sum(price_micros * gpus) / sum(gpus))::bigint,
           min(price_micros), max(price_micros), sum(gpus)::bigint
    FROM scheduler_clearingprice
    WHERE gpu_class = %(class)s AND at > %(since)s AND at <= %(now)s AND gpus > 0
    GROUP BY step ORDER BY step
"""
