"""What nobody reports: nodes fallen silent, starts too slow, leases past their time.

Silence counts only while the market listened: no node is lost within a minute of a gap in the
market's own pulse.
"""

import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Q

from agent import protocol
from buyers.models import Job
from marketplace import locks, telemetry
from marketplace.core import windows
from scheduler import assignments, holds, leases, metering, shells
from scheduler.models import Assignment, Lease
from suppliers import pulse
from suppliers.models import Node, Offer

log = logging.getLogger(__name__)

_MOST_STEPS: Final = 10**9
"""A job that announces more is not believed."""


def watch(*, now: datetime) -> None:
    """One look around. What goes wrong with one lease is logged and keeps none of the others.

    Everything here is told by its level, not its edge: what one look could not do, the next does.
    """
    live = Lease.objects.live()
    if _listening(now):
        _mark_silent_nodes(now)
        unsettled = Q(assignments__settled_at=None)
        lost = unsettled & Q(assignments__node__lost_at__isnull=False)
        _for_each(live.filter(lost).distinct(), _lose_what_is_lost, now)
        hold = now - timedelta(seconds=settings.POLICY.hold_s)
        slow = Q(state="reserved", created_at__lt=hold) | Q(
            state__in=("reserved", "starting"), start_by__lt=now
        )
        _for_each(live.filter(slow, end_reason=""), _start_timeout, now)
        asked = Q(assignments__drain_at__isnull=False, assignments__gone_at=None)
        _for_each(live.filter(asked).distinct(), _overdue, now)
    gone = Q(assignments__gone_at__isnull=False, assignments__settled_at=None)
    _for_each(live.filter(gone).distinct(), _stop_waiting, now)
    _for_each(live.filter(until__lt=now, end_reason=""), _expire, now)
    _for_each(live.filter(job__deadline_at__lt=now, end_reason=""), _deadline, now)
    _stop_late_jobs(now)
    _take_back(now)
    _let_holds_lapse(now)
    shells.sweep(now=now)


def connected(node: Node, hello: protocol.Hello, *, now: datetime) -> None:
    """A node is back: what it lists goes on, what it doesn't list is gone, its GPUs return."""
    Node.objects.filter(pk=node.pk).update(lost_at=None, boot_id=hello.boot_id, last_seen_at=now)
    assignments.report(node, hello.assignments, boot_id=hello.boot_id, now=now)


def reclaim(node: Node, *, why: str, now: datetime) -> None:
    """The owner wants the machine: all of its leases leave within the notice promised."""
    shares = Assignment.objects.on(node).wanted().filter(gone_at=None)
    for share in shares.select_related("lease", "offer"):
        with transaction.atomic():
            job = metering.locked_job(share.lease.job_id)
            lease = Lease.objects.get(pk=share.lease_id)
            if not lease.end_reason:
                Assignment.objects.filter(pk=share.pk).update(at_fault=True)
            notice = float(share.offer.notice_s)
            if leases.can_spare(job, lease, [share]):
                leases.spare(lease, share, "reclaimed", grace_s=notice, now=now)
            elif share.spared_at is None:
                leases.drain(job, lease, "reclaimed", detail=why, grace_s=notice, now=now)


def record_metrics(node: Node, samples: protocol.Samples, *, now: datetime) -> None:
    """Keeps the points of jobs' curves, and the tails of their logs."""
    named = {metric.assignment for metric in samples.metrics} | {
        chunk.assignment for chunk in samples.logs
    }
    shares = {
        share.pk: share
        for share in Assignment.objects.on(node)
        .wanted()
        .filter(pk__in=named)
        .select_related("lease")
    }
    points: dict[tuple[UUID, int, int], dict[str, float]] = {}
    for metric in samples.metrics:
        if share := shares.get(metric.assignment):
            key = (share.lease.job_id, share.lease.epoch, metric.step)
            points.setdefault(key, {}).update(metric.values)
    _keep_points(points, now)
    for share in shares.values():
        chunks: list[tuple[str, int, str]] = [
            (chunk.stream, chunk.offset, chunk.text)
            for chunk in samples.logs
            if chunk.assignment == share.pk
        ]
        if chunks:
            telemetry.keep_log(share.lease.job_id, share.lease.epoch, chunks)
    for job_id in {share.lease.job_id for share in shares.values()}:
        telemetry.job_changed(job_id)


