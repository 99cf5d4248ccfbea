"""What is held for a waiting job: offered to it alone for a few rounds, and then to everybody.

A hold ends with its job's waiting, in the same statement: a trigger sees to it (migration 0021).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Count, F, Q, QuerySet

from buyers.models import Job
from marketplace import bulk, telemetry
from scheduler.hold_models import HeldGpu, Hold


@dataclass(frozen=True)
class Held:
    """What is held for a job that waits, as its buyer is told."""

    gpus: int
    until: datetime
    """Others are offered it from then on, at the latest."""
    free: bool
    """Whether all of it is free, so that the next round offers it to the job."""

    @property
    def words(self) -> str:
        """In a sentence without its stop."""
        what = "a GPU is" if self.gpus == 1 else f"{self.gpus} GPUs are"
        if self.free:
            return f"{what} free and held for it, until {self.until:%H:%M} UTC"
        return f"{what} being freed for it, and held until about {self.until:%H:%M} UTC"


def of_job(job: Job) -> Held | None:
    """What is held for it. One query, and a second one where there is something."""
    hold = Hold.objects.filter(job=job).first() if job.state == "queued" else None
    if hold is None:
        return None
    let = Count("pk", filter=Q(gpu__leases__released_at=None, gpu__leases__isnull=False))
    found = hold.gpus.aggregate(gpus=Count("pk", distinct=True), let=let)
    return Held(found["gpus"], hold.until, free=not found["let"])


def on_nodes(nodes: Collection[UUID]) -> dict[UUID, int]:
    """Node → how many of its GPUs are held for a job that waits and let to nobody. One query."""
    let = Q(gpu__leases__released_at=None, gpu__leases__isnull=False)
    held = HeldGpu.objects.filter(gpu__node__in=nodes).exclude(let)
    return dict(held.values_list("gpu__node").annotate(Count("pk")))


def release(jobs: Iterable[UUID]) -> None:
    """Nothing is held any more for these jobs, and their pages are told. Two statements. Under
    MARKET_LOCK."""
    ids = list(jobs)
    if not ids:
        return
    asked = [bulk.ids(ids)]
    with connection.cursor() as cursor:
        cursor.execute(_RELEASE_GPUS, asked)
        cursor.execute(_RELEASE, asked)
    transaction.on_commit(partial(telemetry.job_changed, *ids), robust=True)


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
