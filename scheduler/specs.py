"""What a node is told to run: a job's rows become the bytes of an AssignmentSpec."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from agent import protocol
from buyers.models import Artifact, Checkpoint, Folder, Job
from marketplace.core.hardware import is_cpu
from marketplace.core.policy import Policy
from scheduler.models import Assignment, Lease
from suppliers.models import Gpu, Node, Offer

# What the system and the agent keep of a GPU machine's memory.
_HOST_SHARE = 0.9


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


def build(
    job: Job, lease: Lease, share: Assignment, seat: Seat, *, world: int, policy: Policy
) -> bytes:
    """The spec of one rank, as the bytes that are hashed and sent."""
    resume = furthest(job)
    inputs = list(inputs_of(job))
    return protocol.encode(
        protocol.AssignmentSpec(
            assignment=share.pk,
            lease=lease.pk,
            job=job.pk,
            org=job.org_id,
            epoch=lease.epoch,
            recipe=job.recipe,
            parameters=job.parameters,
            inputs=[
                protocol.Input(name=name, files=files_of(folder), public=public)
                for name, folder, public in inputs
            ],
            resume=protocol.Resume(step=resume.step, files=files_of(resume)) if resume else None,
            seed=job.seed,
            rank=share.rank,
            world=world,
            devices=[gpu.uuid for gpu in seat.gpus],
            memory_bytes=_host_memory(seat),
            disk_bytes=job.disk_bytes,
            environment=job.environment or seat.node.environment,
            grace_s=float(policy.grace_default_s),
            save_s=float(lease.save_s),
            start_timeout_s=start_timeout(job, seat.node, resume, policy),
            hang_s=policy.hang_s,
            checkpoint_s=_checkpoint_interval(job, policy),
            lineage=_lineage(job),
        )
    )


def start_timeout(job: Job, node: Node, resume: Checkpoint | None, policy: Policy) -> float:
    """Seconds from reservation to running: a base, and twice the time that the bytes need."""
    folders: list[Folder] = [folder for _, folder, _ in inputs_of(job)]
    size = sum(folder.bytes for folder in folders) + (resume.bytes if resume else 0)
    return policy.start_base_s + 2 * size * 8 / (max(node.bandwidth_mbps, 0.1) * 1e6)


def furthest(job: Job) -> Checkpoint | None:
    """The checkpoint to go on from: the furthest of the latest attempt that left one.

    Each attempt went on from the one before, so a later epoch is never behind; and a node that
    claims an absurd step rules its own attempt only.
    """
    committed = Checkpoint.objects.filter(job=job, committed_at__isnull=False, deleted_at=None)
    return committed.order_by("-epoch", "-step").first()


def inputs_of(job: Job) -> Sequence[tuple[str, Folder, bool]]:
    """What the job reads: (name, folder, whether it is public)."""
    named = (
        ("base", job.base, _is_shared(job.base)),
        ("dataset", job.dataset, False),
        ("script", job.script, False),
    )
    return [(name, folder, public) for name, folder, public in named if folder is not None]


def _is_shared(model: Artifact | None) -> bool:
    """Published, or fetched from an open repository: nodes may keep it for all orgs."""
    return model is not None and (model.public or model.org_id is None)


def files_of(folder: Folder) -> list[protocol.File]:
    """A folder's manifest as the wire has it."""
    return [protocol.File(**entry) for entry in folder.manifest]


def _host_memory(seat: Seat) -> int:
    """Bytes of main memory that come with the GPUs: their share of the machine."""
    if is_cpu(seat.gpus[0].gpu_class):
        return sum(gpu.memory_bytes for gpu in seat.gpus)
    fitted = max(1, seat.node.gpus.filter(present=True).count())
    return int(seat.node.memory_bytes * _HOST_SHARE * len(seat.gpus) / fitted)


def _checkpoint_interval(job: Job, policy: Policy) -> float:
    """Seconds between checkpoints: √(2 · save · mean time between failures).

    J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9),
    1974. The rate is that of an unproven node; a minute at least, so that a cheap save does not
    turn into nothing but saving.
    """
    save = job.save_s if job.save_s is not None else policy.save_default_s
    return max(60.0, math.sqrt(2 * save * policy.mtbf_s))


def _lineage(job: Job) -> dict[str, object]:
    return {
        "job": str(job.pk),
        "base": {"name": job.base.name, "sha256": job.base.sha256} if job.base else None,
        "dataset": (
            {"name": job.dataset.name, "version": job.dataset.version, "sha256": job.dataset.sha256}
            if job.dataset
            else None
        ),
        "script": (
            {"name": job.script.name, "version": job.script.version, "sha256": job.script.sha256}
            if job.script
            else None
        ),
        "recipe": job.recipe,
    }
