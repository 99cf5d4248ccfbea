"""What there is to say of a job, read once: its page, its socket and its JSON all show this."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, get_args

from django.db.models import F, Max, Q, QuerySet

from agent.recipes.verdict import Measure
from buyers.models import Artifact, Checkpoint, Job, MetricPoint
from marketplace import storage, telemetry
from marketplace.core.errors import MarketError
from marketplace.models import StateChange
from scheduler import credits, explaining, holds, jobs, restores
from scheduler.explaining import JobTold
from scheduler.holds import Held
from scheduler.models import Assignment, Lease

log = logging.getLogger(__name__)

_TAIL_BYTES: Final = 16 * 1024
_MOST_POINTS: Final = 2_000
"""More than a screen has pixels for, and little enough to send to a phone."""
_HELD_OUT: Final = [f"heldout_{measure}" for measure in get_args(Measure)]
"""What evaluations are told as."""
_PLACE: Final = re.compile(r"([0-9]{1,18})\.([0-9]{1,18})")


@dataclass(frozen=True)
class JobView:
    """A job with all its page shows, as of `now`; the receipt and the log are read apart."""

    job: Job
    now: datetime
    words: str
    """Its state in words: why it waits, where it runs, how it ended."""
    told: JobTold | None
    """Why it waits and what would place it, by the last round that looked at it."""
    held: Held | None
    """What others leave for it."""
    lease: Lease | None
    """The live one, else the last."""
    shares: Sequence[Assignment]
    checkpoints: Sequence[Checkpoint]
    went_on: str
    """Whether a script's last attempt went on from what was saved, in words; "" if it can't be
    told."""
    artifact: Artifact | None
    story: Sequence[StateChange]
    latest: MetricPoint | None
    """The last step's figures."""
    evaluated: Sequence[MetricPoint]
    """Where the held-out rows were measured, oldest first."""

    @property
    def held_out(self) -> list[tuple[str, list[tuple[int, float]]]]:
        """Each measure of the held-out rows by its name, with its steps and figures."""
        found = {
            name.removeprefix("heldout_"): [
                (point.step, point.values[name]) for point in self.evaluated if name in point.values
            ]
            for name in _HELD_OUT
        }
        return [(measure, figures) for measure, figures in found.items() if figures]

    @property
    def gpus(self) -> int:
        """How many the last attempt had in the end: those that its gang did without are left out."""
        return sum(share.gpus_count for share in self.shares if share.spared_at is None)

    @property
    def lost_s(self) -> int | None:
        """Of a job that the market has displaced: billed seconds since its last checkpoint, which it
        does not pay for; None of any other."""
        if self.lease is None or self.lease.end_reason != "displaced":
            return None
        return credits.unsaved_s(self.shares)

    @property
    def rests(self) -> bool:
        """Whether nothing more happens unless the buyer wants it."""
        return self.job.state == "stopped" or self.job.state in self.job.MACHINE.final

    @property
    def may(self) -> frozenset[str]:
        """What the buyer can do: cancel, stop, resume. A job on its way out does neither."""
        leaving = bool(self.lease and self.lease.end_reason and self.lease.state != "ended")
        wanted = {"cancel"} if leaving else {"cancel", "stop", "resume"}
        return frozenset(
            event
            for event in wanted
            if self.job.state in self.job.MACHINE.transition(event).sources
        )


def look(job: Job, *, now: datetime) -> JobView:
    """Reads it all; a fixed number of queries, and those of `jobs.describe`."""
    told, held = explaining.of_job(job), holds.of_job(job)
    lease = jobs.current_lease(job)
    found = lease.assignments.select_related("node__site__org", "lease") if lease else None
    shares = list(found.order_by("rank")) if found is not None else []
    return JobView(
        job=job,
        now=now,
        words=jobs.describe(job, told, held),
        told=told,
        held=held,
        lease=lease,
        shares=shares,
        checkpoints=list(job.checkpoints.exclude(committed_at=None).order_by("-step", "-epoch")),
        went_on=restores.how_it_went_on(job, lease, shares[0]) if lease and shares else "",
        artifact=job.artifacts.exclude(committed_at=None).first(),
        story=list(job.story()),
        latest=_points(job).filter(values__has_key="loss").last(),
        evaluated=list(_points(job).filter(values__has_any_keys=_HELD_OUT)),
    )


def log_tail(job: Job, lease: Lease | None) -> str:
    """The end of the output of the job's last attempt; what ran long ago is read from storage."""
    if lease is None:
        return ""
    if live := telemetry.log_tail(job.pk, lease.epoch):
        return live[-_TAIL_BYTES:]
    try:
        return _kept_log(job, lease)
    except MarketError as error:
        # A page without its log is still a page.
        log.warning("the log of job %s can't be read: %s", job.pk, error)
        return ""


@dataclass(frozen=True)
class Points:
    """Points of a job's curves, oldest first, and where to go on from: "epoch.step"."""

    rows: Sequence[dict[str, Any]]
    next: str


def points(job: Job, *, after: str = "") -> Points:
    """The job's curves: for each step the newest attempt's values.

    `after` is an earlier answer's `next`: then only what has come since, its last point again
    (it may have grown). A long run is thinned to some 2,000 points; evaluations stay.
    """
    found = job.metrics.all()
    if since := _parsed(after):
        epoch, step = since
        newer = found.filter(epoch__gt=epoch) | found.filter(epoch=epoch, step__gte=step)
        chosen = newer.order_by("epoch", "step")[:_MOST_POINTS]
    else:
        furthest = found.aggregate(most=Max("step"))["most"] or 0
        every = furthest // _MOST_POINTS + 1
        thinned = found.annotate(odd=F("step") % every).filter(
            Q(odd=0) | Q(values__has_any_keys=_HELD_OUT)
        )
        chosen = thinned.order_by("step", "-epoch").distinct("step")
    rows = [
        {"epoch": row.epoch, "step": row.step, "at": row.at, "values": row.values} for row in chosen
    ]
    if not rows:
        return Points((), after)
    last = max((row["epoch"], row["step"]) for row in rows)
    return Points(rows, f"{last[0]}.{last[1]}")


def _points(job: Job) -> QuerySet[MetricPoint]:
    return job.metrics.order_by("epoch", "step")


def _kept_log(job: Job, lease: Lease) -> str:
    """From the logs that the first rank sent when the attempt had ended."""
    kept = job.run_logs.filter(epoch=lease.epoch).exclude(committed_at=None).order_by("rank")
    parts = []
    for folder in kept[:1]:
        for entry in folder.manifest:
            if entry["bytes"]:
                start = max(0, entry["bytes"] - _TAIL_BYTES)
                tail = b"".join(
                    storage.read(storage.file_key(folder.prefix, entry["sha256"]), start=start)
                )
                parts.append(tail.decode(errors="replace"))
    return "".join(parts)[-_TAIL_BYTES:]


def _parsed(after: str) -> tuple[int, int] | None:
    found = _PLACE.fullmatch(after)
    return (int(found[1]), int(found[2])) if found else None
