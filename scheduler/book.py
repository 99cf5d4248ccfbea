"""The order book, read from the rows: what stands open, who could have it, and for what.

What a job may not have for reasons of its own (memory, environment, who may run code, a node it
has failed on) is told to the pure engine through the GPU class: nodes that differ in such a way
are different products, and a product that a job can't use has a limit of 0.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import Count, Prefetch, Q, QuerySet

from buyers import secrets
from buyers.models import Job
from marketplace.core import windows
from marketplace.core.fit import Stands, Wants
from marketplace.core.hardware import Tier, Trust
from marketplace.core.money import gross_ask
from marketplace.core.reliability import HALF_LIFE_DAYS, Record, Reliability, judge
from marketplace.core.states import NODE_FAULT_ENDS, SUPPLIER_SIDE_ENDS
from suppliers.models import Gpu, Node, Offer

# An offer about to close is not worth moving to.
_LEAST_WINDOW: Final = timedelta(minutes=10)
LONG_WINDOW: Final = timedelta(hours=24)

# Each lease counts half as much for every half-life of its age; as `reliability.assess` weighs it.
_RECORDS: Final = """
    SELECT node_id,
        coalesce(sum(weight) FILTER (WHERE NOT broken), 0),
        coalesce(sum(weight) FILTER (WHERE broken), 0),
        sum(weight * accrued_ms / 3600000), count(*)
    FROM (
        SELECT a.node_id, a.accrued_ms, a.at_fault AND l.end_reason = ANY(%(faults)s) AS broken,
            power(0.5::float8,
                extract(epoch FROM %(now)s - a.gone_at)::float8 / %(half_life)s::float8) AS weight
        FROM scheduler_assignment a JOIN scheduler_lease l ON l.id = a.lease_id
        WHERE a.node_id = ANY(%(nodes)s::uuid[]) AND a.gone_at >= %(since)s
    ) AS outcomes GROUP BY node_id
"""


@dataclass(frozen=True)
class Standing:
    """One open offer with what is free of it, as rows and as the pure rules see it."""

    offer: Offer
    free: tuple[Gpu, ...]
    stands: Stands
    closes_at: datetime

    @property
    def node(self) -> Node:
        """The machine on offer."""
        return self.offer.node

    @property
    def place(self) -> str:
        """What it can be in a gang with: its site, or nobody but itself."""
        return str(self.node.site_id) if self.stands.gangs else f"node-{self.node.pk}"


def lettable(now: datetime) -> QuerySet[Node]:
    """Nodes that may be given work: ready, heard of within the TTL, not wanted by their owner."""
    heard = now - timedelta(seconds=settings.POLICY.lease_ttl_s)
    return Node.objects.lettable().filter(last_seen_at__gte=heard, session__isnull=False)


def free_gpus(node: Node, gpu_class: str) -> QuerySet[Gpu]:
    """The node's GPUs of a class that nobody has, in the order of the machine."""
    let = Q(leases__released_at__isnull=True, leases__isnull=False)
    return node.gpus.filter(present=True, gpu_class=gpu_class).exclude(let).order_by("index")


def standing(now: datetime, *, among: Collection[UUID] | None = None) -> list[Standing]:
    """All offers that stand open now, or those `among` these ids, let or not, in a stable order.
    Three queries."""
    offers = _offers(now)
    found = list(offers if among is None else offers.filter(pk__in=among))
    tiers = tiers_of([offer.node for offer in found], now=now)
    rows = [_standing(offer, tiers[offer.node_id], now) for offer in found]
    return [row for row in rows if row is not None]


def opening(now: datetime) -> list[tuple[datetime, Standing]]:
    """Offers out of their windows, as they will stand, and from when; the soonest first. Three
    queries, one where there is none."""
    later = {
        offer: at
        for offer in _offers(now).exclude(windows=[])
        if (at := windows.opens_at(offer.windows, now)) is not None
    }
    tiers = tiers_of([offer.node for offer in later], now=now) if later else {}
    rows = [(at, _standing(offer, tiers[offer.node_id], at)) for offer, at in later.items()]
    return sorted([(at, row) for at, row in rows if row is not None], key=lambda each: each[0])


