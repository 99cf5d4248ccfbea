"""What a node is told to run: a job's rows become the bytes of an AssignmentSpec."""

import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

import msgspec
from django.conf import settings
from django.db.models import prefetch_related_objects

from agent import protocol
from agent.protocol import Gang
from buyers import reads
from buyers.models import Artifact, Checkpoint, Dataset, Folder, Job
from buyers.own_models import ContainerImage, PackageLock
from marketplace import bulk
from marketplace.core import checkpoints
from marketplace.core.hardware import is_cpu
from marketplace.core.policy import Policy
from scheduler.seats import Seat

# What the system and the agent keep of a GPU machine's memory.
_HOST_SHARE = 0.9
# Each lease's network is its own, so all may use the same addresses.
_READ = ("base__job__base", "dataset", "script", "mix", "other", "third", "packages", "image")
_INSIDE = ipaddress.IPv4Network("10.64.0.0/24")

Files: TypeAlias = dict[UUID, list[protocol.File]]
"""Manifests by their folders' ids: many jobs of a round read the same base."""


def gang_of(job: Job, epoch: int, seats: Sequence[Seat], *, gather_s: float) -> Gang | None:
    """The network that a lease's nodes share, by rank; None for a lease on one node.

    Epochs are never repeated, so no two leases that run at a time share a network.
    """
    if len(seats) == 1:
        return None
    return Gang(
        network=1 + epoch % (2**23 - 1),
        token=secrets.token_hex(32),
        members=[
            protocol.Member(
                address=str(_INSIDE[rank + 1]),
                lan=seat.machine.lan_address,
                port=protocol.FIRST_PORT + rank,
                gpus=len(seat.gpus),
            )
            for rank, seat in enumerate(seats)
        ],
        gather_s=gather_s,
        gpus_min=min(job.gpus_min, sum(len(seat.gpus) for seat in seats)),
    )


@dataclass(frozen=True)
class Attempt:
    """What the specs of all ranks of a lease have in common."""

    job: Job
    lease: UUID
    epoch: int
    save_s: int
    failures_per_hour: float
    """Of all the gang."""
    resume: Checkpoint | None
    """What to go on from."""
    gang: Gang | None
    patience: Sequence[float]
    """Seconds from reservation to running, of each rank."""


def build(
    attempt: Attempt, seats: Sequence[Seat], ids: Sequence[UUID], *, files: Files, policy: Policy
) -> list[bytes]:
    """The specs of all ranks, as they are hashed and sent; `ids` of the assignments. What they
    have in common is made once."""
    first = _first(attempt, seats, ids[0], files, policy)
    others = [
        msgspec.structs.replace(
            first,
            assignment=assignment,
            rank=rank,
            devices=[gpu.uuid for gpu in seat.gpus],
            memory_bytes=_host_memory(seat),
            environment=attempt.job.environment or seat.machine.environment,
            start_timeout_s=attempt.patience[rank],
        )
        for rank, (assignment, seat) in enumerate(zip(ids, seats, strict=True))
        if rank
    ]
    return [protocol.encode(spec) for spec in (first, *others)]


def _first(
    attempt: Attempt, seats: Sequence[Seat], assignment: UUID, files: Files, policy: Policy
) -> protocol.AssignmentSpec:
    job, gang = attempt.job, attempt.gang
    save_s = checkpoints.save_seconds(job.save_s, policy.save_default_s)
    return protocol.AssignmentSpec(
        assignment=assignment,
        lease=attempt.lease,
        job=job.pk,
        org=job.org_id,
        epoch=attempt.epoch,
        recipe=job.recipe,
        parameters=job.parameters,
        inputs=_inputs(job, files),
        resume=_resume(attempt.resume, files),
        seed=job.seed,
        rank=0,
        world=len(seats),
        devices=[gpu.uuid for gpu in seats[0].gpus],
        memory_bytes=_host_memory(seats[0]),
        disk_bytes=job.disk_bytes,
        environment=job.environment or seats[0].machine.environment,
        grace_s=float(policy.grace_default_s),
        save_s=float(attempt.save_s),
        start_timeout_s=attempt.patience[0],
        hang_s=policy.hang_s,
        checkpoint_s=checkpoints.interval(save_s, failures_per_hour=attempt.failures_per_hour),
        gang=gang,
        packages=_packages(job),
        image=_image(job),
        egress=job.egress,
        secrets=job.secrets,
        lineage=_lineage(job),
    )


def patience(
    job: Job, seats: Sequence[Seat], resume: Checkpoint | None, policy: Policy
) -> list[float]:
    """Seconds that each seat has from reservation to running: a base, and twice the time that the
    bytes need."""
    size = sum(folder.bytes for _, folder, _ in inputs_of(job)) + (resume.bytes if resume else 0)
    base = policy.start_base_s
    brought = _packages_of(job) or _image_of(job)
    if brought is not None:
        size += brought.bytes
        base += policy.build_s
    return [base + 16 * size / (max(seat.machine.bandwidth_mbps, 0.1) * 1e6) for seat in seats]


