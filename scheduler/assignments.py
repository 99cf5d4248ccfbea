"""What nodes are told to run, and what they say of it."""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Prefetch

from agent import protocol
from buyers import images, secrets
from buyers.models import Folder, Job
from marketplace import storage
from marketplace.core.errors import Conflict, Missing
from marketplace.core.states import NODE_BROKE
from scheduler import leases, metering, restores, specs
from scheduler.models import Assignment, LeasedGpu, Shell
from suppliers.models import Node

log = logging.getLogger(__name__)

_EVENTS: Final = {
    "accepted": "accept",
    "starting": "start",
    "running": "run",
    "draining": "drain",
    "gone": "go",
}
_ORDER: Final = ("reserved", *_EVENTS)


def desired(node: Node) -> protocol.Desired:
    """Everything that this node should be running, as of now."""
    waiting = Prefetch("shells", Shell.objects.filter(taken_at=None, ended_at=None).order_by("pk"))
    shares = Assignment.objects.on(node).wanted().select_related("lease").order_by("pk")
    shares = shares.prefetch_related(waiting)
    return protocol.Desired(assignments=[_wanted(share) for share in shares])


def report(node: Node, statuses: Sequence[protocol.Status], *, boot_id: str, now: datetime) -> None:
    """Takes in all that a node says it has, and what it doesn't say: that is gone.

    Called for each hello, and each heartbeat that says something new. Statuses of other nodes'
    or unknown assignments are passed over: the next `Desired` ends them.
    """
    said = {status.id: status for status in statuses}
    shares = Assignment.objects.on(node).wanted().select_related("lease")
    news = [share for share in shares if _is_news(share, said.get(share.pk))]
    for job_id in sorted({share.lease.job_id for share in news}):
        with transaction.atomic():
            job = metering.locked_job(job_id)
            for share in shares.filter(lease__job=job).exclude(lease__state="ended"):
                _take_in(job, share, said.get(share.pk), now)
                leases.follow(job, share.lease, now=now)
    _free_zombies(node, set(said), now)


def spec(node: Node, assignment_id: UUID) -> bytes:
    """The spec's bytes; raises Missing for an assignment that isn't this node's."""
    return bytes(of_node(node, assignment_id).spec)


def input_urls(node: Node, assignment_id: UUID) -> dict[str, str]:
    """SHA-256 → presigned GET, for each file that the assignment reads.

    Raises Missing, and Conflict once the assignment is no longer wanted.
    """
    share = _readable(node, assignment_id)
    job = share.lease.job
    folders: list[Folder] = [folder for _, folder, _ in specs.inputs_of(job)]
    if (resume := restores.given(share)) is not None:
        folders.append(resume)
    return {
        entry["sha256"]: storage.signed_get(
            storage.file_key(folder.prefix, entry["sha256"]),
            seconds=settings.POLICY.upload_url_s,
        )
        for folder in folders
        for entry in folder.manifest
    }


def layers(node: Node, assignment_id: UUID) -> protocol.LayerUrls:
    """Where the node fetches the layers of the assignment's image; asks its registry.

    Raises Missing, Conflict once the assignment is no longer wanted or the image is to be had no
    more, and Unavailable if the registry is away.
    """
    image = _readable(node, assignment_id).lease.job.image
    if image is None:
        raise Missing("this job runs in no image")
    found = images.places(image)
    return protocol.LayerUrls(urls=found.urls, authorization=found.authorization)


def secret_values(node: Node, assignment_id: UUID, *, now: datetime) -> dict[str, str]:
    """The values of the secrets of a job that is being started here.

    Raises Missing, Conflict once it runs or is to end, Forbidden if the node's site may not see
    them (any more).
    """
    share = of_node(node, assignment_id)
    if share.state not in _ORDER[:3] or share.lease.end_reason or share.drain_at is not None:
        raise Conflict("secrets are given to a job at its start only")
    job = share.lease.job
    log.info("secrets %s of job %s are given to node %s", job.secrets, job.pk, node.pk)
    return secrets.open_for(job.org, job.secrets, site_trust=node.site.trust, now=now)


