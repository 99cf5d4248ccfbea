"""The book of a round: all queued jobs and all open offers with something free, as the engine
reads them, with the rows that its positions stand for.

Rows are numbered by a secret of the round's own, and stand in the order of these numbers: neither
a number nor a position says anything in another round, nor how long somebody has waited.
"""

import secrets
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

import numpy as np
from django.conf import settings

from buyers.models import Job
from marketplace.core import checkpoints
from marketplace.core.fit import Stands, Wants, suits
from marketplace.core.hardware import REGIONS, Level, is_cpu, region_mask
from marketplace.core.money import MICRO
from scheduler import book as market
from scheduler.book import Standing
from scheduler.matching.book import Book, ClassRow, Order, SiteRow, Supply, build
from scheduler.numbering import SECRET_BYTES, numbers

Row = TypeVar("Row")


@dataclass(frozen=True)
class Snapshot:
    """The book of one round, and the rows that its positions stand for."""

    book: Book
    jobs: Sequence[Job]
    rows: Sequence[Standing]
    wanted: Sequence[Wants]
    standing: Sequence[Standing]
    """All open offers: the rows are those with something free."""
    secret: bytes
    """What its numbers come from, by `scheduler.numbering`: a job's by its id, a row's by its
    node's."""


def read(now: datetime) -> Snapshot:
    """All queued jobs and all open offers with something free, as a book."""
    queued = Job.objects.queued().select_related("org", "packages", "image")
    found = list(queued.order_by("queued_at", "pk"))
    standing = market.standing(now) if found else []
    secret = secrets.token_bytes(SECRET_BYTES)
    job_ids, jobs = _numbered(secret, found, lambda job: str(job.pk))
    free = [row for row in standing if row.free]
    row_ids, rows = _numbered(secret, free, lambda row: row.stands.node)
    wanted = [market.wants(job) for job in jobs]
    products = _products(wanted, rows)
    orders = zip(job_ids, jobs, wanted, strict=True)
    return Snapshot(
        build(
            [_order(number, job, wants, products, now) for number, job, wants in orders],
            [
                _supply(number, row, products, now)
                for number, row in zip(row_ids, rows, strict=True)
            ],
            _sites(rows),
            _classes(rows, products),
            seed=_seed(now),
        ),
        jobs,
        rows,
        wanted,
        standing,
        secret,
    )


def _numbered(
    secret: bytes, rows: Sequence[Row], pk: Callable[[Row], str]
) -> tuple[list[int], list[Row]]:
    """The rows' numbers in this round, and the rows, both in the order of the numbers."""
    found = numbers(secret, map(pk, rows))
    order = np.argsort(found)
    return found[order].tolist(), [rows[at] for at in order.tolist()]


@dataclass(frozen=True)
class _Products:
    """The book's classes: what each row is sold as, and one row to judge each by."""

    of_row: Mapping[str, str]
    sample: Mapping[str, Stands]


def _products(wanted: Sequence[Wants], rows: Sequence[Standing]) -> _Products:
    """Rows that differ in something that only some jobs mind are different products.

    A feature that no waiting job minds makes no difference, so that the books stay coarse, and
    the nodes of a site that differ in nothing else can be of one gang.
    """
    memories = sorted({n for want in wanted for n in (want.memory_bytes, want.memory_cpu_bytes)})
    disks = sorted({want.disk_bytes for want in wanted})
    avoided = frozenset[str]().union(*(want.avoid for want in wanted))
    # The ranks of a gang speak with each other, so they run one and the same environment.
    minds_environment = any(
        want.environment or (want.gpus_max > 1 and want.level > Level.NODE) for want in wanted
    )
    minds_code = any(want.runs_code for want in wanted)
    minds_packages = any(want.python for want in wanted)
    registries = frozenset(want.registry for want in wanted) - {""}
    minds_egress = any(want.egress for want in wanted)
    minds_ray = any(want.ray for want in wanted)
    of_row: dict[str, str] = {}
    sample: dict[str, Stands] = {}
    for row in rows:
        stands = row.stands
        features = [
            f"memory-{bisect_right(memories, stands.memory_bytes)}",
            f"disk-{bisect_right(disks, stands.disk_bytes)}",
            stands.environment[:12] if minds_environment else "",
            "recipes" if minds_code and not stands.scripts else "",
            f"py{stands.python}-{stands.torch}-{stands.builds:d}" if minds_packages else "",
            "+".join(sorted(registries & stands.registries)),
            "closed" if minds_egress and not stands.egress else "",
            "no-ray" if minds_ray and not stands.ray else "",
            f"org-{stands.org}" if stands.own_org_only else "",
            f"node-{stands.node}" if stands.node in avoided else "",
        ]
        name = "|".join([stands.gpu_class, *filter(None, features)])
        of_row[stands.node] = name
        # What the engine judges by itself is left open.
        sample.setdefault(name, replace(stands, trust=0, tier=0))
    return _Products(of_row, sample)


def _order(number: int, job: Job, wanted: Wants, products: _Products, now: datetime) -> Order:
    limits = {
        name: wanted.limits[stands.gpu_class] / MICRO
        for name, stands in products.sample.items()
        if suits(_anywhere(wanted), stands)
    }
    return Order(
        id=number,
        limits=limits,
        gpus_min=job.gpus_min,
        gpus_max=job.gpus_max,
        level=job.level,
        kappa=job.kappa,
        hours_lost=_hours_lost(job),
        regions=region_mask(job.regions),
        trust=min(job.trust, wanted.secrets_trust),
        tier=job.tier,
        age_h=max(0.0, (now - job.queued_at).total_seconds() / 3600),
    )


def _anywhere(wanted: Wants) -> Wants:
    """The same without what the engine judges by itself: region, and how many GPUs a node has."""
    return replace(wanted, regions=frozenset(), gpus=1)


def _hours_lost(job: Job) -> float:
    """What an interruption costs, on a machine of which nothing is known yet."""
    policy = settings.POLICY
    save = checkpoints.save_seconds(job.save_s, policy.save_default_s)
    every = checkpoints.interval(save, failures_per_hour=3600 / policy.mtbf_s)
    return checkpoints.hours_lost(save, every)


def _supply(number: int, row: Standing, products: _Products, now: datetime) -> Supply:
    return Supply(
        id=number,
        gpu_class=products.of_row[row.stands.node],
        site=row.place,
        gpus=min(len(row.free), 16),
        ask=row.stands.ask / MICRO,
        tier=row.stands.tier,
        long=row.closes_at - now >= market.LONG_WINDOW,
    )


def _sites(rows: Sequence[Standing]) -> list[SiteRow]:
    sites = {row.place: row.node.site for row in rows}
    return [
        SiteRow(name, REGIONS.index(site.region), site.trust, site.network, site.uplink_mbps)
        for name, site in sites.items()
    ]


def _classes(rows: Sequence[Standing], products: _Products) -> list[ClassRow]:
    linked: dict[str, bool] = {}
    for row in rows:
        name = products.of_row[row.stands.node]
        # One processor is one device: nothing in it has to cross a slower link.
        fast = row.node.nvlink or is_cpu(row.stands.gpu_class)
        linked[name] = linked.get(name, True) and fast
    return [ClassRow(name, nvlink) for name, nvlink in linked.items()]


def _seed(now: datetime) -> int:
    """Published with the round; nobody can choose it, and anybody can recompute it."""
    return int(now.timestamp() * 1000)
