"""What suppliers bring: sites, nodes, their GPUs and benchmarks, and the offers on them."""

from typing import Self

from django.db import models
from django.db.models import F, Q

from marketplace.core.hardware import REGIONS, Network, Trust
from marketplace.core.ids import uuid7
from marketplace.core.states import NODE, OFFER
from marketplace.models import Org, Stateful


class SiteQuerySet(models.QuerySet["Site"]):
    def of(self, org: Org) -> Self:
        return self.filter(org=org)


class Site(models.Model):
    """One network and one energy meter: a rack, a lab, a flat."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    org = models.ForeignKey(Org, models.PROTECT, related_name="sites")
    name = models.CharField(max_length=60)
    region = models.CharField(max_length=20, choices=[(name, name) for name in REGIONS])
    trust = models.SmallIntegerField(
        choices=[(level.value, level.name.lower()) for level in Trust],
        default=Trust.COMMUNITY,
        help_text="Raised by the market's operator, never by the supplier",
    )
    network = models.SmallIntegerField(
        choices=[(kind.value, kind.name.lower()) for kind in Network], default=Network.ETHERNET
    )
    uplink_mbps = models.FloatField(default=100.0, help_text="Mbit/s to the internet, up")
    tariff_micros_per_kwh = models.BigIntegerField(default=250_000)
    carbon_g_per_kwh = models.FloatField(default=300.0, help_text="Grid intensity, gCO2/kWh")
    pue = models.FloatField(default=1.0, help_text="Power usage effectiveness; 1.0 at home")
    created_at = models.DateTimeField()

    objects = SiteQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["org", "name"], name="site_name_once"),
            models.CheckConstraint(
                condition=Q(pue__gte=1, pue__lte=5, carbon_g_per_kwh__gte=0, uplink_mbps__gt=0)
                & Q(tariff_micros_per_kwh__gte=0),
                name="site_is_physical",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class EnrolmentToken(models.Model):
    """Lets `nodes_left` new nodes into one site until `expires_at`. Only its digest is kept.

    One with a `node` gives that node a new key instead: its disk died, or its key may be known.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    site = models.ForeignKey(Site, models.CASCADE, related_name="enrolment_tokens")
    node = models.ForeignKey("Node", models.CASCADE, null=True, related_name="rekey_tokens")
    digest = models.BinaryField(max_length=32, unique=True)
    nodes_left = models.PositiveIntegerField()
    expires_at = models.DateTimeField()
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField()


class NodeQuerySet(models.QuerySet["Node"]):
    def of(self, org: Org) -> Self:
        return self.filter(site__org=org)

    def lettable(self) -> Self:
        """Ready, heard of lately enough, and not wanted by its owner."""
        return self.filter(state="ready", lost_at=None, owner_busy=False, boot_id__gt="")


class Node(Stateful):
    """A machine with one agent. `state` is its eligibility; lost and busy are facts beside it."""

    MACHINE = NODE

    site = models.ForeignKey(Site, models.PROTECT, related_name="nodes")
    name = models.CharField(max_length=60)
    public_key = models.BinaryField(max_length=32, unique=True)
    fingerprint = models.CharField(max_length=40)
    confirmed_at = models.DateTimeField(null=True, help_text="The owner compared the fingerprint")
    boot_id = models.CharField(max_length=64, blank=True)
    session = models.UUIDField(null=True, help_text="The one socket that speaks for it now")
    swaps = models.JSONField(default=list, help_text="Times of recent socket takeovers, epoch s")
    last_seen_at = models.DateTimeField(null=True)
    lost_at = models.DateTimeField(null=True)
    owner_busy = models.BooleanField(default=False)
    owner_why = models.CharField(max_length=200, blank=True)
    # The inventory as the agent last sent it; what the market decides by has a column.
    inventory = models.JSONField(default=dict)
    agent_version = models.CharField(max_length=40, blank=True)
    sandbox = models.CharField(
        max_length=60, blank=True, help_text="Rung the agent's own attack found"
    )
    environment = models.CharField(max_length=64, blank=True, help_text="Lock of its training env")
    cpu_model = models.CharField(max_length=200, blank=True)
    cpu_cores = models.PositiveIntegerField(default=0)
    memory_bytes = models.BigIntegerField(default=0)
    disk_bytes = models.BigIntegerField(default=0)
    nvlink = models.BooleanField(default=False)
    lan_address = models.CharField(
        max_length=15, blank=True, help_text="For gangs within the site; empty: takes no part"
    )
    python = models.CharField(max_length=10, blank=True, help_text="Minor version, as 3.11")
    torch = models.CharField(max_length=40, blank=True, help_text="Public version, if it has it")
    builds = models.BooleanField(default=False, help_text="Jobs' own environments are built")
    registries = models.JSONField(default=list, help_text="From where it fetches jobs' images")
    egress = models.BooleanField(default=False, help_text="Jobs may reach names that they list")
    bandwidth_mbps = models.FloatField(default=100.0, help_text="To our storage, as measured")

    objects = NodeQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["site", "name"], condition=~Q(state="retired"), name="node_name_once"
            )
        ]
        # For the watch: nodes not heard of for a while.
        indexes = [
            models.Index(fields=["last_seen_at"], condition=Q(lost_at=None), name="node_last_seen")
        ]

    def __str__(self) -> str:
        return self.name


