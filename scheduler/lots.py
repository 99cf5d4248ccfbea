"""Open offers as rounds read them: tens of thousands at once, and so as plain rows, no instances.

A lot is what can be let of one offer. Whether it stands now hangs on the clock too: its node may
have fallen silent, and its window may be closing.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import compress
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection

from marketplace import bulk
from marketplace.core import windows
from marketplace.core.fit import Stands
from marketplace.core.hardware import Tier
from marketplace.core.money import gross_ask
from scheduler import records
from scheduler.seats import LETTABLE, MARK, NONE, VERSION, Devices, Machine
from suppliers.models import Offer

_LEAST_WINDOW: Final = timedelta(minutes=10)
"""An offer about to close is not worth moving to."""
_SITE: Final = 7
"""Where a row has its site's id."""
_FEW: Final = 1000
"""The sites of more offers are found slower than all sites are read."""


class Ground(NamedTuple):
    """A site, as far as the book minds it."""

    id: str
    org: str
    region: str
    trust: int
    network: int
    uplink_mbps: float
    name: str
    supplier: UUID
    """Its org, as rows have it."""


class Lot(NamedTuple):
    """One open offer with what is free of it."""

    offer_id: UUID
    ask_micros: int
    """What the supplier nets, per GPU-hour."""
    free: int
    """GPUs that nobody has and nobody is held; of what is held, those that are."""
    stands: Stands
    windows: str
    """As JSON; empty stands always."""
    nvlink: bool
    site: Ground
    place: str
    """What it can be in a gang with: its site, or nobody but itself."""
    machine: Machine
    version: int
    """Of its rows, as they were read: another one, and they may have changed."""
    devices: Devices = NONE
    """Those of its GPUs that are free."""

    @property
    def offer(self) -> Offer:
        """The row itself, of which all but id and ask is fetched when asked for: for few only."""
        return Offer.from_db("default", ["id", "ask_micros"], [self.offer_id, self.ask_micros])

    def closes_at(self, now: datetime) -> datetime | None:
        """When it ends; None if it doesn't stand now."""
        return windows.closes_at(_parsed(self.windows), now)

    def opens_at(self, now: datetime) -> datetime | None:
        """When it next opens; None if it stands now, or never will."""
        return windows.opens_at(_parsed(self.windows), now)

    def is_open(self, now: datetime) -> bool:
        """Whether it stands now, and for long enough."""
        if not self.windows:
            return True
        closes_at = self.closes_at(now)
        return closes_at is not None and closes_at - now >= _LEAST_WINDOW


def read(
    *, now: datetime, offers: Collection[UUID] | None = None, nodes: Collection[UUID] | None = None
) -> list[Lot]:
    """The open offers on nodes that may be let, whether or not they stand this minute; of all, of
    these offers, or on these nodes. In a stable order. Three queries."""
    asked = {"offers": bulk.ids(offers or ()), "nodes": bulk.ids(nodes or ())}
    few = not (offers is None and nodes is None) and len(offers or nodes or ()) <= _FEW
    with connection.cursor() as cursor:
        cursor.execute(_ALL if offers is None and nodes is None else _SOME, asked)
        found = cursor.fetchall()
        # After them, so that a site that changes meanwhile is newer than the version says, never older.
        of = {"sites": list({row[_SITE] for row in found})} if few else None
        cursor.execute(_SITES_OF if few else _SITES, of)
        sites = {row[0]: Ground(*row) for row in cursor.fetchall()}
    about = None if offers is None and nodes is None else [row[1] for row in found]
    tiers = {node: known.tier for node, known in records.known(about, now=now).items()}
    new, take_bps = records.unknown().tier, settings.POLICY.take_bps
    return [_lot(row, sites, tiers.get(row[1], new), take_bps) for row in found]


def standing(lots: Iterable[Lot], *, now: datetime) -> list[Lot]:
    """Those that stand now, in the same order. One query."""
    here = list(lots)
    return list(compress(here, which_stand(here, now=now)))


def which_stand(lots: Iterable[Lot], *, now: datetime) -> list[bool]:
    """Of each whether it stands now. One query."""
    silent = _silent(now)
    return [(not lot.windows or lot.is_open(now)) and lot.stands.node not in silent for lot in lots]


def held(lots: Iterable[Lot]) -> list[Lot]:
    """What is offered to one job each: of holds that are free as a whole, on the nodes of these
    lots. It costs no less than who left it paid. One query, of a small table."""
    with connection.cursor() as cursor:
        cursor.execute(_HELD)
        found = cursor.fetchall()
    if not found:
        return []
    of_node = {lot.stands.node: lot for lot in lots}
    return [
        _for_one(of_node[node], job, free, least, Devices(*told))
        for node, gpu_class, job, least, free, *told in found
        if node in of_node and of_node[node].stands.gpu_class == gpu_class
    ]


def _for_one(lot: Lot, job: str, free: int, least: int, gpus: Devices) -> Lot:
    ask = max(lot.stands.ask, least)
    stands = replace(lot.stands, free=free, ask=ask, held_for=job)
    return lot._replace(free=free, stands=stands, devices=gpus)


def opening(lots: Iterable[Lot], *, now: datetime) -> list[tuple[datetime, Lot]]:
    """Those out of their windows, and from when they stand; the soonest first. One query."""
    silent = _silent(now)
    later = [
        (at, lot)
        for lot in lots
        if lot.stands.node not in silent
        and (at := lot.opens_at(now)) is not None
        and lot.is_open(at)
    ]
    return sorted(later, key=lambda each: each[0])


