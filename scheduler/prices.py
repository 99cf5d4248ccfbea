"""What was paid last, cell by cell: the price of an instant order, and of the public page."""

from datetime import datetime, timedelta
from typing import Final

from django.db.models import QuerySet

from marketplace.core.fit import Stands
from scheduler.models import ClearingPrice

_REMEMBERED: Final = timedelta(hours=1)
"""A price older than this says little about what a GPU is worth now; the ask then stands alone."""


def cell_of(stands: Stands) -> str:
    """The name that a cell's prices are published under: class, region, trust and tier.

    Sites of one node are pooled in the book; the published name pools sites too, so that no
    single supplier's ask can be read from it.
    """
    return f"{stands.gpu_class}/{stands.region}/{stands.trust}/{stands.tier}"


def last_by_cell(now: datetime) -> dict[str, int]:
    """Cell → the last price that something was let at in it, micros per GPU-hour."""
    return {row.cell: row.price_micros for row in latest("cell", since=now - _REMEMBERED)}


def latest(column: str, *, since: datetime) -> QuerySet[ClearingPrice]:
    """The last price that something was let at, for each value of `column`."""
    let = ClearingPrice.objects.filter(gpus__gt=0, at__gte=since)
    return let.order_by(column, "-at").distinct(column)
