"""What is held for a waiting job: offered to it alone for a few rounds, and then to everybody.

A hold ends with its job's waiting, in the same statement: a trigger sees to it (migration 0018).
"""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import F, Q, QuerySet

from marketplace import bulk
from scheduler.hold_models import Hold


def release(jobs: Iterable[UUID]) -> None:
    """Nothing is held any more for these jobs. Two statements. Under MARKET_LOCK."""
    ids = list(jobs)
    if not ids:
        return
    asked = [bulk.ids(ids)]
    with connection.cursor() as cursor:
        cursor.execute(_RELEASE_GPUS, asked)
        cursor.execute(_RELEASE, asked)


def turn(offered: Collection[UUID], *, now: datetime) -> None:
    """After a round in which holds were `offered` to these jobs: counts it, and releases what was
    offered often enough or has taken too long. Under MARKET_LOCK."""
    Hold.objects.filter(job__in=offered).update(offered=F("offered") + 1)
    over = Q(offered__gte=settings.POLICY.held_rounds) | Q(until__lt=now)
    release(Hold.objects.filter(over).values_list("job_id", flat=True))


def overdue(*, now: datetime) -> QuerySet[Hold]:
    """Those that have taken too long: what no round has released, the watch does."""
    return Hold.objects.filter(until__lt=now)


_RELEASE_GPUS: Final = """
    DELETE FROM scheduler_heldgpu
    WHERE hold_id IN (SELECT id FROM scheduler_hold WHERE job_id = ANY(%s::uuid[]))
"""
_RELEASE: Final = "DELETE FROM scheduler_hold WHERE job_id = ANY(%s::uuid[])"