def _listening(now: datetime) -> bool:
    """Whether some process has been hearing nodes, without a gap, for long enough to judge."""
    policy = settings.POLICY
    since = pulse.listening_since(now=now, gap_s=policy.pulse_gap_s)
    return since is not None and now - since >= timedelta(seconds=policy.listening_s)


def _mark_silent_nodes(now: datetime) -> None:
    silent = now - timedelta(seconds=settings.POLICY.lost_after_s)
    for node in Node.objects.filter(last_seen_at__lt=silent, lost_at=None).exclude(state="retired"):
        # Guarded: it may have spoken since we looked.
        lost = Node.objects.filter(pk=node.pk, last_seen_at__lt=silent, lost_at=None)
        if lost.update(lost_at=now):
            log.warning("node %s is lost: silent since %s", node, node.last_seen_at)


def _lose_what_is_lost(job: Job, lease: Lease, now: datetime) -> None:
    shares = lease.assignments.filter(settled_at=None, node__lost_at__isnull=False)
    for share in shares.select_related("node"):
        _lose(job, lease, now, node=share.node)


def _lose(job: Job, lease: Lease, now: datetime, *, node: Node) -> None:
    """One node of a lease is lost: the lease ends if it can't do without, and its GPUs there stay
    taken until it speaks.

    What had settled before stays as it was: a job that finished there is finished.
    """
    lost = list(lease.assignments.filter(node=node, settled_at=None))
    goes_on = all(share.spared_at for share in lost) or leases.can_spare(job, lease, lost)
    for share in lease.assignments.filter(node=node, settled_at=None):
        share.at_fault = True
        if share.gone_at is None:
            share.advance("go", now=now, reason="node lost", gone_at=now, exit_why="node_lost")
        share.settled_at = now
        share.save(update_fields=["at_fault", "settled_at"])
    if not goes_on:
        leases.drain(job, lease, "node_lost", detail=f"{node} fell silent", grace_s=0, now=now)
    leases.follow(job, lease, now=now)


def _start_timeout(job: Job, lease: Lease, now: datetime) -> None:
    Assignment.objects.filter(lease=lease, running_at=None).update(at_fault=True)
    waiting = "take it up" if lease.state == "reserved" else "start it"
    names = ", ".join(
        share.node.name
        for share in lease.assignments.filter(running_at=None).select_related("node")
    )
    detail = f"{names} did not {waiting} in time"
    leases.drain(job, lease, "start_timeout", detail=detail, grace_s=0, now=now)
    leases.follow(job, lease, now=now)


def _expire(job: Job, lease: Lease, now: datetime) -> None:
    hours = settings.POLICY.lease_max_s / 3600
    detail = f"a lease keeps its price for {hours:g} h at most"
    leases.drain(job, lease, "expired", detail=detail, grace_s=float(lease.save_s), now=now)


def _deadline(job: Job, lease: Lease, now: datetime) -> None:
    leases.drain(
        job, lease, "stopped", detail="its deadline has passed",
        grace_s=float(lease.save_s), now=now,
    )  # fmt: skip


def _overdue(job: Job, lease: Lease, now: datetime) -> None:
    """A node that was asked to end a process and hasn't, long past the grace, is given up on."""
    patience = timedelta(seconds=settings.POLICY.lost_after_s)
    for share in lease.assignments.filter(gone_at=None, drain_at__isnull=False):
        asked = share.drain_at or now
        if now - asked > timedelta(seconds=share.drain_grace_s) + patience:
            _lose(job, lease, now, node=share.node)
            return


