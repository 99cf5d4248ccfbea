"""The book of a round: all queued jobs and all open offers with something free, as the engine
reads them, with the rows that its positions stand for.

Rows are numbered by a secret of the round's own, and stand in the order of these numbers: neither
a number nor a position says anything in another round, nor how long somebody has waited.
"""

import secrets
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Final
from uuid import UUID

import numpy as np
from django.conf import settings
from django.db.models import BigIntegerField
from django.db.models.expressions import RawSQL

from buyers.models import Job
from marketplace import bulk
from marketplace.core import checkpoints
from marketplace.core.fit import Stands, Wants, suits
from marketplace.core.hardware import Level, is_cpu, region_mask
from marketplace.core.money import MICRO, before_premium
from marketplace.core.policy import Policy
from scheduler import book as market
from scheduler import lots
from scheduler.columns import Columns, firsts
from scheduler.lots import Lot
from scheduler.matching.arrays import Array, Bools, Ints
from scheduler.matching.book import NODE_GPUS, SCHEMA, Book, ClassRow, Order, assemble
from scheduler.models import Lease
from scheduler.numbering import SECRET_BYTES, numbers

_VERSION: Final = RawSQL("buyers_job.xmin::text::bigint", [], BigIntegerField())
"""The transaction that wrote a job's row last: another one, and the row may have changed."""


@dataclass(frozen=True)
class Snapshot:
    """The book of one round, and the rows that its positions stand for."""

    book: Book
    jobs: Sequence[Job]
    rows: Sequence[Lot]
    wanted: Sequence[Wants]
    standing: Sequence[Lot]
    """All open offers: the rows are those with something free, and what is held for one job."""
    versions: Mapping[UUID, int]
    """Of the jobs' rows, as they were read."""
    secret: bytes
    """What its numbers come from, by `scheduler.numbering`: a job's by its id, a row's by its
    node's, and by whom it is held for."""


def read(now: datetime) -> Snapshot:
    """All queued jobs and all open offers with something free, as a book."""
    jobs, versions = jobs_of(None)
    standing = Columns.of(lots.read(now=now)).standing(now) if jobs else Columns.of([])
    wanted = [market.wants(job) for job in jobs.values()]
    made_of = Read(list(jobs.values()), wanted, versions, standing.lots)
    return made(made_of, on_offer(standing), now=now)


def on_offer(standing: Columns) -> Columns:
    """Of what stands that with something free, and what is held for one job each. One query, if
    anything stands."""
    if not len(standing):
        return standing
    # Whether a hold is free as a whole is said by all of its nodes, so that is always asked.
    return standing.only(standing.rows["free"] > 0).with_more(lots.held(standing.lots))


def jobs_of(ids: Sequence[UUID] | None) -> tuple[dict[UUID, Job], dict[UUID, int]]:
    """Those of these jobs that are queued, or all that are, the longest waiting first; and the
    versions of their rows."""
    queued = Job.objects.queued().select_related("org", "packages", "image")
    if ids is not None:
        queued = queued.filter(pk__in=bulk.among(ids))
    found = list(queued.annotate(version=_VERSION).order_by("queued_at", "pk"))
    versions = {job.pk: int(getattr(job, "version")) for job in found}  # noqa: B009 (annotated)
    return {job.pk: job for job in found}, versions


@dataclass(frozen=True)
class Read:
    """Jobs that wait, with what they want and their rows' versions; and all open offers."""

    jobs: Sequence[Job]
    wanted: Sequence[Wants]
    versions: Mapping[UUID, int]
    standing: Sequence[Lot]


def made(read: Read, offered: Columns, *, now: datetime) -> Snapshot:
    """The book of these jobs and of these rows of offers."""
    secret = secrets.token_bytes(SECRET_BYTES)
    job_ids = numbers(secret, [str(job.id) for job in read.jobs])
    row_ids = numbers(secret, map(name_of, offered.lots))
    # Everything stands in the order of its numbers.
    by_job, by_row = np.argsort(job_ids), np.argsort(row_ids)
    jobs = [read.jobs[at] for at in by_job.tolist()]
    wanted = [read.wanted[at] for at in by_job.tolist()]
    offered = offered.ordered(by_row)
    products = _products(wanted, offered)
    suited = _Suited(products)
    book = assemble(
        [
            _order(number, job, want, suited, now)
            for number, job, want in zip(job_ids[by_job].tolist(), jobs, wanted, strict=True)
        ],
        _supply(row_ids[by_row], offered, products, now),
        _classes(offered, products),
        seed=_seed(now),
    )
    return Snapshot(book, jobs, offered.lots, wanted, read.standing, read.versions, secret)


