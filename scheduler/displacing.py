"""Displacement: after a round, interruptible leases leave for jobs that gain more by their GPUs.

Whom it costs least to let go is decided by `matching.displace`; here the rows are read for it and
what it decides is written down in one transaction: the victims are asked to save and leave, and what
they leave is held for the job that waits. The rounds that follow offer it to that job alone.
"""

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import numpy as np
from django.conf import settings
from django.db import transaction

from buyers.models import Job
from marketplace import locks
from marketplace.core.fit import Wants
from marketplace.core.money import BASIS_POINTS, MICRO
from marketplace.core.specs import INTERRUPTIBLE
from scheduler import credits, holds, making_room, snapshots
from scheduler.columns import Columns
from scheduler.hold_models import Hold
from scheduler.leases import MARKET_LOCK
from scheduler.making_room import Room, base_price
from scheduler.matching import values
from scheduler.matching.book import ClassRow, Order, SiteRow, Supply, build
from scheduler.matching.displace import Displacement, Rules, Running, displace
from scheduler.matching.matches import Matches
from scheduler.models import Assignment, Lease
from scheduler.snapshots import Snapshot

log = logging.getLogger(__name__)

_MOST: Final = 300
"""Waiting jobs for which one round looks for room, the highest limits first."""


def warm_up() -> None:
    """Loads the rule's compiled loops, as `clearing.warm_up` does those of the rounds: it has one
    lease leave for one job."""
    job, node = Order(0, {"": 2.0}), Supply(0, "", "", gpus=0, ask=1.0)
    book = build([job], [node], [SiteRow("", 0)], [ClassRow("", nvlink=True)], seed=0)
    first, none, may = np.zeros(1, np.int64), np.zeros(1), np.ones(1, bool)
    running = Running(
        first, first, first + 1, none, none, age_h=none + 1, interruptible=may, price=none
    )
    displace(book, first, running)


def displace_market(snapshot: Snapshot, matches: Matches, *, now: datetime) -> int:
    """What follows a round: holds lapse, and room is made. Returns for how many jobs."""
    offered = {UUID(row.stands.held_for) for row in snapshot.rows if row.stands.held_for}
    chosen = _choose(snapshot, matches, now)
    if not chosen and not Hold.objects.exists():
        return 0
    with transaction.atomic():
        locks.hold(MARKET_LOCK)
        holds.turn(offered, now=now)
        return making_room.make(chosen, now=now)


def _choose(snapshot: Snapshot, matches: Matches, now: datetime) -> list[Room]:
    shares = _may_leave(snapshot, now)
    if not shares:
        return []
    classes = {share.lease.gpu_class for share in shares}
    waiting = _waiting(snapshot, matches, classes)
    if not waiting:
        return []
    nodes = {str(share.node_id) for share in shares}
    places = {lot.place for lot in snapshot.standing if lot.stands.node in nodes}
    let = _let(snapshot, matches)
    rows = [
        lot._replace(free=max(0, lot.free - let.get(lot.stands.node, 0)))
        for lot in snapshot.standing
        if lot.place in places and lot.stands.gpu_class in classes
    ]
    jobs, wanted = [job for job, _ in waiting], [want for _, want in waiting]
    read = snapshots.Read(jobs, wanted, snapshot.versions, snapshot.standing)
    room = snapshots.made(read, Columns.of(rows), now=now)
    gangs = list(dict.fromkeys(share.lease for share in shares))
    found = displace(room.book, np.arange(len(jobs)), _running(room, gangs, shares, now), _rules())
    return [_chosen(room, gangs, each) for each in found]


def _let(snapshot: Snapshot, matches: Matches) -> dict[str, int]:
    """Node → GPUs that the round has let of what anybody could have."""
    found: dict[str, int] = {}
    for at, gpus in zip(matches.node.tolist(), matches.gpus.tolist(), strict=True):
        stands = snapshot.rows[at].stands
        if not stands.held_for:
            found[stands.node] = found.get(stands.node, 0) + gpus
    return found