def tiers_of(nodes: Sequence[Node], *, now: datetime) -> dict[object, Tier]:
    """Node id → service tier."""
    return {node_id: known.tier for node_id, known in reliability_of(nodes, now=now).items()}


def reliability_of(nodes: Sequence[Node], *, now: datetime) -> dict[object, Reliability]:
    """Node id → how far it can be relied on, from how its leases ended in the last half year."""
    mtbf_h = settings.POLICY.mtbf_s / 3600
    nothing = judge(Record(), mtbf_h=mtbf_h)
    found: dict[object, Reliability] = {node.pk: nothing for node in nodes}
    with connection.cursor() as cursor:
        cursor.execute(
            _RECORDS,
            {
                "now": now, "half_life": HALF_LIFE_DAYS * 86_400, "nodes": list(found),
                "since": now - timedelta(days=180),
                "faults": sorted(SUPPLIER_SIDE_ENDS | NODE_FAULT_ENDS),
            },
        )  # fmt: skip
        for node_id, kept, broken, hours, leases in cursor:
            found[node_id] = judge(Record(kept, broken, hours, leases), mtbf_h=mtbf_h)
    return found


def wants(job: Job) -> Wants:
    """A job as the pure rules see it."""
    return Wants(
        org=str(job.org_id),
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
        limits=job.limits,
        egress=bool(job.egress),
        secrets_trust=secrets.worst_site_now(job.org, job.secrets)
        if job.secrets
        else Trust.COMMUNITY,
        python=job.packages.python if job.packages else "",
        torch=job.packages.torch if job.packages else "",
        registry=job.image.registry if job.image else "",
    )


def _offers(now: datetime) -> QuerySet[Offer]:
    """Open offers on nodes that may be let, with their GPUs, whether they stand this minute or
    not."""
    fitted = (
        Gpu.objects.filter(present=True)
        .order_by("index")
        .annotate(let=Count("leases", filter=Q(leases__released_at__isnull=True)))
    )
    return (
        Offer.objects.open()
        .filter(node__in=lettable(now))
        .select_related("node__site__org")
        .prefetch_related(Prefetch("node__gpus", fitted))
        .order_by("pk")
    )


def _standing(offer: Offer, tier: Tier, now: datetime) -> Standing | None:
    node, site = offer.node, offer.node.site
    closes_at = windows.closes_at(offer.windows, now)
    fitted = list(node.gpus.all())
    if closes_at is None or closes_at - now < _LEAST_WINDOW or not fitted:
        return None
    # One offer lets one class: a machine of several kinds of GPU lets its most numerous.
    gpu_class = Counter(gpu.gpu_class for gpu in fitted).most_common(1)[0][0]
    of_class = [gpu for gpu in fitted if gpu.gpu_class == gpu_class]
    free = tuple(gpu for gpu in of_class if not gpu.let)  # type: ignore[attr-defined]
    stands = Stands(
        node=str(node.pk),
        org=str(site.org_id),
        gpu_class=gpu_class,
        gpus=len(of_class),
        free=len(free),
        memory_bytes=min(gpu.memory_bytes for gpu in of_class),
        disk_bytes=node.disk_bytes,
        trust=site.trust,
        tier=tier,
        region=site.region,
        environment=node.environment,
        scripts=offer.scripts,
        gangs=bool(node.lan_address),
        ray="ray" in node.inventory.get("environment", {}).get("packages", {}),
        own_org_only=offer.audience == Offer.Audience.OWN_ORG,
        ask=gross_ask(offer.ask_micros, take_bps=settings.POLICY.take_bps),
        egress=node.egress,
        builds=node.builds,
        python=node.python,
        torch=node.torch,
        registries=frozenset(node.registries),
    )
    return Standing(offer, free, stands, closes_at)
