"""What suppliers do with their sites and nodes; enrolment, verification, offers have their own.

Eligibility moves only here, in `enrolment` and in `verification`; what must then happen to the
jobs on a node is the engine's (`scheduler.watch.reclaim`), called by the views beside these.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction

from marketplace.core.errors import Conflict, Invalid
from marketplace.core.hardware import REGIONS, Network
from marketplace.models import Org, advance
from suppliers.models import Node, Offer, Site

_LONGEST_NAME: Final = 60


@dataclass(frozen=True)
class SiteFacts:
    """What a supplier says of a site: money in micros, speed in Mbit/s, carbon in g CO2/kWh."""

    name: str
    region: str
    network: Network = Network.ETHERNET
    uplink_mbps: float = 100.0
    tariff_micros_per_kwh: int = 250_000
    carbon_g_per_kwh: float = 300.0
    pue: float = 1.0


def server_name() -> str:
    """The agents' host as it stands in `challenge` and under each node's signature."""
    return urlsplit(settings.AGENTS_URL).netloc


def create_site(org: Org, facts: SiteFacts, *, now: datetime) -> Site:
    """A site of `org`. Its trust is the operator's to raise. Raises Invalid, Conflict."""
    return _save_site(Site(org=org, created_at=now), facts)


def edit_site(site: Site, facts: SiteFacts) -> Site:
    """Changes what its supplier says of a site. Raises Invalid, Conflict."""
    return _save_site(site, facts)


@transaction.atomic
def drain(node: Node, *, by: User, now: datetime) -> Node:
    """Lets what runs on it end, and nothing new start. Raises InvalidTransition, Conflict."""
    return node.advance("drain", now=now, reason="its owner drains it", by=by.get_username())


@transaction.atomic
def undrain(node: Node, *, by: User, now: datetime) -> Node:
    """Lets it be rented again. Raises InvalidTransition, Conflict."""
    return node.advance("undrain", now=now, reason="its owner offers it", by=by.get_username())


@transaction.atomic
def retire(node: Node, *, reason: str, by: User, now: datetime) -> Node:
    """The end of a node and of its key: no socket, no bearer of it is taken any more.

    Its open offer closes, and its GPUs may be listed by another node from now on.
    """
    offers = Offer.objects.filter(node=node).exclude(state="closed").order_by("id")
    name = by.get_username()
    advance(list(offers), "close", now=now, reason="its node is retired", by=name)
    return node.advance(
        "retire", now=now, reason=reason or "its owner retires it", by=name, session=None
    )


@transaction.atomic
def quarantine(
    node: Node, *, reason: str, now: datetime, confirmed_at: datetime | None = None
) -> bool:
    """Keeps a node that can't be trusted out of the market; says whether that was news.

    The way back is the way in: its owner confirms the fingerprint, and a fresh proof passes. With
    the `confirmed_at` that it has, only the proof is wanted.
    """
    if node.state in ("quarantined", "retired"):
        return False
    return bool(advance([node], "quarantine", now=now, reason=reason, confirmed_at=confirmed_at))


def note_owner(node: Node, *, busy: bool, why: str) -> None:
    """Keeps whether the owner needs the machine now. Nothing new is placed while they do."""
    node.owner_busy, node.owner_why = busy, why[:200] if busy else ""
    node.save(update_fields=["owner_busy", "owner_why"])


def checked_name(text: str, *, of: str) -> str:
    """A name of 1 to 60 printable characters, without spaces around it; raises Invalid."""
    name = " ".join(text.split())
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise Invalid(f"a {of} needs a name of 1 to {_LONGEST_NAME} characters", field="name")
    return name


def _save_site(site: Site, facts: SiteFacts) -> Site:
    site.name = checked_name(facts.name, of="site")
    if facts.region not in REGIONS:
        raise Invalid(
            f"there is no region {facts.region!r}; there are {', '.join(REGIONS)}", field="region"
        )
    site.region, site.network = facts.region, facts.network
    site.uplink_mbps = _within(facts.uplink_mbps, "uplink_mbps", 0.1, 1_000_000)
    site.tariff_micros_per_kwh = round(
        _within(facts.tariff_micros_per_kwh, "tariff_micros_per_kwh", 0, 100_000_000)
    )
    site.carbon_g_per_kwh = _within(facts.carbon_g_per_kwh, "carbon_g_per_kwh", 0, 5_000)
    site.pue = _within(facts.pue, "pue", 1, 5)
    if Site.objects.of(site.org).filter(name=site.name).exclude(pk=site.pk).exists():
        raise Conflict(f"you have a site named {site.name!r} already; choose another name")
    site.save()
    return site


def _within(value: float, field: str, low: float, high: float) -> float:
    # NaN compares false with everything, so it ends here too.
    if not low <= value <= high:
        raise Invalid(f"{field} must be from {low:g} to {high:g}, not {value!r}", field=field)
    return value