def name_of(row: Lot) -> str:
    """A row's id: its node's, or one made of the node's and the job's that it is held for."""
    stands = row.stands
    if not stands.held_for:
        return stands.node
    return str(UUID(int=UUID(stands.node).int ^ UUID(stands.held_for).int))


@dataclass(frozen=True)
class _Products:
    """The book's classes by number: what each row is sold as, and one row to judge each by."""

    of_row: Array
    names: Sequence[str]
    sample: Sequence[Stands]


def _products(wanted: Sequence[Wants], offered: Columns) -> _Products:
    """Rows that differ in something that only some jobs mind are different products.

    A feature that no waiting job minds makes no difference, so that the books stay coarse, and
    the nodes of a site that differ in nothing else can be of one gang.
    """
    memories = sorted({n for want in wanted for n in (want.memory_bytes, want.memory_cpu_bytes)})
    disks = sorted({want.disk_bytes for want in wanted})
    minded = _Minded(wanted)
    # 1. All that is alike in a make is named once.
    makes, make_of = offered.makes
    number_of: dict[str, int] = {}
    numbers = []
    for stands in makes:
        name = f"{minded.features(stands)}|memory-{bisect_right(memories, stands.memory_bytes)}"
        numbers.append(number_of.setdefault(name, len(number_of)))
    # 2. With what differs within a make it makes products, numbered as they come.
    disk = np.searchsorted(disks, offered.rows["disk"], "right")
    alike = np.array(numbers, np.int64)[make_of], disk, minded.avoided(offered.lots)
    first, of_row = firsts(*alike)
    sample = [offered.lots[at].stands for at in first.tolist()]
    names = list(number_of)
    called = [
        f"{names[number]}|disk-{disk}{f'|node-{stands.node}' if avoided else ''}"
        for number, disk, avoided, stands in zip(
            *(column[first].tolist() for column in alike), sample, strict=True
        )
    ]
    # What the engine judges by itself is left open.
    judged = [replace(stands, trust=0, tier=0) for stands in sample]
    return _Products(of_row, called, judged)


class _Minded:
    """What of a machine, beside its memory and disk, some waiting job minds."""

    def __init__(self, wanted: Sequence[Wants]) -> None:
        self._avoided = frozenset[str]().union(*(want.avoid for want in wanted))
        # The ranks of a gang speak with each other, so they run one and the same environment.
        self._environment = any(
            want.environment or (want.gpus_max > 1 and want.level > Level.NODE) for want in wanted
        )
        self._code = any(want.runs_code for want in wanted)
        self._packages = any(want.python for want in wanted)
        self._registries = frozenset(want.registry for want in wanted) - {""}
        self._egress = any(want.egress for want in wanted)
        self._ray = any(want.ray for want in wanted)

    def features(self, stands: Stands) -> str:
        """The machine's class, and what else of its make is minded."""
        features = [
            stands.environment[:12] if self._environment else "",
            "recipes" if self._code and not stands.scripts else "",
            f"py{stands.python}-{stands.torch}-{stands.builds:d}" if self._packages else "",
            "+".join(sorted(self._registries & stands.registries)),
            "closed" if self._egress and not stands.egress else "",
            "no-ray" if self._ray and not stands.ray else "",
            f"org-{stands.org}" if stands.own_org_only else "",
            f"held-{stands.held_for}" if stands.held_for else "",
        ]
        return "|".join([stands.gpu_class, *filter(None, features)])

    def avoided(self, rows: Sequence[Lot]) -> Ints:
        """A number of its own for each row that some job avoids; 0 for all others."""
        found = np.zeros(len(rows), np.int64)
        if self._avoided:
            for at, row in enumerate(rows):
                found[at] = at + 1 if row.stands.node in self._avoided else 0
        return found


class _Suited:
    """Which products would do for a job, asked once for all jobs that want the same."""

    def __init__(self, products: _Products) -> None:
        self._of_class: dict[str, list[tuple[str, Stands]]] = {}
        for name, stands in zip(products.names, products.sample, strict=True):
            self._of_class.setdefault(stands.gpu_class, []).append((name, stands))
        self._known: dict[object, Sequence[tuple[str, str]]] = {}
        # To whom some product is all that it is to nobody else.
        self._held = frozenset(stands.held_for for stands in products.sample) - {""}
        self._own = frozenset(stands.org for stands in products.sample if stands.own_org_only)

    def limits(self, wanted: Wants) -> dict[str, float]:
        """Product's name → USD per GPU-hour."""
        alike = (
            wanted.alike,
            wanted.job if wanted.job in self._held else "",
            wanted.org if wanted.org in self._own else "",
        )
        found = self._known.get(alike)
        if found is None:
            anywhere = _anywhere(wanted)
            found = self._known[alike] = [
                (name, gpu_class)
                for gpu_class in wanted.limits
                for name, stands in self._of_class.get(gpu_class, ())
                if suits(anywhere, stands)
            ]
        return {name: wanted.limits[gpu_class] / MICRO for name, gpu_class in found}


