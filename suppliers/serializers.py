"""The shapes of the REST API of supply. Shape only: what a value means, the services say."""

from decimal import Decimal
from typing import Any

from rest_framework import serializers

from marketplace.core.hardware import REGIONS, Network, Trust
from marketplace.core.money import format_amount
from suppliers import board
from suppliers.models import Offer, Site

_NETWORKS = [kind.name.lower() for kind in Network]


class SiteIn(serializers.Serializer[Any]):
    """One network and one energy meter."""

    name = serializers.CharField(max_length=60)
    region = serializers.ChoiceField(choices=REGIONS)
    network = serializers.ChoiceField(choices=_NETWORKS, default="ethernet")
    uplink_mbps = serializers.FloatField(default=100.0)
    tariff_per_kwh = serializers.DecimalField(
        max_digits=9, decimal_places=6, min_value=Decimal(0), default=Decimal("0.25")
    )
    carbon_g_per_kwh = serializers.FloatField(default=300.0)
    pue = serializers.FloatField(default=1.0)


class SiteOut(serializers.Serializer[Any]):
    """A site; `trust` from 0 contracted to 3 community is the operator's word."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    region = serializers.CharField()
    network = serializers.SerializerMethodField()
    trust = serializers.SerializerMethodField()
    uplink_mbps = serializers.FloatField()
    tariff_per_kwh = serializers.SerializerMethodField()
    carbon_g_per_kwh = serializers.FloatField()
    pue = serializers.FloatField()

    def get_network(self, site: Site) -> str:
        return Network(site.network).name.lower()

    def get_trust(self, site: Site) -> str:
        return Trust(site.trust).name.lower()

    def get_tariff_per_kwh(self, site: Site) -> str:
        return format_amount(site.tariff_micros_per_kwh)


class TokenIn(serializers.Serializer[Any]):
    """For how many machines, and for how long (empty: a quarter of an hour)."""

    nodes = serializers.IntegerField(default=1)
    seconds = serializers.IntegerField(required=False, min_value=1)


class TokenOut(serializers.Serializer[Any]):
    """The secret is shown in this answer and never again."""

    id = serializers.UUIDField()
    secret = serializers.CharField()
    nodes_left = serializers.IntegerField()
    expires_at = serializers.DateTimeField()


class GpuOut(serializers.Serializer[Any]):
    uuid = serializers.CharField()
    name = serializers.CharField()
    gpu_class = serializers.CharField()
    memory_bytes = serializers.IntegerField()
    watts = serializers.IntegerField()


class OfferOut(serializers.Serializer[Any]):
    """`ask_micros` is what the supplier nets; `floor_micros` what the power of it costs."""

    id = serializers.UUIDField()
    node = serializers.UUIDField(source="node_id")
    state = serializers.CharField()
    ask_micros = serializers.IntegerField()
    notice_s = serializers.IntegerField()
    audience = serializers.CharField()
    scripts = serializers.BooleanField()
    windows = serializers.ListField(child=serializers.ListField(child=serializers.IntegerField()))


class OfferMade(OfferOut):
    """An offer just made; `warning` says if it doesn't pay for its power."""

    floor_micros = serializers.IntegerField()
    warning = serializers.CharField()


class OfferToldOut(serializers.Serializer[Any]):
    """Why an idle offer was not let (`why`: quiet, unwanted, small, dear or long), in micros that the
    supplier nets: it would have been let at `let_at_micros`; or, null, at no ask that was tried, down
    to `lowest_tried_micros`; both null: none was tried."""

    why = serializers.CharField()
    words = serializers.CharField()
    let_at_micros = serializers.IntegerField(allow_null=True)
    lowest_tried_micros = serializers.IntegerField(allow_null=True)
    at = serializers.DateTimeField(help_text="When that round was")


class ProofOut(serializers.Serializer[Any]):
    passed = serializers.BooleanField(allow_null=True)
    verdict = serializers.CharField()
    tflops = serializers.FloatField()
    memory_gb_s = serializers.FloatField()
    disk_mb_s = serializers.FloatField()
    finished_at = serializers.DateTimeField()


class NodeOut(serializers.Serializer[Any]):
    """A machine as its supplier sees it; `words` is its state in a sentence."""

    id = serializers.UUIDField(source="node.id")
    name = serializers.CharField(source="node.name")
    site = serializers.UUIDField(source="node.site_id")
    state = serializers.CharField(source="node.state")
    words = serializers.CharField()
    connected = serializers.SerializerMethodField()
    confirmed_at = serializers.DateTimeField(source="node.confirmed_at", allow_null=True)
    last_seen_at = serializers.DateTimeField(source="node.last_seen_at", allow_null=True)
    sandbox = serializers.CharField(source="node.sandbox")
    environment = serializers.CharField(source="node.environment")
    cpu_model = serializers.CharField(source="node.cpu_model")
    cpu_cores = serializers.IntegerField(source="node.cpu_cores")
    memory_bytes = serializers.IntegerField(source="node.memory_bytes")
    gpus = GpuOut(many=True)
    proof = ProofOut(source="benchmark", allow_null=True)
    offer = OfferOut(allow_null=True)
    told = OfferToldOut(allow_null=True, help_text="While it idles, once a round has looked at it")
    running = serializers.IntegerField()
    held = serializers.IntegerField(help_text="GPUs that are free and held for a job that waits")
    earned_today_micros = serializers.IntegerField(source="earned_today")
    earned_micros = serializers.IntegerField(source="earned")

    def get_connected(self, line: board.Line) -> bool:
        return line.node.session is not None and line.node.lost_at is None


class EarnedOut(serializers.Serializer[Any]):
    """What one lease has paid for its part of a node, less our take, the credits that its supplier gave
    back taken off; prices are per GPU-hour."""

    gpu_class = serializers.CharField()
    gpus = serializers.IntegerField()
    service = serializers.CharField()
    began_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)
    nets_micros = serializers.IntegerField(source="nets")
    premium_nets_micros = serializers.IntegerField(
        source="premium_nets", help_text="Of that, for protection"
    )
    earned_micros = serializers.IntegerField(source="earned")
    premium_earned_micros = serializers.IntegerField(
        source="premium_earned", help_text="Of that, for protection, before credits"
    )
    words = serializers.CharField(help_text="How it stands, or why it ended")


class FingerprintIn(serializers.Serializer[Any]):
    """As the machine's own screen shows it."""

    fingerprint = serializers.CharField(max_length=60)


class RetireIn(serializers.Serializer[Any]):
    """`at_once` ends even what runs: for a key in other hands."""

    at_once = serializers.BooleanField(default=False)


class OfferIn(serializers.Serializer[Any]):
    """`ask` as decimal text; windows in minutes since Monday 00:00 UTC, none meaning always."""

    ask = serializers.CharField(max_length=20)
    notice_s = serializers.IntegerField(default=60)
    audience = serializers.ChoiceField(choices=Offer.Audience.choices, default="anyone")
    scripts = serializers.BooleanField(default=True)
    windows = serializers.ListField(
        child=serializers.ListField(child=serializers.IntegerField()), default=list, max_length=50
    )
