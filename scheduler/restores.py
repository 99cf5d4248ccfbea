"""Checkpoints that are gone on from: proven by that, or found bad, and then never offered again.

A node hashes all that it fetches. One that finds other bytes than the manifest says goes on from
nothing: the checkpoint is doubted and the one before is offered at once, while we read it
ourselves; unless that node was wrong before, whose word then counts for nothing. (Hashing each whole checkpoint at its commit would take all of its bytes through our
own line; storage checks every part against the hash that its URL signs, but not that the parts
make up the file that was declared.) Whoever is wrong pays: the attempt that wrote it for what it
was paid since its last good one, or the node that cried wolf.
"""

import hashlib
import logging
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from django.db import transaction
from django.db.models import F, Min, Q

from agent import protocol
from buyers.models import Checkpoint, Job
from marketplace import storage, telemetry
from scheduler import credits, metering
from scheduler.models import Assignment, Lease

log = logging.getLogger(__name__)

UNREADABLE = "checkpoint"
"""The agent's word for a checkpoint that it could not fetch as its manifest says."""

_REMEMBERED: Final = timedelta(days=30)


def prove(lease: Lease, *, now: datetime) -> None:
    """All ranks run: what they went on from is good."""
    share = lease.assignments.order_by("rank").first()
    if share is not None and (checkpoint := given(share)) is not None:
        Checkpoint.objects.filter(pk=checkpoint.pk, proven_at=None).update(proven_at=now)


def doubt(share: Assignment, *, now: datetime) -> None:
    """A node says that it can't read what it was to go on from: until we have looked, nobody is
    offered it. A node that was wrong in that lately is at fault itself."""
    wrong = Assignment.objects.on(share.node).filter(exit_why=UNREADABLE, at_fault=True)
    if wrong.filter(gone_at__gt=now - _REMEMBERED).exists():
        share.at_fault = True
        share.save(update_fields=["at_fault"])
        return
    if (checkpoint := given(share)) is not None:
        unjudged = Checkpoint.objects.filter(pk=checkpoint.pk, doubted_at=None, bad_at=None)
        unjudged.update(doubted_at=now)


def given(share: Assignment) -> Checkpoint | None:
    """What an assignment goes on from, by its spec; None if it begins at nothing."""
    resume = protocol.decode(bytes(share.spec), protocol.AssignmentSpec).resume
    if resume is None:
        return None
    same = Checkpoint.objects.filter(
        job=share.lease.job_id,
        step=resume.step,
        sha256=protocol.manifest_sha256(resume.files),
        epoch__lt=share.lease.epoch,
    )
    # Two attempts may have left the same bytes; one that was known to be bad was not offered.
    offered = same.filter(Q(bad_at=None) | Q(bad_at__gte=share.lease.created_at))
    return offered.order_by("-epoch").first()


def judge(*, now: datetime) -> int:
    """Reads all doubted checkpoints and judges them; returns how many. Takes as long as reading
    them takes."""
    doubted = list(Checkpoint.objects.filter(doubted_at__isnull=False))
    for checkpoint in doubted:
        try:
            _judge(checkpoint, is_good=_is_as_declared(checkpoint), now=now)
        except Exception:
            # Storage may be away; the others are as urgent, and this one is tried again.
            log.exception("checkpoint %s could not be judged", checkpoint.pk)
    return len(doubted)


def how_it_went_on(job: Job, lease: Lease, share: Assignment) -> str:
    """Whether a script's new attempt went on from what it was given, measured by its steps; ""
    where that can't be told, and for recipes, which always do. `share`: the first rank's."""
    if job.recipe != "script" or lease.running_at is None:
        return ""
    resumed = given(share)
    if resumed is None:
        before = job.leases.filter(epoch__lt=lease.epoch, running_at__isnull=False).exists()
        return "It began anew: nothing had been saved that it could go on from." if before else ""
    first = job.metrics.filter(epoch=lease.epoch).aggregate(first=Min("step"))["first"]
    if first is None:
        return ""
    if first > resumed.step:
        return f"It went on from step {resumed.step}."
    return (
        f"This script starts anew after an interruption: step {resumed.step} was laid back at "
        f"{resumed.place or 'its input resume'}, and it began at step {first}. Let it load what "
        "GRIDLOOM_RESUME_FROM names; with Hugging Face's Trainer that is "
        'trainer.train(resume_from_checkpoint=os.environ.get("GRIDLOOM_RESUME_FROM")).'
    )


def _is_as_declared(checkpoint: Checkpoint) -> bool:
    """Whether each file's bytes are those of its hash. Raises Unavailable."""
    for entry in checkpoint.manifest:
        key, digest = storage.file_key(checkpoint.prefix, entry["sha256"]), hashlib.sha256()
        if storage.stat(key) is None:
            return False
        for chunk in storage.read(key):
            digest.update(chunk)
        if digest.hexdigest() != entry["sha256"]:
            return False
    return True


def _judge(checkpoint: Checkpoint, *, is_good: bool, now: datetime) -> None:
    with transaction.atomic():
        job = metering.locked_job(checkpoint.job_id)
        doubted = Checkpoint.objects.filter(pk=checkpoint.pk, doubted_at__isnull=False)
        if not doubted.update(doubted_at=None, bad_at=None if is_good else now):
            return
        if is_good:
            _blame_reader(job, checkpoint)
        else:
            _blame_writer(job, checkpoint, now)
        transaction.on_commit(partial(telemetry.job_changed, job.pk), robust=True)
    if not is_good:
        keys = (storage.file_key(checkpoint.prefix, e["sha256"]) for e in checkpoint.manifest)
        storage.delete(keys)
        Checkpoint.objects.filter(pk=checkpoint.pk).update(deleted_at=now)


def _blame_reader(job: Job, checkpoint: Checkpoint) -> None:
    """It is there as it should be: whoever could not read it has a bad line, or lies."""
    shares = Assignment.objects.filter(lease__job=job, exit_why=UNREADABLE, at_fault=False)
    for share in shares.select_related("lease"):
        if given(share) == checkpoint:
            log.warning("node %s could not read a good checkpoint", share.node_id)
            share.at_fault = True
            share.save(update_fields=["at_fault"])
            job.avoid_nodes = list(dict.fromkeys([*job.avoid_nodes, str(share.node_id)]))
    job.save(update_fields=["avoid_nodes"])


def _blame_writer(job: Job, checkpoint: Checkpoint, now: datetime) -> None:
    """What it saved since its last good one is worth nothing, and isn't paid."""
    log.warning("checkpoint %s of job %s is bad", checkpoint.pk, job.pk)
    lease = job.leases.get(epoch=checkpoint.epoch)
    before = job.checkpoints.usable().filter(epoch=lease.epoch, running_ms__isnull=False)
    good = before.order_by(F("running_ms").desc()).first()
    credits.take_back(
        job, lease, saved_ms=good.running_ms or 0 if good else 0, step=checkpoint.step, now=now
    )