def furthest(job: Job) -> Checkpoint | None:
    """The checkpoint to go on from: the furthest of the latest attempt that left one.

    Each attempt went on from the one before, so a later epoch is never behind; and a node that
    claims an absurd step rules its own attempt only.
    """
    return furthest_of([job]).get(job.pk)


def furthest_of(jobs: Sequence[Job]) -> dict[UUID, Checkpoint]:
    """The same for many: job id → checkpoint, where there is one. One query."""
    ids = bulk.among(job.pk for job in jobs)
    of_jobs = Checkpoint.objects.usable().filter(job__in=ids)
    found = of_jobs.order_by("job_id", "-epoch", "-step").distinct("job_id")
    return {checkpoint.job_id: checkpoint for checkpoint in found}


def read_inputs(jobs: Sequence[Job]) -> None:
    """Fetches what the specs of many jobs tell of, each row once: a constant number of queries."""
    for name in _READ:
        some = [job for job in jobs if getattr(job, f"{name.partition('__')[0]}_id")]
        prefetch_related_objects(some, name)


def inputs_of(job: Job) -> Sequence[tuple[str, Folder, bool]]:
    """What the job reads: (name, folder, whether it is public)."""
    return [
        *((name, model, _is_shared(model)) for name, model in _models(job).items()),
        *((name, folder, False) for name, folder in _datasets(job).items()),
    ]


# Asking for the row of a key that is null is what takes the time: most jobs name few.


def _models(job: Job) -> dict[str, Artifact]:
    base = job.base if job.base_id else None
    more = {
        "other": job.other if job.other_id else None,
        "third": job.third if job.third_id else None,
    }
    return reads.base(base, job.recipe) | {
        name: model for name, model in more.items() if model is not None
    }


def _datasets(job: Job) -> dict[str, Dataset]:
    folders = {
        "dataset": job.dataset if job.dataset_id else None,
        "script": job.script if job.script_id else None,
        "mix": job.mix if job.mix_id else None,
    }
    return {name: folder for name, folder in folders.items() if folder is not None}


def _packages_of(job: Job) -> PackageLock | None:
    return job.packages if job.packages_id else None


def _image_of(job: Job) -> ContainerImage | None:
    return job.image if job.image_id else None


def _is_shared(model: Artifact) -> bool:
    """Published, or fetched from an open repository: nodes may keep it for all orgs."""
    return model.public or model.org_id is None


def files_of(folder: Folder) -> list[protocol.File]:
    """A folder's manifest as the wire has it."""
    return [protocol.File(**entry) for entry in folder.manifest]


def _files(folder: Folder, known: Files) -> list[protocol.File]:
    found = known.get(folder.pk)
    if found is None:
        found = known[folder.pk] = files_of(folder)
    return found


def _packages(job: Job) -> protocol.Packages | None:
    lock = _packages_of(job)
    if lock is None:
        return None
    return protocol.Packages(
        sha256=lock.sha256,
        text=lock.text,
        python=lock.python,
        torch=lock.torch,
        index=settings.PACKAGE_INDEX_URL,
        hosts=lock.hosts,
        count=lock.count,
        bytes=lock.bytes,
    )


def _image(job: Job) -> protocol.Image | None:
    image = _image_of(job)
    if image is None:
        return None
    layers = [protocol.File(**layer) for layer in image.layers]
    return protocol.Image(reference=image.reference, layers=layers, env=image.env)


def _host_memory(seat: Seat) -> int:
    """Bytes of main memory that come with the GPUs: their share of the machine."""
    if is_cpu(seat.gpus[0].gpu_class):
        return sum(gpu.memory_bytes for gpu in seat.gpus)
    machine = seat.machine
    return int(machine.memory_bytes * _HOST_SHARE * len(seat.gpus) / max(1, machine.fitted))


def _inputs(job: Job, known: Files) -> list[protocol.Input]:
    return [
        protocol.Input(name=name, files=_files(folder, known), public=public)
        for name, folder, public in inputs_of(job)
    ]


def _resume(checkpoint: Checkpoint | None, known: Files) -> protocol.Resume | None:
    if checkpoint is None:
        return None
    files = _files(checkpoint, known)
    return protocol.Resume(step=checkpoint.step, files=files, place=checkpoint.place)


def _lineage(job: Job) -> dict[str, object]:
    models, datasets = _models(job), _datasets(job)
    return {
        "job": str(job.pk),
        **{name: {"name": each.name, "sha256": each.sha256} for name, each in models.items()},
        **{name: _named(folder) for name, folder in datasets.items()},
        "recipe": job.recipe,
    }


def _named(folder: Dataset) -> dict[str, object]:
    return {"name": folder.name, "version": folder.version, "sha256": folder.sha256}
