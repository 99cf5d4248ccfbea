"""What a node is told to run: a job's rows become the bytes of an AssignmentSpec."""

import ipaddress
import secrets
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple, TypeAlias
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
_KEYS = tuple(f"{name.partition('__')[0]}_id" for name in _READ)
_ADDRESSES: Final = tuple(map(str, ipaddress.IPv4Network("10.64.0.0/24").hosts()))

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
                address=_ADDRESSES[rank],
                lan=seat.machine.lan_address,
                port=protocol.FIRST_PORT + rank,
                gpus=len(seat.gpus),
            )
            for rank, seat in enumerate(seats)
        ],
        gather_s=gather_s,
        gpus_min=min(job.gpus_min, sum(len(seat.gpus) for seat in seats)),
    )


class Brought(NamedTuple):
    """What a job brings to a node, by the node's names; looked up once for a lease."""

    models: Mapping[str, Artifact]
    datasets: Mapping[str, Dataset]
    packages: PackageLock | None
    image: ContainerImage | None

    @property
    def inputs(self) -> list[tuple[str, Folder, bool]]:
        """(name, folder, whether it is public)."""
        return [
            *((name, model, _is_shared(model)) for name, model in self.models.items()),
            *((name, folder, False) for name, folder in self.datasets.items()),
        ]


_NOTHING: Final = Brought({}, {}, None, None)


class Attempt(NamedTuple):
    """What the specs of all ranks of a lease have in common."""

    job: Job
    brought: Brought
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
    if attempt.gang is not None:
        told: Any = msgspec.Raw(protocol.encode(attempt.gang))
        first = msgspec.structs.replace(first, gang=told)
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
    job, brought, gang = attempt.job, attempt.brought, attempt.gang
    save_s = checkpoints.save_seconds(job.save_s, policy.save_default_s)
    return protocol.AssignmentSpec(
        assignment=assignment,
        lease=attempt.lease,
        job=job.id,
        org=job.org_id,
        epoch=attempt.epoch,
        recipe=job.recipe,
        parameters=job.parameters,
        inputs=_inputs(brought, files) if brought is not _NOTHING else [],
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
        packages=_packages(brought.packages),
        image=_image(brought.image),
        egress=job.egress,
        secrets=job.secrets,
        lineage=_lineage(job, brought),
    )


def patience(
    brought: Brought, seats: Sequence[Seat], resume: Checkpoint | None, policy: Policy
) -> list[float]:
    """Seconds that each seat has from reservation to running: a base, and twice the time that the
    bytes need."""
    size = resume.bytes if resume else 0
    base = policy.start_base_s
    if brought is not _NOTHING:
        size += sum(folder.bytes for _, folder, _ in brought.inputs)
    made = brought.packages or brought.image
    if made is not None:
        size += made.bytes
        base += policy.build_s
    if not size:
        return [float(base)] * len(seats)
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
    bringing = [job for job in jobs if _brings(job)]
    for name, key in zip(_READ, _KEYS, strict=True):
        some = [job for job in bringing if vars(job).get(key, True)]
        prefetch_related_objects(some, name)


def inputs_of(job: Job) -> Sequence[tuple[str, Folder, bool]]:
    """What the job reads: (name, folder, whether it is public)."""
    return brought(job).inputs


def brought(job: Job) -> Brought:
    """What the job reads and runs in."""
    if not _brings(job):
        return _NOTHING
    packages = job.packages if job.packages_id else None
    image = job.image if job.image_id else None
    return Brought(_models(job), _datasets(job), packages, image)


def _brings(job: Job) -> bool:
    """Whether it names any of it. Most jobs name little, and asking for the row of a key that is null
    is what takes the time; a key that was not read may name something."""
    return any(map(vars(job).get, _KEYS, repeat(True)))


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


def _packages(lock: PackageLock | None) -> protocol.Packages | None:
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


def _image(image: ContainerImage | None) -> protocol.Image | None:
    if image is None:
        return None
    layers = [protocol.File(**layer) for layer in image.layers]
    return protocol.Image(reference=image.reference, layers=layers, env=image.env)


def _host_memory(seat: Seat) -> int:
    """Bytes of main memory that come with the GPUs: their share of the machine."""
    gpus, machine = seat.gpus, seat.machine
    if is_cpu(gpus[0].gpu_class):
        return sum(gpu.memory_bytes for gpu in gpus)
    return int(machine.memory_bytes * _HOST_SHARE * len(gpus) / (machine.fitted or 1))


def _inputs(brought: Brought, known: Files) -> list[protocol.Input]:
    return [
        protocol.Input(name=name, files=_files(folder, known), public=public)
        for name, folder, public in brought.inputs
    ]


def _resume(checkpoint: Checkpoint | None, known: Files) -> protocol.Resume | None:
    if checkpoint is None:
        return None
    files = _files(checkpoint, known)
    return protocol.Resume(step=checkpoint.step, files=files, place=checkpoint.place)


def _lineage(job: Job, brought: Brought) -> dict[str, object]:
    found: dict[str, object] = {"job": job.id}
    for name, model in brought.models.items():
        found[name] = {"name": model.name, "sha256": model.sha256}
    for name, folder in brought.datasets.items():
        found[name] = _named(folder)
    found["recipe"] = job.recipe
    return found


def _named(folder: Dataset) -> dict[str, object]:
    return {"name": folder.name, "version": folder.version, "sha256": folder.sha256}
