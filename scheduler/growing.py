"""Growth: elastic gangs that run take GPUs that stand idle beside them, if they gain by it.

Which ones is decided by `matching.grow`; here the rows are read for it. A gang that grows saves and
leaves, what it had and what it adds is held for it meanwhile, and a round places it there, larger.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import numpy as np
from django.conf import settings
from django.db import transaction
from django.db.models import F

from marketplace import locks
from marketplace.core.fit import Wants, suits
from marketplace.core.money import BASIS_POINTS, MICRO
from marketplace.ledger import services as ledger
from scheduler import book as market
from scheduler import credits, escrow, making_room, snapshots, timing
from scheduler.columns import Columns
from scheduler.leases import MARKET_LOCK
from scheduler.lots import Lot
from scheduler.making_room import Room, base_price
from scheduler.matching.arrays import Bools
from scheduler.matching.book import Order
from scheduler.matching.grow import Elastic, Growth, grow
from scheduler.models import Assignment, Lease
from scheduler.snapshots import Snapshot

_MOST: Final = 100
"""Gangs that are looked at after one round, those first that have run for longest."""
_LEAST_H: Final = 1 / 60
"""No gang moves for so little time as is left to it then."""


@dataclass(frozen=True)
class _Gang:
    """A lease that could use more, with its nodes' shares."""

    lease: Lease
    shares: Sequence[Assignment]

    @property
    def gpus(self) -> int:
        return sum(share.gpus_count for share in self.shares)

    @property
    def rate(self) -> int:
        """Micros per hour."""
        return escrow.hourly(self.shares)

    @property
    def most(self) -> int:
        return int(self.lease.job.gpus_max)


def grow_market(standing: Callable[[datetime], Sequence[Lot]], *, now: datetime) -> int:
    """What follows a round, which has let what it could. Returns how many gangs begin to grow."""
    gangs = _elastic(now)
    if not gangs:
        return 0
    rooms = _choose(gangs, standing(now), now)
    if not rooms:
        return 0
    with transaction.atomic():
        locks.hold(MARKET_LOCK)
        return making_room.make(rooms, now=now)


def _elastic(now: datetime) -> list[_Gang]:
    """Those that have run for long enough on less than they could use. Two queries."""
    policy = settings.POLICY
    shares = Assignment.objects.filter(
        lease__state="running", lease__end_reason="", lease__job__state="running",
        lease__job__gpus_max__gt=F("lease__job__gpus_min"), lease__job__hold=None,
        lease__running_at__lte=now - timedelta(seconds=policy.displace_after_s), spared_at=None,
    ).select_related("lease__job__org", "lease__job__packages", "lease__job__image")  # fmt: skip
    of_lease: dict[Lease, list[Assignment]] = {}
    for share in shares.order_by("lease__running_at", "lease__epoch", "rank"):
        of_lease.setdefault(share.lease, []).append(share)
    stay = making_room.lately_left("grown", "displaced", now=now) if of_lease else set()
    found = [_Gang(lease, its) for lease, its in of_lease.items() if lease.job_id not in stay]
    return [
        gang for gang in found
        if gang.gpus < gang.most
        and not any(share.drain_at or share.gone_at for share in gang.shares)
    ]  # fmt: skip


def _choose(gangs: Sequence[_Gang], standing: Sequence[Lot], now: datetime) -> list[Room]:
    lots = {(lot.stands.node, lot.stands.gpu_class): lot for lot in standing}
    places = {lot.place for lot in standing if lot.free}
    found = []
    for gang in gangs:
        own = [lots.get((str(share.node_id), gang.lease.gpu_class)) for share in gang.shares]
        if all(lot is not None and lot.place in places for lot in own):
            found.append(gang)
    hours = {gang.lease: _hours(gang) for gang in found[:_MOST]}
    found = [gang for gang in found[:_MOST] if hours[gang.lease] >= _LEAST_H and _can_pay(gang)]
    if not found:
        return []
    jobs = [gang.lease.job for gang in found]
    wanted = [market.wants(job) for job in jobs]
    near = {
        lots[str(share.node_id), gang.lease.gpu_class].place
        for gang in found
        for share in gang.shares
    }
    rows = [lot for lot in standing if lot.place in near]
    read = snapshots.Read(jobs, wanted, {}, standing)
    yard = snapshots.made(read, Columns.of(rows), now=now)
    accepts = [_accepts(yard, *each) for each in zip(found, wanted, strict=True)]
    running = _running(yard, found, accepts, hours)
    least = settings.POLICY.least_gain_bps / BASIS_POINTS
    return [
        _room(yard, found[each.gang], each) for each in grow(yard.book, running, least_gain=least)
    ]


