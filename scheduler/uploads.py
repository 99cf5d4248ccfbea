"""What jobs leave behind: upload rights given out, and folders committed whole or not at all.

A lease may only write under its own epoch, and only while it is its job's last one: a zombie's
URL leads where nobody reads, and its commit is refused.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Greatest

from agent import protocol
from buyers import evaluations
from buyers.models import Artifact, Checkpoint, Folder, Job, RunLog
from marketplace import storage, telemetry
from marketplace.core.checkpoints import Kept, retired
from marketplace.core.errors import Conflict, Invalid, TooLarge
from marketplace.core.ids import uuid7
from marketplace.files import check_path, check_place, check_together
from scheduler import metering
from scheduler.assignments import of_node
from scheduler.models import Assignment
from suppliers.models import Node

_LOG_FILES: Final = 4
"""Standard output and error, each perhaps rotated once."""


def grant(
    node: Node, assignment_id: UUID, request: protocol.UploadRequest, *, now: datetime
) -> protocol.UploadReply:
    """Presigned PUTs for each part of each file, within the lease's quota.

    Raises Missing, Conflict (fenced: another lease has taken over), Invalid (a path or parts
    that can't be) and TooLarge (over the quota).
    """
    share = of_node(node, assignment_id)
    prefix = _prefix(share, request.epoch, request.kind, request.step)
    for file in request.files:
        check_path(file.path)
        whole, rest = divmod(file.bytes, protocol.PART_BYTES)
        sizes = [protocol.PART_BYTES] * whole + ([rest] if rest or not whole else [])
        if [part.bytes for part in file.parts] != sizes:
            raise Invalid(
                f"{file.path!r} of {file.bytes} bytes goes in parts of {protocol.PART_BYTES}, the "
                "last one smaller"
            )
    total = _stored_bytes((file.sha256, file.bytes) for file in request.files)
    quota = settings.POLICY.upload_bytes_per_lease
    granted = Assignment.objects.filter(pk=share.pk, granted_bytes__lte=quota - total)
    if not granted.update(granted_bytes=F("granted_bytes") + total):
        raise TooLarge(f"a lease may upload {quota >> 30} GiB; this one has reached that")
    return protocol.UploadReply(files=[_upload(prefix, file) for file in request.files])


def commit(
    node: Node, assignment_id: UUID, request: protocol.CommitRequest, *, now: datetime
) -> protocol.CommitReply:
    """Makes an uploaded folder the job's, after every file was found as declared.

    A repeated commit is answered like the first. Raises Missing, Conflict (fenced, or a file
    that is missing or differs), Invalid.
    """
    share = of_node(node, assignment_id)
    prefix = _prefix(share, request.epoch, request.kind, request.step)
    check_together([file.path for file in request.files])
    _check_laid_back(share.lease.job, request)
    if request.kind == "log" and len(request.files) > _LOG_FILES:
        raise Invalid(f"a log has at most {_LOG_FILES} files")
    manifest = sorted(
        (protocol.File(path=f.path, bytes=f.bytes, sha256=f.sha256) for f in request.files),
        key=lambda file: file.path,
    )
    # What is committed stays as it is: a repeat may not put anything together again.
    before = _committed(share, request)
    if before is not None:
        return protocol.CommitReply(manifest=before.sha256)
    # The network first, outside of any transaction.
    for file in request.files:
        _verify(prefix, file)
    folder = _folder(manifest, prefix, now)
    if request.kind == "artifact":
        folder["evaluation"] = evaluations.load(prefix, manifest)
    with transaction.atomic():
        job = metering.locked_job(share.lease.job_id)
        # Read anew under the lock: the lease may have ended while we looked at the files.
        share.refresh_from_db()
        share.lease.refresh_from_db()
        _fence(share, request.epoch)
        _write(job, share, request, folder)
    if request.kind == "checkpoint":
        _retire_old(job, share, now)
    return protocol.CommitReply(manifest=protocol.manifest_sha256(manifest))


def _stored_bytes(files: Iterable[tuple[str, int]]) -> int:
    """What files (hash, size) take in storage, where each lies once however many paths it has."""
    return sum(size for _, size in set(files))


def _prefix(share: Assignment, epoch: int, kind: str, step: int) -> str:
    _fence(share, epoch)
    if kind == "log":
        kind, step = "log", share.rank
    elif share.rank != 0:
        raise Invalid("checkpoints and artifacts are rank 0's to send")
    return storage.run_prefix(share.lease.job_id, epoch, kind, step)


def _check_laid_back(job: Job, request: protocol.CommitRequest) -> None:
    """Raises Invalid for what the next node couldn't lay back where it lay: it would refuse it."""
    if not request.place:
        return
    project = job.script.manifest if job.script else []
    paths = [file.path for file in request.files]
    check_place(request.place, paths, project=[entry["path"] for entry in project])
    laid = sum(file.bytes for file in request.files) + sum(entry["bytes"] for entry in project)
    if laid > job.disk_bytes:
        raise Invalid(
            f"the project and this checkpoint have {laid >> 20} MiB, and the job books "
            f"{job.disk_bytes >> 20} MiB of disk"
        )


def _committed(share: Assignment, request: protocol.CommitRequest) -> Folder | None:
    """The folder that this request has already become, if it has."""
    job, epoch = share.lease.job_id, request.epoch
    if request.kind == "checkpoint":
        return Checkpoint.objects.filter(job=job, epoch=epoch, step=request.step).first()
    if request.kind == "artifact":
        return Artifact.objects.filter(job=job).first()
    return RunLog.objects.filter(job=job, epoch=epoch, rank=share.rank).first()


def _fence(share: Assignment, epoch: int) -> None:
    if share.lease.epoch != epoch or share.settled_at or share.lease.state == "ended":
        raise Conflict("this lease is over: nothing of it is taken any more")


def _upload(prefix: str, file: protocol.FileToSend) -> protocol.Upload:
    key, seconds = storage.file_key(prefix, file.sha256), settings.POLICY.upload_url_s
    if len(file.parts) == 1:
        put = storage.signed_put(key, size=file.bytes, sha256=file.sha256, seconds=seconds)
        return protocol.Upload(
            path=file.path, upload_id=None, puts=[protocol.Put(url=put.url, headers=put.headers)]
        )
    # An upload that outlasts its URLs goes on where it was.
    upload_id = file.upload_id or storage.start_parts(key)
    puts = [
        storage.signed_part(
            key, upload_id, number, size=part.bytes, sha256=part.sha256, seconds=seconds
        )
        for number, part in enumerate(file.parts, 1)
    ]
    return protocol.Upload(
        path=file.path,
        upload_id=upload_id,
        puts=[protocol.Put(url=put.url, headers=put.headers) for put in puts],
    )


def _verify(prefix: str, file: protocol.SentFile) -> None:
    key = storage.file_key(prefix, file.sha256)
    if file.upload_id:
        storage.finish_parts(key, file.upload_id, file.etags)
    found = storage.stat(key)
    if found is None:
        raise Conflict(f"{file.path} has not arrived; send it again")
    if found.bytes != file.bytes or (found.sha256 and found.sha256 != file.sha256):
        raise Conflict(f"{file.path} is not what was declared; send it again")


def _folder(manifest: Sequence[protocol.File], prefix: str, now: datetime) -> dict[str, object]:
    """The columns of a committed Folder."""
    return {
        "manifest": [
            {"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in manifest
        ],
        "sha256": protocol.manifest_sha256(list(manifest)),
        "bytes": sum(file.bytes for file in manifest),
        "prefix": prefix,
        "created_at": now,
        "committed_at": now,
    }


def _write(
    job: Job, share: Assignment, request: protocol.CommitRequest, folder: dict[str, object]
) -> None:
    if request.kind == "checkpoint":
        _checkpoint(job, share, request, folder)
    elif request.kind == "artifact":
        _artifact(job, share, folder)
    else:
        RunLog.objects.get_or_create(
            job=job, epoch=request.epoch, rank=share.rank, defaults={"id": uuid7(), **folder}
        )
    transaction.on_commit(partial(telemetry.job_changed, job.pk), robust=True)


def _checkpoint(
    job: Job, share: Assignment, request: protocol.CommitRequest, folder: dict[str, object]
) -> None:
    # Written while the bytes of it were still to be sent; but not later than it has run.
    told = share.reported_ms if request.running_ms is None else request.running_ms
    written_ms = min(told, share.reported_ms)
    _, new = Checkpoint.objects.get_or_create(
        job=job,
        epoch=request.epoch,
        step=request.step,
        defaults={
            "id": uuid7(), "seconds": request.seconds, "place": request.place,
            "running_ms": written_ms, **folder,
        },
    )  # fmt: skip
    if not new:
        return
    share.saved_ms = max(share.saved_ms, written_ms)
    share.save(update_fields=["saved_ms"])
    took = min(request.seconds, float(settings.POLICY.save_most_s))
    if took > 0:
        job.save_s = took if job.save_s is None else max(job.save_s, took)
        job.save(update_fields=["save_s"])


def _artifact(job: Job, share: Assignment, folder: dict[str, object]) -> None:
    spec = protocol.decode(bytes(share.spec), protocol.AssignmentSpec)
    Artifact.objects.get_or_create(
        job=job,
        defaults={
            "id": uuid7(),
            "org_id": job.org_id,
            "epoch": share.lease.epoch,
            "name": job.name,
            "lineage": {**spec.lineage, "parameters": job.parameters, "epoch": share.lease.epoch},
            **folder,
        },
    )


def _retire_old(job: Job, share: Assignment, now: datetime) -> None:
    """Deletes the files of checkpoints that nobody will go on from; their rows stay, marked. What
    this lease has sent of them it may send again: its quota is on what lies here."""
    policy = settings.POLICY
    alive = {each.pk: each for each in job.checkpoints.usable().order_by("-epoch", "-step")}
    found = [Kept(each.pk, each.epoch, each.proven_at is not None) for each in alive.values()]
    gone = retired(found, most=policy.checkpoints_kept, unproven=policy.checkpoints_unproven)
    for checkpoint in (alive[pk] for pk in gone):
        marked = Checkpoint.objects.filter(pk=checkpoint.pk, deleted_at=None).update(deleted_at=now)
        if marked and checkpoint.epoch == share.lease.epoch:
            freed = _stored_bytes((each["sha256"], each["bytes"]) for each in checkpoint.manifest)
            left = Greatest(0, F("granted_bytes") - freed)
            Assignment.objects.filter(pk=share.pk).update(granted_bytes=left)
        storage.delete(
            storage.file_key(checkpoint.prefix, entry["sha256"]) for entry in checkpoint.manifest
        )
