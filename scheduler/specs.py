"""What a node is told to run: a job's rows become the bytes of an AssignmentSpec."""

import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from django.conf import settings
from django.db.models import prefetch_related_objects

from agent import protocol
from agent.protocol import Gang
from buyers import reads
from buyers.models import Artifact, Checkpoint, Dataset, Folder, Job
from marketplace.core import checkpoints
from marketplace.core.hardware import is_cpu
from marketplace.core.policy import Policy
from scheduler.models import Assignment, Lease
from suppliers.models import Gpu, Node, Offer

# What the system and the agent keep of a GPU machine's memory.
_HOST_SHARE = 0.9
# Each lease's network is its own, so all may use the same addresses.
_READ = ("base__job__base", "dataset", "script", "mix", "other", "third", "packages", "image")
_INSIDE = ipaddress.IPv4Network("10.64.0.0/24")


@dataclass(frozen=True)
class Seat:
    """One node's part in a gang: its offer, its GPUs, and what the buyer pays for each."""

    offer: Offer
    gpus: tuple[Gpu, ...]
    price_micros: int

    @property
    def node(self) -> Node:
        """The machine."""
        return self.offer.node


def gang_of(lease: Lease, seats: Sequence[Seat]) -> Gang | None:
    """The network that a lease's nodes share, by rank; None for a lease on one node.

    Epochs are never repeated, so no two leases that run at a time share a network.
    """
    if len(seats) == 1:
        return None
    return Gang(
        network=1 + lease.epoch % (2**23 - 1),
        token=secrets.token_hex(32),
        members=[
            protocol.Member(
                address=str(_INSIDE[rank + 1]),
                lan=seat.node.lan_address,
                port=protocol.FIRST_PORT + rank,
                gpus=len(seat.gpus),
            )
            for rank, seat in enumerate(seats)
        ],
        gather_s=(lease.start_by - lease.created_at).total_seconds(),
        gpus_min=min(lease.job.gpus_min, lease.gpus_count),
    )


def build(
    job: Job, lease: Lease, share: Assignment, seat: Seat, *,
    gang: Gang | None, resume: Checkpoint | None, fitted: int, failures_per_hour: float,
    policy: Policy,
) -> bytes:  # fmt: skip
    """The spec of one rank, as it is hashed and sent. `resume`: what to go on from; `fitted`: the
    GPUs of its node, let or not; `failures_per_hour` of all the gang."""
    save_s = checkpoints.save_seconds(job.save_s, policy.save_default_s)
    interval = checkpoints.interval(save_s, failures_per_hour=failures_per_hour)
    return protocol.encode(
        protocol.AssignmentSpec(
            assignment=share.pk,
            lease=lease.pk,
            job=job.pk,
            org=job.org_id,
            epoch=lease.epoch,
            recipe=job.recipe,
            parameters=job.parameters,
            inputs=_inputs(job),
            resume=_resume(resume),
            seed=job.seed,
            rank=share.rank,
            world=len(gang.members) if gang else 1,
            devices=[gpu.uuid for gpu in seat.gpus],
            memory_bytes=_host_memory(seat, fitted),
            disk_bytes=job.disk_bytes,
            environment=job.environment or seat.node.environment,
            grace_s=float(policy.grace_default_s),
            save_s=float(lease.save_s),
            start_timeout_s=start_timeout(job, seat.node, resume, policy),
            hang_s=policy.hang_s,
            checkpoint_s=interval,
            gang=gang,
            packages=_packages(job),
            image=_image(job),
            egress=job.egress,
            secrets=job.secrets,
            lineage=_lineage(job),
        )
    )


def start_timeout(job: Job, node: Node, resume: Checkpoint | None, policy: Policy) -> float:
    """Seconds from reservation to running: a base, and twice the time that the bytes need."""
    folders: list[Folder] = [folder for _, folder, _ in inputs_of(job)]
    size = sum(folder.bytes for folder in folders) + (resume.bytes if resume else 0)
    building = 0.0
    brought = job.packages or job.image
    if brought is not None:
        size += brought.bytes
        building = policy.build_s
    return policy.start_base_s + building + 2 * size * 8 / (max(node.bandwidth_mbps, 0.1) * 1e6)


def furthest(job: Job) -> Checkpoint | None:
    """The checkpoint to go on from: the furthest of the latest attempt that left one.

    Each attempt went on from the one before, so a later epoch is never behind; and a node that
    claims an absurd step rules its own attempt only.
    """
    return furthest_of([job]).get(job.pk)


def furthest_of(jobs: Sequence[Job]) -> dict[UUID, Checkpoint]:
    """The same for many: job id → checkpoint, where there is one. One query."""
    of_jobs = Checkpoint.objects.usable().filter(job__in=[job.pk for job in jobs])
    found = of_jobs.order_by("job_id", "-epoch", "-step").distinct("job_id")
    return {checkpoint.job_id: checkpoint for checkpoint in found}


def read_inputs(jobs: Sequence[Job]) -> None:
    """Fetches what the specs of many jobs tell of, each row once: a constant number of queries."""
    prefetch_related_objects(jobs, *_READ)


def inputs_of(job: Job) -> Sequence[tuple[str, Folder, bool]]:
    """What the job reads: (name, folder, whether it is public)."""
    return [
        *((name, model, _is_shared(model)) for name, model in _models(job).items()),
        *((name, folder, False) for name, folder in _datasets(job).items()),
    ]


def _models(job: Job) -> dict[str, Artifact]:
    more = {"other": job.other, "third": job.third}
    return reads.base(job.base, job.recipe) | {
        name: model for name, model in more.items() if model is not None
    }


def _datasets(job: Job) -> dict[str, Dataset]:
    folders = {"dataset": job.dataset, "script": job.script, "mix": job.mix}
    return {name: folder for name, folder in folders.items() if folder is not None}


def _is_shared(model: Artifact) -> bool:
    """Published, or fetched from an open repository: nodes may keep it for all orgs."""
    return model.public or model.org_id is None


def files_of(folder: Folder) -> list[protocol.File]:
    """A folder's manifest as the wire has it."""
    return [protocol.File(**entry) for entry in folder.manifest]


def _packages(job: Job) -> protocol.Packages | None:
    lock = job.packages
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
    if job.image is None:
        return None
    layers = [protocol.File(**layer) for layer in job.image.layers]
    return protocol.Image(reference=job.image.reference, layers=layers, env=job.image.env)


def _host_memory(seat: Seat, fitted: int) -> int:
    """Bytes of main memory that come with the GPUs: their share of the machine."""
    if is_cpu(seat.gpus[0].gpu_class):
        return sum(gpu.memory_bytes for gpu in seat.gpus)
    return int(seat.node.memory_bytes * _HOST_SHARE * len(seat.gpus) / max(1, fitted))


def _inputs(job: Job) -> list[protocol.Input]:
    return [
        protocol.Input(name=name, files=files_of(folder), public=public)
        for name, folder, public in inputs_of(job)
    ]


def _resume(checkpoint: Checkpoint | None) -> protocol.Resume | None:
    if checkpoint is None:
        return None
    return protocol.Resume(step=checkpoint.step, files=files_of(checkpoint), place=checkpoint.place)


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