def _stop_waiting(job: Job, lease: Lease, now: datetime) -> None:
    """A process is gone and its node has yet to send what it left: not for ever, and not at all
    if the buyer has cancelled the job."""
    patience = timedelta(seconds=settings.POLICY.settle_wait_s)
    cancelled = lease.end_reason == "cancelled"
    late = lease.assignments.filter(
        gone_at__lt=now + timedelta(microseconds=1) if cancelled else now - patience,
        settled_at=None,
    )
    if late.update(settled_at=now):
        leases.follow(job, lease, now=now)


def _stop_late_jobs(now: datetime) -> None:
    for late in Job.objects.queued().filter(deadline_at__lt=now):
        with transaction.atomic():
            job = metering.locked_job(late.pk)
            if job.state == "queued":
                job.advance("stop", now=now, reason="its deadline has passed")
                metering.rest(job, now=now)


def _take_back(now: datetime) -> None:
    """What runs where it no longer may: the weekly window ends within the notice, the owner has
    come back, or the node is drained or in quarantine. A lease may have been placed in between."""
    running = Assignment.objects.filter(gone_at=None, drain_at=None)
    for node in Node.objects.filter(assignments__in=running).distinct():
        if node.owner_busy:
            reclaim(node, why=node.owner_why or "its owner needs it", now=now)
        elif node.state != "ready":
            reclaim(node, why=f"the node is {node.state}", now=now)
    offers = Offer.objects.filter(pk__in=running.values("offer")).exclude(windows=[])
    for offer in offers.select_related("node"):
        ahead = now + timedelta(seconds=offer.notice_s)
        if windows.closes_at(offer.windows, ahead) is None:
            reclaim(offer.node, why="its weekly window ends", now=now)


def _let_holds_lapse(now: datetime) -> None:
    """Rounds do that themselves; this is for when none runs."""
    if holds.overdue(now=now).exists():
        with transaction.atomic():
            locks.hold(leases.MARKET_LOCK)
            holds.release(holds.overdue(now=now).values_list("job_id", flat=True))


def _for_each(
    found: Iterable[Lease], act: Callable[[Job, Lease, datetime], None], now: datetime
) -> None:
    """Acts on each lease in a transaction of its own, with its job locked and itself read anew."""
    for lease in list(found):
        try:
            with transaction.atomic():
                job = metering.locked_job(lease.job_id)
                fresh = Lease.objects.live().filter(pk=lease.pk).first()
                if fresh is not None:
                    act(job, fresh, now)
        except Exception:
            # The others' nodes are just as silent; this one is tried again at the next look.
            log.exception("lease %s could not be looked after", lease.pk)


def _keep_points(points: dict[tuple[UUID, int, int], dict[str, float]], now: datetime) -> None:
    """Upserts: two lines about one step (its loss, its evaluation) become one point."""
    if not points:
        return
    jobs, epochs, steps = zip(*points, strict=True)
    values = [protocol.encode(value).decode() for value in points.values()]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO buyers_metricpoint (job_id, epoch, step, "values", at)
            SELECT u.job, u.epoch, u.step, u.v, %s
            FROM unnest(%s::uuid[], %s::bigint[], %s::bigint[], %s::jsonb[])
                AS u(job, epoch, step, v)
            ON CONFLICT (job_id, epoch, step)
            DO UPDATE SET "values" = buyers_metricpoint."values" || excluded."values"
            WHERE length(buyers_metricpoint."values"::text) < 4096
            """,
            [now, list(jobs), list(epochs), list(steps), values],
        )
    totals = {
        job: int(value["total_steps"])
        for (job, _, _), value in points.items()
        if 0 < value.get("total_steps", 0) <= _MOST_STEPS
    }
    for job, total in totals.items():
        Job.objects.filter(pk=job).exclude(total_steps=total).update(total_steps=total)
