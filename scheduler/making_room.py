"""GPUs are held for a job, and leases leave for it: one transaction's work, under the market's lock.

Whoever decides it (`displacing`, `growing`) has read without a lock: of what has moved since nothing
is made.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction

from buyers.models import Job
from marketplace import telemetry
from marketplace.core.money import before_premium
from scheduler import book as market
from scheduler import leases
from scheduler.hold_models import HeldGpu, Hold
from scheduler.models import Assignment, Lease, LeasedGpu

log = logging.getLogger(__name__)

_SPARE_S: Final = 60
"""What a hold may take beyond the notice and the time after which a node is given up."""


@dataclass(frozen=True)
class Room:
    """A job, the leases that leave for it, which may be its own, and how many GPUs of which nodes it
    is held."""

    job: Job
    leaving: Sequence[Lease]
    gpus: Mapping[UUID, int]
    gpu_class: str
    reason: str
    detail: str
    """Why they leave."""

    @property
    def state(self) -> str:
        """That the job must still be in."""
        return "running" if any(lease.job_id == self.job.pk for lease in self.leaving) else "queued"


def make(rooms: Sequence[Room], *, now: datetime) -> int:
    """Drains and holds, for each of these of which nothing has moved. Returns how many. In the
    caller's transaction, under MARKET_LOCK."""
    ids = {each.job.pk for each in rooms}
    ids |= {lease.job_id for each in rooms for lease in each.leaving}
    jobs = Job.objects.select_for_update(no_key=True).filter(pk__in=ids).order_by("pk")
    locked = {job.pk: job for job in jobs}
    return sum(_make(each, locked, now) for each in rooms)


def lately_left(*reasons: str, now: datetime) -> set[UUID]:
    """Jobs that have left for one of these reasons, and so are left alone for now. One query."""
    since = now - timedelta(seconds=settings.POLICY.displace_stay_s)
    ended = Lease.objects.filter(end_reason__in=reasons, ended_at__gt=since)
    return set(ended.values_list("job_id", flat=True))


def base_price(share: Assignment) -> int:
    """What it pays before its job's premium, micros per GPU-hour."""
    return before_premium(share.price_micros, share.lease.job.premium_bps)


def _make(room: Room, locked: Mapping[UUID, Job], now: datetime) -> bool:
    job = locked[room.job.pk]
    leaving = _still_there(room)
    same = (job.limits, job.gpus_min) == (room.job.limits, room.job.gpus_min)
    gpus = None
    if job.state == room.state and same and len(leaving) == len(room.leaving):
        gpus = _to_hold(room)
    if gpus is None:
        log.info("no room is made for job %s: something has moved", job.pk)
        return False
    _hold(job, gpus, now)
    for lease in leaving:
        leases.drain(
            locked[lease.job_id], lease, room.reason, detail=room.detail,
            grace_s=settings.POLICY.displace_notice_s, now=now,
        )  # fmt: skip
    return True


def _still_there(room: Room) -> list[Lease]:
    ids = [lease.pk for lease in room.leaving]
    return list(Lease.objects.filter(pk__in=ids, state="running", end_reason=""))


def _to_hold(room: Room) -> list[HeldGpu] | None:
    """The GPUs of those that leave first, then free ones; None if there are too few by now."""
    let = LeasedGpu.objects.filter(lease__in=room.leaving, released_at=None, gpu__held=None)
    left_by = {
        held.gpu_id: held for held in let.select_related("lease__job", "gpu").order_by("gpu__index")
    }
    shares = Assignment.objects.filter(lease__in=room.leaving).select_related("lease__job")
    prices = {(share.lease_id, share.node_id): base_price(share) for share in shares}
    found = []
    for node, count in room.gpus.items():
        left = [
            HeldGpu(gpu_id=gpu, least_micros=prices[held.lease_id, node])
            for gpu, held in left_by.items()
            if held.gpu.node_id == node
        ][:count]
        free = market.free_gpus(node, room.gpu_class)[: count - len(left)]
        left += [HeldGpu(gpu=gpu, least_micros=0) for gpu in free]
        if len(left) < count:
            return None
        found += left
    return found


def _hold(job: Job, gpus: Sequence[HeldGpu], now: datetime) -> None:
    policy = settings.POLICY
    patience = policy.displace_notice_s + 2 * policy.lost_after_s + _SPARE_S
    hold = Hold.objects.create(job=job, at=now, until=now + timedelta(seconds=patience))
    for gpu in gpus:
        gpu.hold = hold
    HeldGpu.objects.bulk_create(gpus)
    transaction.on_commit(partial(telemetry.job_changed, job.pk), robust=True)
