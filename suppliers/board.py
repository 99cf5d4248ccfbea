"""What a supplier sees of their nodes: state in words, what they run, what they earn.

A fixed number of queries for any number of nodes; pages and the REST API show the same.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Count, F, Prefetch, Sum, prefetch_related_objects

from marketplace import telemetry
from marketplace.core import windows
from marketplace.core.money import format_amount
from marketplace.models import StateChange
from scheduler import explaining, holds
from scheduler.explaining import OfferTold
from scheduler.models import Assignment, Credit, UsageSlice
from suppliers.models import Benchmark, Gpu, Node, Offer, Site


@dataclass(frozen=True)
class Line:
    """One node as its supplier sees it. Money in micros."""

    node: Node
    gpus: Sequence[Gpu]
    offer: Offer | None
    benchmark: Benchmark | None
    running: int
    earned_today: int
    earned: int
    samples: Sequence[dict[str, Any]]
    words: str
    """Its state, and why it idles, in a sentence."""
    held: int
    """GPUs that are free and held for a job that waits."""
    told: OfferTold | None
    """Of an idle one: why the last round that looked at its offer did not let it."""

    @property
    def devices(self) -> list[tuple[int, str, int]]:
        """What it lets, alike ones together: how many, of which class, memory of each."""
        alike = Counter((gpu.gpu_class, gpu.memory_bytes) for gpu in self.gpus)
        return [(count, name, memory) for (name, memory), count in alike.items()]

    @property
    def watts(self) -> float | None:
        """What its devices draw now, if it tells."""
        drawn = [sample["watts"] for sample in self.samples]
        return sum(drawn) if drawn and any(drawn) else None

    @property
    def utilisation(self) -> float | None:
        """How busy its devices are now, 0 to 100."""
        seen = [sample["utilisation"] for sample in self.samples]
        return sum(seen) / len(seen) if seen else None


@dataclass(frozen=True)
class SiteLines:
    """A site and its nodes."""

    site: Site
    lines: Sequence[Line]

    @property
    def earned_today(self) -> int:
        """Micros."""
        return sum(line.earned_today for line in self.lines)


def lines(nodes: Iterable[Node], *, now: datetime) -> list[Line]:
    """A line for each node, in the same order. Nodes need their `site`."""
    found = list(nodes)
    _prefetch(found)
    ids = [node.pk for node in found]
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    today, ever = _earned(ids, since=midnight), _earned(ids, since=None)
    running = _running(ids)
    reasons = _quarantine_reasons(found)
    samples = telemetry.samples(ids)
    held = holds.on_nodes(ids)
    told = _told(found, running | held, now)
    made = []
    for node in found:
        offer = next(iter(node.offers.all()), None)
        benchmark = next(iter(node.benchmarks.all()), None)
        made.append(
            Line(
                node=node,
                held=held.get(node.pk, 0),
                told=told.get(node.pk),
                gpus=list(node.gpus.all()),
                offer=offer,
                benchmark=benchmark,
                running=running.get(node.pk, 0),
                earned_today=today.get(node.pk, 0),
                earned=ever.get(node.pk, 0),
                samples=samples.get(node.pk, []),
                words=_words(
                    node,
                    offer,
                    running=running.get(node.pk, 0),
                    held=held.get(node.pk, 0),
                    proven=bool(benchmark and benchmark.passed),
                    quarantined_for=reasons.get(node.pk, ""),
                    now=now,
                ),
            )
        )
    return made


def line(node: Node, *, now: datetime) -> Line:
    """The same for one node."""
    return lines([node], now=now)[0]


def _prefetch(nodes: list[Node]) -> None:
    latest = Benchmark.objects.filter(finished_at__isnull=False)
    latest = latest.order_by("node", "-asked_at").distinct("node")
    prefetch_related_objects(
        nodes,
        Prefetch("gpus", Gpu.objects.filter(present=True).order_by("index")),
        Prefetch("offers", Offer.objects.exclude(state="closed")),
        Prefetch("benchmarks", latest),
    )


def _running(nodes: list[UUID]) -> dict[UUID, int]:
    """How many jobs each node has on it, where there are any."""
    shares = Assignment.objects.filter(node__in=nodes, settled_at=None, gone_at=None)
    return dict(shares.values_list("node").annotate(Count("pk")))


def _earned(nodes: list[UUID], *, since: datetime | None) -> dict[UUID, int]:
    """Micros that each node has netted: charges less the platform's share and credits."""
    slices = UsageSlice.objects.filter(assignment__node__in=nodes)
    credits = Credit.objects.filter(assignment__node__in=nodes)
    if since is not None:
        slices, credits = slices.filter(at__gte=since), credits.filter(at__gte=since)
    earned: dict[UUID, int] = dict(
        slices.values_list("assignment__node").annotate(
            earned=Sum(F("charge_micros") - F("fee_micros"))
        )
    )
    for node, given_back in credits.values_list("assignment__node").annotate(
        Sum("from_supplier_micros")
    ):
        earned[node] = earned.get(node, 0) - given_back
    return earned


def _told(nodes: Sequence[Node], busy: Mapping[UUID, int], now: datetime) -> dict[UUID, OfferTold]:
    """Idle node's id → what its offer was told."""
    idle = {
        offer: node.pk
        for node in nodes
        if node.state == "ready" and not busy.get(node.pk)
        for offer in node.offers.all()
    }
    told = explaining.of_offers(idle, now=now)
    return {node: told[offer.pk] for offer, node in idle.items() if offer.pk in told}


def _quarantine_reasons(nodes: Sequence[Node]) -> dict[UUID, str]:
    ids = [node.pk for node in nodes if node.state == "quarantined"]
    changes = (
        StateChange.objects.filter(subject__in=ids, event="quarantine")
        .order_by("subject", "-id")
        .distinct("subject")
    )
    return {change.subject: change.reason for change in changes}


def _words(
    node: Node,
    offer: Offer | None,
    *,
    running: int,
    held: int,
    proven: bool,
    quarantined_for: str,
    now: datetime,
) -> str:
    """Where the node stands and what its supplier can do about it."""
    jobs = "a job" if running == 1 else f"{running} jobs"
    if node.state == "retired":
        return "retired"
    if node.state == "quarantined":
        return f"in quarantine: {quarantined_for}"
    if node.last_seen_at is None:
        return "enrolled, never connected: start the agent with `python -m agent run`"
    if node.state == "pending" and node.confirmed_at is None:
        return "waiting for you to confirm its fingerprint"
    if node.state == "pending":
        return "proving its hardware" if not proven else "being verified"
    if node.lost_at is not None:
        return "lost: it fell silent, and its jobs went elsewhere"
    if node.session is None:
        return "not connected"
    if node.state == "draining":
        return f"draining: {jobs} leaving" if running else "drained: nothing runs, nothing starts"
    if node.owner_busy:
        return f"wanted by its owner: {node.owner_why or 'in use'}"
    gpus = "a GPU" if held == 1 else f"{held} GPUs"
    if running:
        return f"running {jobs}{f', {gpus} held for one that waits' if held else ''}"
    return f"held: {gpus} for a job that waits" if held else _why_idle(offer, now)


def _why_idle(offer: Offer | None, now: datetime) -> str:
    if offer is None:
        return "idle: not offered; set a price"
    if offer.state == "paused":
        return "idle: its offer is paused"
    if windows.closes_at(offer.windows, now) is None:
        return "idle: outside the hours of its offer"
    return f"idle: offered at {format_amount(offer.ask_micros)} a GPU-hour, no job has taken it"