def _hours(gang: _Gang) -> float:
    """Over which a move must be earned back: until its end, as far as that can be told, were it
    as large as it may be, and at most the market's usual time."""
    job, spread = gang.lease.job, gang.gpus / gang.most
    hours = [settings.POLICY.displace_stay_s / 3600, job.budget_left / gang.rate * spread]
    left = timing.left(job, gang.lease)
    return min([*hours, left / 3600 * spread] if left is not None else hours)


def _can_pay(gang: _Gang) -> bool:
    """Whether it could start again, larger."""
    job, policy = gang.lease.job, settings.POLICY
    rate = gang.rate * gang.most // gang.gpus
    needed = escrow.smallest(rate, gang.most, escrow.save_seconds(job, policy), policy)
    held = ledger.balances([ledger.wallet(job.org_id), ledger.escrow(job.pk)])
    return min(sum(held.values()), int(job.budget_left)) >= needed


def _running(
    yard: Snapshot, gangs: Sequence[_Gang], accepts: Sequence[Bools], hours: Mapping[Lease, float]
) -> Elastic:
    at = {row.stands.node: number for number, row in enumerate(yard.rows)}
    shares = [(number, share) for number, gang in enumerate(gangs) for share in gang.shares]
    return Elastic(
        orders=[_order(gang) for gang in gangs],
        gang=np.array([number for number, _ in shares]),
        node=np.array([at[str(share.node_id)] for _, share in shares]),
        gpus=np.array([share.gpus_count for _, share in shares]),
        price=np.array([base_price(share) for _, share in shares]) / MICRO,
        accepts=np.array(accepts),
        idle_h=np.array([_idle_h(gang) for gang in gangs]),
        over_h=np.array([hours[gang.lease] for gang in gangs]),
    )


def _order(gang: _Gang) -> Order:
    order = snapshots.order_where_it_runs(gang.lease)
    return replace(order, gpus_max=gang.most, level=gang.lease.job.level)


def _accepts(yard: Snapshot, gang: _Gang, wanted: Wants) -> Bools:
    """[N] the nodes that would do for it, of those on its sites."""
    wanted = replace(wanted, gpus=1)
    nodes = {str(share.node_id) for share in gang.shares}
    places = {row.place for row in yard.rows if row.stands.node in nodes}
    return np.array([row.place in places and suits(wanted, row.stands) for row in yard.rows])


def _idle_h(gang: _Gang) -> float:
    """For as long as its last start took, and the save; and what it can't save in time it runs twice."""
    lease = gang.lease
    started = ((lease.running_at or lease.created_at) - lease.created_at).total_seconds()
    late = lease.save_s > settings.POLICY.displace_notice_s
    return (started + lease.save_s + (credits.unsaved_s(gang.shares) if late else 0)) / 3600


def _room(yard: Snapshot, gang: _Gang, growth: Growth) -> Room:
    nodes = [UUID(yard.rows[node].stands.node) for node in growth.nodes]
    return Room(
        gang.lease.job,
        [gang.lease],
        dict(zip(nodes, growth.gpus, strict=True)),
        gang.lease.gpu_class,
        "grown",
        f"it goes on with {sum(growth.gpus)} GPUs instead of {gang.gpus}: the others stand idle"
        " beside it",
    )