def _may_leave(snapshot: Snapshot, now: datetime) -> list[Assignment]:
    """The nodes' shares of all interruptible leases that have run for long enough, on offers that all
    stand. Two queries."""
    policy = settings.POLICY
    shares = Assignment.objects.filter(
        lease__state="running", lease__end_reason="", lease__job__service=INTERRUPTIBLE,
        lease__running_at__lte=now - timedelta(seconds=policy.displace_after_s),
        spared_at=None, gone_at=None, drain_at=None,
    ).select_related("lease__job").order_by("lease__epoch", "rank")  # fmt: skip
    found = list(shares)
    if not found:
        return []
    stay = making_room.lately_left("displaced", now=now)
    stands = {(lot.stands.node, lot.stands.gpu_class) for lot in snapshot.standing}
    stay |= {
        share.lease.job_id
        for share in found
        if (str(share.node_id), share.lease.gpu_class) not in stands
    }
    return [share for share in found if share.lease.job_id not in stay]


def _waiting(
    snapshot: Snapshot, matches: Matches, classes: Iterable[str]
) -> list[tuple[Job, Wants]]:
    """Jobs that the round left unplaced and that could use what may be freed."""
    held = set(Hold.objects.values_list("job_id", flat=True))
    found = []
    for at in np.flatnonzero(matches.level < 0).tolist():
        job, want = snapshot.jobs[at], snapshot.wanted[at]
        best = max((want.limits.get(name, 0) for name in classes), default=0)
        if best and job.pk not in held:
            found.append((-best, job.queued_at, job.pk, at))
    found.sort()
    return [(snapshot.jobs[at], snapshot.wanted[at]) for *_, at in found[:_MOST]]


def _running(
    room: Snapshot, gangs: Sequence[Lease], shares: Sequence[Assignment], now: datetime
) -> Running:
    """The shares as the pure rule reads them, a row each; worth what such a gang is in a round."""
    at = {row.stands.node: number for number, row in enumerate(room.rows)}
    gang_of = {lease.pk: number for number, lease in enumerate(gangs)}
    of_lease: dict[UUID, list[Assignment]] = {}
    for share in shares:
        of_lease.setdefault(share.lease_id, []).append(share)
    gang = np.array([gang_of[share.lease_id] for share in shares])
    node = np.array([at[str(share.node_id)] for share in shares])
    gpus = np.array([share.gpus_count for share in shares])
    orders = [snapshots.order_where_it_runs(lease) for lease in gangs]
    surplus, value = values.of_gangs(room.book, orders, gang, node, gpus)
    unsaved_ms = [credits.unsaved_ms(of_lease[lease.pk]) for lease in gangs]
    age_s = np.array([(now - (lease.running_at or now)).total_seconds() for lease in gangs])
    return Running(
        gang, node, gpus,
        surplus=surplus[gang],
        lost=(np.array(unsaved_ms) / 3_600_000 * value)[gang],
        age_h=age_s[gang] / 3600,
        interruptible=np.ones(len(gang), bool),
        price=np.array([base_price(share) for share in shares]) / MICRO,
    )  # fmt: skip


def _rules() -> Rules:
    policy = settings.POLICY
    return Rules(
        least_age_h=policy.displace_after_s / 3600,
        least_gain=policy.least_gain_bps / BASIS_POINTS,
        stay_h=policy.displace_stay_s / 3600,
    )


def _chosen(room: Snapshot, gangs: Sequence[Lease], found: Displacement) -> Room:
    nodes = [room.rows[node].stands for node in found.nodes]
    return Room(
        room.jobs[found.job],
        [gangs[number] for number in found.gangs],
        {UUID(stands.node): gpus for stands, gpus in zip(nodes, found.gpus, strict=True)},
        nodes[0].gpu_class,
        "displaced",
        "it makes room for a job that gains more by these GPUs",
    )