class Gpu(models.Model):
    """One device to let, by the UUID that its driver gives it: nobody else may list it."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    node = models.ForeignKey(Node, models.PROTECT, related_name="gpus")
    uuid = models.CharField(max_length=80, unique=True)
    index = models.PositiveSmallIntegerField()
    name = models.CharField(max_length=200)
    gpu_class = models.CharField(max_length=50)
    memory_bytes = models.BigIntegerField()
    watts = models.PositiveIntegerField()
    present = models.BooleanField(default=True, help_text="In the node's last inventory")

    class Meta:
        indexes = [models.Index(fields=["gpu_class"], name="gpu_class")]

    def __str__(self) -> str:
        return f"{self.name} ({self.uuid})"


class Benchmark(models.Model):
    """One proof of hardware: asked for, committed to, opened, and judged."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    node = models.ForeignKey(Node, models.PROTECT, related_name="benchmarks")
    asked_at = models.DateTimeField()
    task = models.JSONField(help_text="The ProofTask")
    committed_at = models.DateTimeField(null=True)
    roots = models.JSONField(default=list)
    cells = models.JSONField(default=list, help_text="The rows to open, drawn after the commit")
    finished_at = models.DateTimeField(null=True)
    passed = models.BooleanField(null=True)
    verdict = models.CharField(max_length=200, blank=True)
    tflops = models.FloatField(default=0.0)
    memory_gb_s = models.FloatField(default=0.0)
    disk_mb_s = models.FloatField(default=0.0)
    details = models.JSONField(default=dict)

    class Meta:
        indexes = [models.Index(fields=["node", "-asked_at"], name="node_benchmarks")]


class OfferQuerySet(models.QuerySet["Offer"]):
    def of(self, org: Org) -> Self:
        return self.filter(node__site__org=org)

    def open(self) -> Self:
        return self.filter(state="open")


class Offer(Stateful):
    """A node's idle GPUs at a price. A new price is a new offer."""

    MACHINE = OFFER

    class Audience(models.TextChoices):
        ANYONE = "anyone", "Anyone"
        OWN_ORG = "own_org", "My own org only"

    node = models.ForeignKey(Node, models.PROTECT, related_name="offers")
    ask_micros = models.BigIntegerField(help_text="What the supplier nets per GPU-hour")
    notice_s = models.PositiveIntegerField(help_text="From reclaiming to having the node back")
    audience = models.CharField(max_length=10, choices=Audience, default=Audience.ANYONE)
    scripts = models.BooleanField(default=True, help_text="Whether buyers' own code may run")
    windows = models.JSONField(
        default=list, help_text="[[start, end], …] minutes of the week, UTC; empty is always"
    )

    objects = OfferQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["node"], condition=~Q(state="closed"), name="one_offer_per_node"
            ),
            models.CheckConstraint(
                condition=Q(ask_micros__gt=0, ask_micros__lte=1_000_000_000, notice_s__lte=86_400),
                name="offer_is_sane",
            ),
        ]


class Pulse(models.Model):
    """One process that listens to nodes, beating each second.

    Silence of a node counts only while the market itself listened: `gapless_since` is when the
    process last came (back) to life. Nothing else tells a dead node from a deaf market.
    """

    process = models.CharField(primary_key=True, max_length=80)
    at = models.DateTimeField()
    gapless_since = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(gapless_since__lte=F("at")), name="pulse_ordered")
        ]