def of_node(node: Node, assignment_id: UUID) -> Assignment:
    """This node's assignment; raises Missing, for a stranger's just as for none."""
    share = (
        Assignment.objects.on(node)
        .filter(pk=assignment_id)
        .select_related(
            "lease__job__base",
            "lease__job__image",
            "lease__job__dataset",
            "lease__job__script",
            "lease__job__mix",
            "lease__job__other",
            "lease__job__third",
        )
        .first()
    )
    if share is None:
        raise Missing("there is no such assignment of this node")
    return share


def _readable(node: Node, assignment_id: UUID) -> Assignment:
    """This node's assignment; raises Missing, and Conflict once it is no longer wanted."""
    share = of_node(node, assignment_id)
    if share.settled_at is not None:
        raise Conflict("this assignment has ended; nothing of it may be read any more")
    return share


def _wanted(share: Assignment) -> protocol.Wanted:
    drain = None
    if share.drain_at is not None:
        drain = protocol.Drain(why=share.drain_why, grace_s=share.drain_grace_s)
    return protocol.Wanted(
        id=share.pk,
        epoch=share.lease.epoch,
        spec=share.spec_sha256,
        paid_through_ms=share.paid_through_s * 1000,
        drain=drain,
        shells=[shell.pk for shell in share.shells.all()],
    )


def _is_news(share: Assignment, status: protocol.Status | None) -> bool:
    if status is None:
        return share.state != "reserved" or share.drain_at is not None
    if status.epoch != share.lease.epoch:
        return False
    return (
        _ORDER.index(status.state) > _ORDER.index(share.state)
        or status.step > share.step
        or status.settled
        or status.detail[:300] != share.detail
    )


def _take_in(job: Job, share: Assignment, status: protocol.Status | None, now: datetime) -> None:
    """Brings one assignment up to what its node says. The job is locked."""
    if status is None:
        _missing(share, now)
        return
    if status.epoch != share.lease.epoch:
        return
    if status.state in ("running", "draining") or status.running_ms:
        share.running_at = share.running_at or now
    if status.step > share.step:
        share.step = status.step
        job.step = max(job.step, status.step)
        job.save(update_fields=["step"])
    share.detail = status.detail[:300]
    share.save(update_fields=["running_at", "step", "detail"])
    if status.state == "gone" and share.gone_at is None:
        _gone(share, status.exit, now)
    elif _ORDER.index(status.state) > _ORDER.index(share.state):
        share.advance(_EVENTS[status.state], now=now, by=share.node.name)
    if status.settled and share.settled_at is None:
        share.settled_at = now
        share.save(update_fields=["settled_at"])


def _missing(share: Assignment, now: datetime) -> None:
    """The node does not have it: it was never taken up, or it is lost."""
    if share.state == "reserved":
        if share.drain_at is None:
            return
        why = "never_started"
    else:
        why = "vanished"
        share.at_fault = True
    if share.gone_at is None:
        _gone(share, protocol.Exit(code=None, signal=None, why=why), now)
    share.settled_at = share.settled_at or now
    share.save(update_fields=["settled_at", "at_fault"])


def _gone(share: Assignment, exit: protocol.Exit | None, now: datetime) -> None:
    # Whoever says that it broke the job itself gives back what was lost by it.
    share.at_fault = share.at_fault or (exit is not None and exit.why in NODE_BROKE)
    share.advance(
        "go", now=now, by=share.node.name, reason=exit.why if exit else "", gone_at=now,
        exit_code=exit.code if exit else None, exit_signal=exit.signal if exit else None,
        exit_why=exit.why[:60] if exit else "", at_fault=share.at_fault,
    )  # fmt: skip
    leases.release(share, now=now)
    if share.exit_why == restores.UNREADABLE:
        restores.doubt(share, now=now)


def _free_zombies(node: Node, said: set[UUID], now: datetime) -> None:
    """GPUs of leases that ended without the node's word come back once it lists them no more."""
    held = LeasedGpu.objects.filter(
        gpu__node=node, released_at=None, lease__assignments__node=node,
        lease__assignments__gone_at__isnull=False,
    ).exclude(lease__assignments__in=said)  # fmt: skip
    LeasedGpu.objects.filter(pk__in=held.values("pk")).update(released_at=now)
