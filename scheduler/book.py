"""The order book, read from the rows: what stands open, who could have it, and for what.

What a job may not have for reasons of its own (memory, environment, who may run code, a node it
has failed on) is told to the pure engine through the GPU class: nodes that differ in such a way
are different products, and a product that a job can't use has a limit of 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db.models import Q, QuerySet

from buyers import secrets
from buyers.models import Job
from marketplace.core.fit import Stands, Wants
from marketplace.core.hardware import Trust
from marketplace.core.money import before_premium
from marketplace.core.reliability import Reliability
from scheduler import lots, records
from scheduler.lots import Lot
from suppliers.models import Gpu, Node, Offer

LONG_WINDOW: Final = timedelta(hours=24)
_SHOWN: Final = (
    "notice_s", "node__name", "node__sandbox", "node__environment", "node__cpu_cores",
    "node__bandwidth_mbps", "node__site__name", "node__site__region", "node__site__pue",
    "node__site__carbon_g_per_kwh", "node__site__org__name",
)  # fmt: skip
"""What a quote tells of an offer; the rest of its rows is long, and read when somebody asks for it."""


@dataclass(frozen=True)
class Standing:
    """One open offer with what is free of it, as rows and as the pure rules see it."""

    offer: Offer
    watts: int
    """Of the first GPU that is free; 0: none is."""
    stands: Stands

    @property
    def node(self) -> Node:
        """The machine on offer."""
        return self.offer.node


def lettable(now: datetime) -> QuerySet[Node]:
    """Nodes that may be given work: ready, heard of within the TTL, not wanted by their owner."""
    heard = now - timedelta(seconds=settings.POLICY.lease_ttl_s)
    return Node.objects.lettable().filter(last_seen_at__gte=heard, session__isnull=False)


def free_gpus(node: UUID, gpu_class: str) -> QuerySet[Gpu]:
    """The node's GPUs of a class that nobody has or is held, in the order of the machine."""
    return _free([node]).filter(gpu_class=gpu_class)


def rows_of(found: Sequence[Lot]) -> list[Standing]:
    """The rows of offers that stand open. Two queries."""
    offers = Offer.objects.select_related("node__site__org").only(*_SHOWN)
    rows = offers.in_bulk([lot.offer_id for lot in found])
    first = _free([row.node_id for row in rows.values()]).order_by("node", "gpu_class", "index")
    told = first.distinct("node", "gpu_class").values_list("node", "gpu_class", "watts")
    watts = {(str(node), gpu_class): each for node, gpu_class, each in told}
    return [
        Standing(
            rows[lot.offer_id], watts.get((lot.stands.node, lot.stands.gpu_class), 0), lot.stands
        )
        for lot in found
    ]


def opening(now: datetime) -> list[tuple[datetime, Lot]]:
    """Offers out of their windows, as they will stand, and from when; the soonest first."""
    timed = set(Offer.objects.open().exclude(windows=[]).values_list("pk", flat=True))
    return lots.opening(lots.read(now=now, offers=timed), now=now) if timed else []


def reliability_of(nodes: Sequence[Node], *, now: datetime) -> dict[UUID, Reliability]:
    """Node id → how far it can be relied on, from how its leases ended in the last half year."""
    ids = [node.pk for node in nodes]
    return dict.fromkeys(ids, records.unknown()) | records.known(ids, now=now)


def wants(job: Job) -> Wants:
    """A job as the pure rules see it."""
    return Wants(
        org=str(job.org_id),
        job=str(job.pk),
        gpus=job.gpus_min,
        gpus_max=job.gpus_max,
        level=job.level,
        memory_bytes=job.memory_bytes,
        memory_cpu_bytes=job.memory_cpu_bytes or job.memory_bytes,
        disk_bytes=job.disk_bytes + (job.image.room if job.image else 0),
        trust=job.trust,
        tier=job.tier,
        regions=frozenset(job.regions),
        environment=job.environment,
        runs_code=job.script_id is not None,
        ray=job.recipe != "script" and job.gpus_max > 1,
        avoid=frozenset(job.avoid_nodes),
        limits={name: before_premium(limit, job.premium_bps) for name, limit in job.limits.items()},
        egress=bool(job.egress),
        secrets_trust=secrets.worst_site_now(job.org, job.secrets)
        if job.secrets
        else Trust.COMMUNITY,
        python=job.packages.python if job.packages else "",
        torch=job.packages.torch if job.packages else "",
        registry=job.image.registry if job.image else "",
    )


def _free(nodes: Sequence[UUID]) -> QuerySet[Gpu]:
    """What nobody has or is held of these nodes, in the order of each machine."""
    let = Q(leases__released_at__isnull=True, leases__isnull=False)
    return (
        Gpu.objects.filter(node__in=nodes, present=True, held=None).exclude(let).order_by("index")
    )