def offered(
    wanted: Wants, stands: Columns, *, now: datetime
) -> tuple[Book, Sequence[str], dict[str, float]]:
    """These offers as a book without jobs for one who asks for a quote, in their order; its classes'
    names; and the limit on each that would do, USD per GPU-hour."""
    products = _products([wanted], stands)
    supply = _supply(np.ascontiguousarray(stands.rows["number"]), stands, products, now)
    stand = assemble([], supply, _classes(stands, products), seed=0)
    return stand, products.names, _Suited(products).limits(wanted)


def order_of(
    number: int, wanted: Wants, limits: Mapping[str, float], *, kappa: float,
    save_s: float | None = None, age_h: float = 0.0,
) -> Order:  # fmt: skip
    """What is wanted as the engine reads it."""
    return Order(
        id=number,
        limits=limits,
        gpus_min=wanted.gpus,
        gpus_max=wanted.gpus_max,
        level=wanted.level,
        kappa=kappa,
        hours_lost=hours_lost(save_s, settings.POLICY),
        regions=_mask(wanted.regions),
        trust=min(wanted.trust, wanted.secrets_trust),
        tier=wanted.tier,
        age_h=age_h,
    )


def order_where_it_runs(lease: Lease) -> Order:
    """What decides what a lease's gang is worth on what it has, all of which it accepts."""
    job, gpu_class = lease.job, lease.gpu_class
    limit = before_premium(job.limits.get(gpu_class, 0), job.premium_bps)
    lost = hours_lost(job.save_s, settings.POLICY)
    return Order(0, {gpu_class: limit / MICRO}, kappa=job.kappa, hours_lost=lost)


def _order(number: int, job: Job, wanted: Wants, suited: _Suited, now: datetime) -> Order:
    age_h = max(0.0, (now - job.queued_at).total_seconds() / 3600)
    return order_of(
        number, wanted, suited.limits(wanted), kappa=job.kappa, save_s=job.save_s, age_h=age_h
    )


def _anywhere(wanted: Wants) -> Wants:
    """The same without what the engine judges by itself: region, and how many GPUs a node has."""
    return replace(wanted, regions=frozenset(), gpus=1)


@lru_cache(maxsize=1000)
def _mask(regions: frozenset[str]) -> int:
    return region_mask(sorted(regions))


def hours_lost(save_s: float | None, policy: Policy) -> float:
    """What an interruption costs, on a machine of which nothing is known yet."""
    return _hours_lost(checkpoints.save_seconds(save_s, policy.save_default_s), policy.mtbf_s)


@lru_cache(maxsize=1000)
def _hours_lost(save: float, mtbf_s: float) -> float:
    return checkpoints.hours_lost(save, checkpoints.interval(save, failures_per_hour=3600 / mtbf_s))


def _supply(
    numbers: Array, offered: Columns, products: _Products, now: datetime
) -> dict[str, Array]:
    """The nodes' and sites' arrays."""
    rows, (sites, site_of) = offered.rows, offered.sites()
    of = {
        "node_id": numbers,
        "node_class": products.of_row,
        "node_site": site_of,
        "node_gpus": np.minimum(rows["free"], NODE_GPUS),
        "node_ask": rows["ask"] / MICRO,
        "node_tier": rows["tier"],
        "node_long": _are_long(offered, now),
        **sites,
    }
    return {name: np.ascontiguousarray(of[name], SCHEMA[name].dtype) for name in of}


def _are_long(offered: Columns, now: datetime) -> Bools:
    long = ~offered.rows["timed"]
    for at in np.flatnonzero(offered.rows["timed"]).tolist():
        closes_at = offered.lots[at].closes_at(now)
        long[at] = closes_at is not None and closes_at - now >= market.LONG_WINDOW
    return long


def _classes(offered: Columns, products: _Products) -> list[ClassRow]:
    linked = np.ones(len(products.names), bool)
    linked[products.of_row[~offered.rows["nvlink"]]] = False
    # One processor is one device: nothing in it has to cross a slower link.
    linked |= np.array([is_cpu(stands.gpu_class) for stands in products.sample], bool)
    return [ClassRow(name, nv) for name, nv in zip(products.names, linked.tolist(), strict=True)]


def _seed(now: datetime) -> int:
    """Published with the round; nobody can choose it, and anybody can recompute it."""
    return int(now.timestamp() * 1000)
