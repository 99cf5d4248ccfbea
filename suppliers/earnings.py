"""What a node's leases have paid its supplier, premium and credits told apart."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db.models import Max, Min, QuerySet, Sum

from marketplace.core.money import BASIS_POINTS, premium_in
from scheduler import receipts
from scheduler.models import Assignment, Credit
from suppliers.models import Node

MAX_SHOWN: Final = 20

_ENDED: Final = {
    "displaced": "left: it made room for a job that gains more",
    "grown": "left: its job goes on with more GPUs",
    "reclaimed": "left: you took the machine back",
    "cancelled": "ended by its buyer",
    "stopped": "stopped by its buyer",
}

_LEAVING: Final = {
    "displaced": "leaving: it makes room for a job that gains more",
    "grown": "leaving, to come back with more GPUs",
}


@dataclass(frozen=True)
class Earned:
    """One lease's part of a node. Micros, the take kept; prices are per GPU-hour."""

    gpu_class: str
    gpus: int
    service: str
    began_at: datetime
    ended_at: datetime | None
    nets: int
    premium_nets: int
    """Of it, for protection."""
    earned: int
    """Less what was given back of it as credits."""
    premium_earned: int
    """Of it, for protection, before credits."""
    words: str


def of_node(node: Node) -> list[Earned]:
    """The last leases on the node, the newest first. Two queries."""
    shares = list(_shares(node)[:MAX_SHOWN])
    given = Credit.objects.filter(assignment__in=shares).values_list("assignment")
    back: dict[UUID, int] = dict(given.annotate(Sum("from_supplier_micros")))
    return [_earned(share, back.get(share.pk, 0)) for share in shares]


def _shares(node: Node) -> QuerySet[Assignment]:
    """With what was billed of each, and from where to where: slices follow one another."""
    found = Assignment.objects.on(node).select_related("lease__job").order_by("-lease__epoch")
    return found.annotate(
        paid=Sum("slices__charge_micros", default=0),
        kept=Sum("slices__fee_micros", default=0),
        since=Min("slices__since_s", default=0),
        until=Max("slices__until_s", default=0),
    )


def _earned(share: Assignment, given_back: int) -> Earned:
    lease, bps, take = share.lease, share.lease.job.premium_bps, share.take_bps
    earned = getattr(share, "paid") - getattr(share, "kept")  # noqa: B009 (annotated)
    span = getattr(share, "since"), getattr(share, "until")  # noqa: B009
    charged, kept = receipts.unprotected(share, bps, *span)
    return Earned(
        gpu_class=lease.gpu_class,
        gpus=share.gpus_count,
        service=lease.job.service,
        began_at=lease.created_at,
        ended_at=share.gone_at,
        nets=_net(share.price_micros, take),
        premium_nets=_net(premium_in(share.price_micros, bps), take),
        earned=earned - given_back,
        premium_earned=earned - (charged - kept),
        words=_words(share),
    )


def _net(price: int, take_bps: int) -> int:
    return price * (BASIS_POINTS - take_bps) // BASIS_POINTS


def _words(share: Assignment) -> str:
    lease = share.lease
    if share.gone_at is None and share.drain_why in _LEAVING:
        return _LEAVING[share.drain_why]
    if share.gone_at is None:
        return share.state
    reason = lease.end_reason or share.drain_why
    return _ENDED.get(reason, reason.replace("_", " ")) or "gone"
