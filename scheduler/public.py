"""The public face of the market: open supply, prices and rounds. No live bid or ask is in it.

Asks are shown only as a class's range over all its offers, bids only as a count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Avg, Count, QuerySet, Sum

from buyers.models import Job
from marketplace.core.paces import Accuracy
from scheduler import book, paces, prices
from scheduler.models import ClearingPrice, Round

_HISTORY = timedelta(days=7)


@dataclass(frozen=True)
class ClassSupply:
    """One GPU class: what stands open, and what it was let for. Micros per GPU-hour."""

    gpu_class: str
    gpus: int
    free: int
    nodes: int
    memory_bytes: int
    ask_low: int
    ask_high: int
    last_price: int | None
    last_at: datetime | None


@dataclass(frozen=True)
class MarketView:
    """What anybody may see of the market, as of `at`."""

    at: datetime
    supply: Sequence[ClassSupply]
    waiting_jobs: int
    running_jobs: int
    rounds: Sequence[Round]
    accuracy: Accuracy | None
    """How well the quotes of late foretold time and cost."""


def look(*, now: datetime, rounds: int = 10) -> MarketView:
    """The market as it stands. A constant number of queries."""
    by_class: dict[str, list[book.Standing]] = {}
    for row in book.standing(now):
        if not row.stands.own_org_only:
            by_class.setdefault(row.stands.gpu_class, []).append(row)
    last = last_prices(now)
    supply = [_supply(name, rows, last.get(name)) for name, rows in sorted(by_class.items())]
    states = dict(Job.objects.live().values_list("state").annotate(count=Count("pk")).order_by())
    return MarketView(
        at=now,
        supply=supply,
        waiting_jobs=states.get("queued", 0),
        running_jobs=states.get("running", 0) + states.get("placed", 0),
        accuracy=paces.accuracy(now=now),
        rounds=list(Round.objects.order_by("-at")[:rounds]),
    )


def last_prices(now: datetime) -> dict[str, tuple[int, datetime]]:
    """GPU class → the last price something was let at in a round, and when."""
    latest = prices.latest("gpu_class", since=now - _HISTORY)
    return {row.gpu_class: (row.price_micros, row.at) for row in latest}


def price_history(gpu_class: str, *, now: datetime) -> list[tuple[datetime, int, int]]:
    """(when, mean micros per GPU-hour, GPUs let) of each round that let the class, oldest first."""
    rows = (
        ClearingPrice.objects.filter(gpu_class=gpu_class, gpus__gt=0, at__gte=now - _HISTORY)
        .values("at")
        .annotate(price=Avg("price_micros"), let=Sum("gpus"))
        .order_by("at")
    )
    return [(row["at"], round(row["price"]), row["let"]) for row in rows]


def rounds_matched() -> QuerySet[Round]:
    """Rounds that matched something, newest first."""
    return Round.objects.filter(matched_jobs__gt=0).order_by("-at")


def _supply(
    name: str, rows: Sequence[book.Standing], last: tuple[int, datetime] | None
) -> ClassSupply:
    asks = [row.stands.ask for row in rows]
    return ClassSupply(
        gpu_class=name,
        gpus=sum(row.stands.gpus for row in rows),
        free=sum(row.stands.free for row in rows),
        nodes=len(rows),
        memory_bytes=max(row.stands.memory_bytes for row in rows),
        ask_low=min(asks),
        ask_high=max(asks),
        last_price=last[0] if last else None,
        last_at=last[1] if last else None,
    )