def _silent(now: datetime) -> frozenset[str]:
    """Nodes that are not given up yet, but were not heard of within the TTL: a few."""
    heard = now - timedelta(seconds=settings.POLICY.lease_ttl_s)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id::text FROM suppliers_node WHERE lost_at IS NULL AND last_seen_at < %s"
            " AND state = 'ready'",
            [heard],
        )
        return frozenset(row[0] for row in cursor.fetchall())


def _lot(row: tuple[Any, ...], sites: dict[str, Ground], tier: Tier, take_bps: int) -> Lot:
    (offer, pk, node, ask, own_org, scripts, opens, site_id, lan, environment, disk, nvlink, egress,
     builds, python, torch, registries, ray, gpu_class, gpus, free, memory, name, memory_host,
     bandwidth, fitted, version, *devices) = row  # fmt: skip
    site = sites[site_id]
    stands = Stands(
        node, site.org, gpu_class, gpus, free, memory, disk, site.trust, tier, site.region,
        environment, scripts, bool(lan), ray, own_org, gross_ask(ask, take_bps=take_bps), egress,
        builds, python, torch, _names(registries),
    )  # fmt: skip
    place = site.id if lan else f"node-{node}"
    machine = Machine(pk, name, site.supplier, lan, environment, memory_host, bandwidth, fitted)
    opens = "" if opens == "[]" else opens
    here = Devices(*devices) if free else NONE
    return Lot(offer, ask, free, stands, opens, nvlink, site, place, machine, version, here)


@lru_cache(maxsize=10_000)
def _parsed(text: str) -> Sequence[windows.Window]:
    found: Sequence[windows.Window] = json.loads(text) if text else ()
    return found


@lru_cache(maxsize=1000)
def _names(text: str) -> frozenset[str]:
    return frozenset(json.loads(text))


_TOLD: Final = "json_agg(json_build_array(d.id, d.uuid, d.memory_bytes) ORDER BY d.index)"
"""As `Devices` has them."""
_IS_FREE: Final = "FILTER (WHERE d.is_free)"
# One offer lets one class: a machine of several kinds of GPU lets its most numerous.
# What is let is not joined: until PostgreSQL has counted it, it would be gone through for each GPU (9 s
# where 600 were let). OFFSET 0 has each GPU asked about once.
# All of the text is ours; values are parameters.
_SELECT: Final = """
    SELECT o.id, n.id, n.id::text, o.ask_micros, o.audience = 'own_org', o.scripts, o.windows::text,
        n.site_id::text, n.lan_address, n.environment, n.disk_bytes, n.nvlink, n.egress, n.builds,
        n.python, n.torch, n.registries::text,
        coalesce(n.inventory -> 'environment' -> 'packages' ? 'ray', false),
        g.gpu_class, g.gpus, g.free, g.memory, n.name, n.memory_bytes, n.bandwidth_mbps, g.fitted,
        {version}, g.told, g.mark
    FROM suppliers_offer o
    JOIN suppliers_node n ON n.id = o.node_id
    JOIN suppliers_site s ON s.id = n.site_id
    JOIN (
        SELECT DISTINCT ON (d.node_id) d.node_id, d.gpu_class, count(*) AS gpus,
            count(*) {free} AS free, min(d.memory_bytes) AS memory,
            ({told} {free})::text AS told, {mark} {free} AS mark,
            (sum(count(*)) OVER (PARTITION BY d.node_id))::int AS fitted
        FROM (
            SELECT d.*, NOT EXISTS (
                SELECT FROM scheduler_leasedgpu l WHERE l.gpu_id = d.id AND l.released_at IS NULL
            ) AND NOT EXISTS (SELECT FROM scheduler_heldgpu h WHERE h.gpu_id = d.id) AS is_free
            FROM suppliers_gpu d WHERE d.present {gpus} OFFSET 0
        ) d
        GROUP BY d.node_id, d.gpu_class
        ORDER BY d.node_id, count(*) DESC, min(d.index)
    ) g ON g.node_id = n.id
    WHERE {lettable} {offers}
    ORDER BY o.id
"""
_PARTS: Final = {
    "version": VERSION, "lettable": LETTABLE, "told": _TOLD, "mark": MARK, "free": _IS_FREE,
}  # fmt: skip
_ALL: Final = _SELECT.format(**_PARTS, gpus="", offers="")
_THESE: Final = "o.id = ANY(%(offers)s::uuid[]) OR o.node_id = ANY(%(nodes)s::uuid[])"
_SOME: Final = _SELECT.format(
    **_PARTS,
    gpus=f"AND d.node_id IN (SELECT o.node_id FROM suppliers_offer o WHERE {_THESE})",  # noqa: S608
    offers=f"AND ({_THESE})",
)
# A hold of which a GPU is still let, or gone, is offered to nobody yet.
_HELD: Final = f"""
    SELECT d.node_id::text, d.gpu_class, o.job_id::text, max(h.least_micros), count(*),
        {_TOLD}::text, {MARK}
    FROM scheduler_hold o
    JOIN scheduler_heldgpu h ON h.hold_id = o.id
    JOIN suppliers_gpu d ON d.id = h.gpu_id
    WHERE NOT EXISTS (
        SELECT FROM scheduler_heldgpu e
        JOIN suppliers_gpu g ON g.id = e.gpu_id
        LEFT JOIN scheduler_leasedgpu l ON l.gpu_id = g.id AND l.released_at IS NULL
        WHERE e.hold_id = o.id AND (l.gpu_id IS NOT NULL OR NOT g.present)
    )
    GROUP BY d.node_id, d.gpu_class, o.job_id ORDER BY o.job_id, d.node_id
"""  # noqa: S608 (all of it is written above)
_SITES: Final = (
    "SELECT id::text, org_id::text, region, trust, network, uplink_mbps, name, org_id"
    " FROM suppliers_site"
)
_SITES_OF: Final = f"{_SITES} WHERE id = ANY(%(sites)s::uuid[])"
