"""A market's rows from a made-up book: so many queued jobs and open offers in a real database.

Django has to be set up before this is imported.
"""

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db import connection, transaction

from buyers.models import Job
from marketplace import accounts
from marketplace.core.hardware import REGIONS, Tier
from marketplace.core.ids import uuid7
from marketplace.core.money import BASIS_POINTS, MICRO
from marketplace.ledger import services as ledger
from marketplace.models import Org
from scheduler.matching.book import Book
from scheduler.matching.synthetic import CLASSES
from suppliers.models import Gpu, Node, Offer, Site

_GIB = 2**30
_ORGS = 50
_GENEROUS = 3
"""Limits are so many times those of the made-up book, so that nearly every job is let."""


@transaction.atomic
def fill(book: Book, *, take_bps: int, now: datetime) -> None:
    """Suppliers with the book's nodes, all of it free, and buyers with money and its jobs."""
    suppliers = [_org(f"Supplier {number}", now) for number in range(_ORGS)]
    buyers = [_org(f"Buyer {number}", now) for number in range(_ORGS)]
    wallets = [ledger.wallet(buyer.pk) for buyer in buyers]
    moves = [ledger.Move("top_up", ledger.CASH, to, 10**6 * MICRO, uuid7()) for to in wallets]
    ledger.post(moves, now=now)
    _supply(book, suppliers, take_bps, now)
    _jobs(book, buyers, now)


def settle() -> None:
    """What autovacuum would have done by now: statistics, and no dead rows."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def _org(name: str, now: datetime) -> Org:
    owner = User.objects.create(username=name, email=f"{name}@example.org")
    return accounts.create_org(name, owner=owner, now=now)


def _supply(book: Book, suppliers: Sequence[Org], take_bps: int, now: datetime) -> None:
    sites = [
        Site(
            org=suppliers[number % _ORGS], name=f"Site {number}", region=REGIONS[region],
            trust=trust, network=net, uplink_mbps=up, created_at=now,
        )
        for number, (region, trust, net, up) in enumerate(
            zip(
                book.site_region.tolist(), book.site_trust.tolist(), book.site_net.tolist(),
                book.site_up_mbps.tolist(), strict=True,
            )
        )
    ]  # fmt: skip
    Site.objects.bulk_create(sites, 2000)
    many = set(_repeated(book.node_site.tolist()))
    nodes, gpus, offers = [], [], []
    for number in range(book.nodes):
        site, kind = int(book.node_site[number]), CLASSES[book.node_class[number]]
        node = _node(number, sites[site], f"10.0.0.{number % 250}" if site in many else "", now)
        node.nvlink = bool(book.class_nvlink[book.node_class[number]])
        nodes.append(node)
        gpus += [
            Gpu(node=node, uuid=f"GPU-{number}-{at}", index=at, name=kind, gpu_class=kind,
                memory_bytes=80 * _GIB, watts=700)
            for at in range(book.node_gpus[number])
        ]  # fmt: skip
        net = round(book.node_ask[number] * MICRO) * (BASIS_POINTS - take_bps) // BASIS_POINTS
        offers.append(
            Offer(node=node, ask_micros=net, notice_s=60, state="open", state_since=now)
        )  # fmt: skip
    Node.objects.bulk_create(nodes, 2000)
    Gpu.objects.bulk_create(gpus, 2000)
    Offer.objects.bulk_create(offers, 2000)


def _node(number: int, site: Site, lan: str, now: datetime) -> Node:
    packages = {"ray": "2.9", **{f"package-{at}": "1.0" for at in range(40)}}
    return Node(
        site=site, name=f"node-{number}", state="ready", state_since=now,
        public_key=secrets.token_bytes(32), fingerprint="f" * 40, boot_id="boot",
        session=uuid7(), last_seen_at=now + timedelta(days=1), confirmed_at=now,
        environment="e" * 64, memory_bytes=512 * _GIB, disk_bytes=1000 * _GIB, cpu_cores=64,
        lan_address=lan, inventory={"environment": {"packages": packages}},
    )  # fmt: skip


def _jobs(book: Book, buyers: Sequence[Org], now: datetime) -> None:
    owners = {org.pk: org.members.get() for org in buyers}
    limits = (book.job_limit * _GENEROUS * MICRO).round().astype(int).tolist()
    rows: list[Job] = []
    for number in range(book.jobs):
        org = buyers[number % _ORGS]
        regions = _named(int(book.job_regions[number]))
        asked: dict[str, Any] = {
            "gpus_min": int(book.job_gpus_min[number]), "gpus_max": int(book.job_gpus_max[number]),
            "level": int(book.job_level[number]), "trust": int(book.job_trust[number]),
            "kappa": float(book.job_kappa[number]), "tier": Tier.UNPROVEN.value,
        }  # fmt: skip
        bid = {kind: limit for kind, limit in zip(CLASSES, limits[number], strict=True) if limit}
        waited = timedelta(hours=float(book.job_age_h[number]))
        rows.append(
            Job(
                org=org, name=f"job {number}", created_by=owners[org.pk], created_at=now,
                recipe="script", parameters={"entry": "main.py", "args": ["--steps", "100"]},
                order="bid", memory_bytes=10 * _GIB, disk_bytes=10 * _GIB, limits=bid,
                budget_micros=1000 * MICRO, queued_at=now - waited, state="queued",
                state_since=now, regions=regions, **asked,
            )
        )  # fmt: skip
    Job.objects.bulk_create(rows, 2000)
    ledger.open([ledger.escrow(job.pk) for job in rows])


def _named(mask: int) -> list[str]:
    """Regions by name; all of them is anywhere."""
    names = [name for number, name in enumerate(REGIONS) if mask >> number & 1]
    return [] if len(names) == len(REGIONS) else names


def _repeated(values: Sequence[int]) -> list[int]:
    seen: set[int] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
