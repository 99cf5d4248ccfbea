"""What is held for a waiting job: offered to it alone for a few rounds, and then to everybody."""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import F, Q

from marketplace import bulk
from scheduler.hold_models import Hold


def release(jobs: Iterable[UUID]) -> None:
    """Nothing is held any more for these jobs, which wait no longer. Two statements."""
    ids = list(jobs)
    if not ids:
        return
    asked = [bulk.ids(ids)]
    with connection.cursor() as cursor:
        cursor.execute(_RELEASE_GPUS, asked)
        cursor.execute(_RELEASE, asked)


def turn(offered: Collection[UUID], *, now: datetime) -> None:
    """After a round in which holds were `offered` to these jobs: counts it, and releases what was
    offered often enough, has taken too long, or whose job waits no longer. Under MARKET_LOCK."""
    Hold.objects.filter(job__in=offered).update(offered=F("offered") + 1)
    spent = Q(offered__gte=settings.POLICY.held_rounds) | Q(until__lt=now)
    over = list(
        Hold.objects.filter(spent | ~Q(job__state="queued")).values_list("job_id", flat=True)
    )
    release(over)


_RELEASE_GPUS: Final = """
    DELETE FROM scheduler_heldgpu
    WHERE hold_id IN (SELECT id FROM scheduler_hold WHERE job_id = ANY(%s::uuid[]))
"""
_RELEASE: Final = "DELETE FROM scheduler_hold WHERE job_id = ANY(%s::uuid[])"
