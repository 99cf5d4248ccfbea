"""What has run, and what it costs: heartbeats accrue, signed claims cap, settlement bills.

Billed is the lesser of two totals that neither side can raise alone: `accrued_ms`, running time
that the market's own clock saw between heartbeats no further apart than the lease TTL, and
`claimed_ms`, what the node signed for. A lying node gains at most one TTL an incident. Seconds in
which a rank of a gang waits for others to be made ready are passed over, unpaid.

The job's row is the lock over its lease, assignments and money: whoever changes those takes it
first (`locked_job`), so there is one order and no deadlock.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from django.conf import settings
from django.db import transaction
from django.db.models import F

from agent import protocol
from buyers.models import Job
from marketplace import telemetry
from marketplace.core.errors import Invalid
from marketplace.core.money import charge, fee
from marketplace.ledger import services as ledger
from marketplace.ledger.services import FEES, Move
from scheduler import escrow
from scheduler.models import Assignment, Lease, UsageSlice
from suppliers import pulse
from suppliers.models import Node

log = logging.getLogger(__name__)

# Drains that the market or the owner wanted are not billed: from then on nothing accrues. The end
# of a lease's day is neither's wish: everybody knew of it from its beginning.
_UNBILLED: Final = frozenset({"displaced", "reclaimed"})


def locked_job(job_id: UUID) -> Job:
    """The job, locked to the end of the transaction; with it its lease, assignments and money."""
    return Job.objects.select_for_update(no_key=True).get(pk=job_id)


@transaction.atomic
def beat(node: Node, heartbeat: protocol.Heartbeat | protocol.Hello, *, now: datetime) -> None:
    """Accrues running time from one heartbeat, or the hello after a cut. Call it before the same
    message is reported.

    The caller has checked that `seq` rises and `boot_id` is the socket's. What is not running,
    or of an older epoch, or not this node's, is passed over.
    """
    said = {status.id: status for status in heartbeat.assignments}
    if not said:
        return
    shares = (
        Assignment.objects.on(node)
        .filter(pk__in=said, gone_at=None)
        .select_related("lease")
        .select_for_update(of=("self",), no_key=True)
        .order_by("pk")
    )
    metered = []
    for share in shares:
        status = said[share.pk]
        if status.epoch == share.lease.epoch and share.boot_id in ("", heartbeat.boot_id):
            share.accrued_ms += _accrued(share, status, now)
            share.reported_ms = max(share.reported_ms, _possible(share, status, now))
            share.boot_id, share.beat_at = heartbeat.boot_id, now
            metered.append(share)
    Assignment.objects.bulk_update(metered, ["accrued_ms", "reported_ms", "boot_id", "beat_at"])


def claim(node: Node, usage: protocol.Usage, *, now: datetime) -> protocol.Receipt:
    """Takes in a signed claim and answers with a signed receipt; a repeat gets one too.

    Raises Invalid for a signature that isn't this node's, or a claim that isn't one.
    """
    signed = protocol.claim_bytes(node.pk, usage.claim)
    try:
        Ed25519PublicKey.from_public_bytes(bytes(node.public_key)).verify(usage.signature, signed)
        said = protocol.decode(usage.claim, protocol.Claim)
    except (InvalidSignature, protocol.Malformed) as error:
        raise Invalid(f"this usage claim is not signed by node {node}: {error}") from None
    with transaction.atomic():
        share = (
            Assignment.objects.on(node)
            .filter(pk=said.assignment)
            .select_related("lease")
            .select_for_update(of=("self",), no_key=True)
            .first()
        )
        if share is None or share.lease.epoch != said.epoch:
            return _receipt(node, usage, said, None, "there is no such assignment of this node")
        reason = "" if share.settled_at is None else "the assignment had already been settled"
        if said.n > share.claim_n and not reason:
            share.claim_n = said.n
            share.claimed_ms = max(share.claimed_ms, said.running_ms)
            share.millijoules = max(share.millijoules, said.millijoules)
            share.power_measured = said.measured
            share.save(update_fields=["claim_n", "claimed_ms", "millijoules", "power_measured"])
    return _receipt(node, usage, said, share, reason)


def settle(*, now: datetime) -> int:
    """Bills all live leases, each in a transaction of its own; returns how many.

    A lease that can't be billed is logged and does not keep the others from it.
    """
    leases = list(Lease.objects.live().values_list("pk", "job_id"))
    for lease_id, job_id in leases:
        try:
            with transaction.atomic():
                job = locked_job(job_id)
                lease = Lease.objects.live().filter(pk=lease_id).first()
                if lease is not None:
                    settle_lease(job, lease, now=now)
        except Exception:
            # One broken lease must not stop the meter of all others; it is tried again.
            log.exception("lease %s could not be settled", lease_id)
    return len(leases)


def settle_lease(job: Job, lease: Lease, *, now: datetime) -> None:
    """Bills what has run since the last time and tops the escrow up. The job must be locked."""
    shares = list(
        lease.assignments.select_related("lease").select_for_update(of=("self",), no_key=True)
        .order_by("pk")
    )  # fmt: skip
    escrowed = ledger.escrow(job.pk)
    ledger.hold(
        [ledger.wallet(job.org_id), escrowed, FEES]
        + [ledger.payable(share.supplier_id) for share in shares]
    )
    # 1. What has run since.
    slices = [piece for share in shares if (piece := _slice(share, now))]
    moves = [move for piece in slices for move in _moves(piece, escrowed)]
    ledger.post(moves, now=now)
    UsageSlice.objects.bulk_create(slices)
    for piece in slices:
        piece.assignment.billed_s = piece.until_s
        job.spent_micros += piece.charge_micros
    job.save(update_fields=["spent_micros"])
    # 2. What may run next.
    running = [share for share in shares if share.gone_at is None]
    paid_before = {share.pk: share.paid_through_s for share in running}
    if running and not lease.end_reason:
        fund(job, lease, running, now=now)
    Assignment.objects.bulk_update(shares, ["billed_s", "waited_s", "paid_through_s"])
    for share in running:
        if share.paid_through_s != paid_before[share.pk]:
            transaction.on_commit(partial(telemetry.node_changed, share.node_id), robust=True)
    transaction.on_commit(partial(telemetry.job_changed, job.pk), robust=True)


def fund(job: Job, lease: Lease, shares: Sequence[Assignment], *, now: datetime) -> None:
    """Tops the escrow up and sets `paid_through_s` on `shares`, unsaved. Accounts are held."""
    ledger.post(escrow.top_up(job, lease, shares, now=now), now=now)


def begin(lease: Lease) -> None:
    """All ranks of a gang run: what some of them have run until now was waiting."""
    together = lease.assignments.filter(gpus_count__lt=lease.gpus_count)
    together.update(waited_s=F("accrued_ms") / 1000)


def rest(job: Job, *, now: datetime) -> None:
    """Gives back what is left in escrow when a job comes to rest. The job must be locked."""
    ledger.hold([ledger.wallet(job.org_id), ledger.escrow(job.pk)])
    ledger.post(escrow.rest(job, now=now), now=now)


def _accrued(share: Assignment, status: protocol.Status, now: datetime) -> int:
    """Milliseconds to add: what the node says, but never more than we saw pass."""
    if share.drain_why in _UNBILLED:
        return 0
    since = share.beat_at or share.lease.created_at
    gap = now - since
    if gap > timedelta(seconds=settings.POLICY.lease_ttl_s):
        heard = pulse.listening_since(now=now, gap_s=settings.POLICY.pulse_gap_s)
        ours = heard is not None and heard > since
        if not (ours and status.step > share.step):
            return 0
    return min(gap // timedelta(milliseconds=1), max(0, status.running_ms - share.reported_ms))


def _possible(share: Assignment, status: protocol.Status, now: datetime) -> int:
    """Running time as said, but never more than has passed since the lease began."""
    return min(status.running_ms, (now - share.lease.created_at) // timedelta(milliseconds=1))


def _slice(share: Assignment, now: datetime) -> UsageSlice | None:
    until = min(share.accrued_ms // 1000, share.claimed_ms // 1000, share.paid_through_s)
    if share.lease.running_at is None and share.gpus_count < share.lease.gpus_count:
        share.waited_s = until
    share.billed_s = max(share.billed_s, min(until, share.waited_s))
    if until <= share.billed_s:
        return None
    price, gpus, since = share.price_micros, share.gpus_count, share.billed_s
    return UsageSlice(
        assignment=share,
        since_s=since,
        until_s=until,
        charge_micros=charge(price, gpus, since, until),
        fee_micros=fee(price, gpus, since, until, take_bps=share.take_bps),
        at=now,
    )


def _moves(piece: UsageSlice, escrowed: ledger.Ref) -> list[Move]:
    share, period = piece.assignment, str(piece.since_s)
    earned = piece.charge_micros - piece.fee_micros
    moves = []
    if earned:
        supplier = ledger.payable(share.supplier_id)
        moves.append(Move("usage", escrowed, supplier, earned, share.pk, period))
    if piece.fee_micros:
        moves.append(Move("fee", escrowed, FEES, piece.fee_micros, share.pk, period))
    return moves


def _receipt(
    node: Node,
    usage: protocol.Usage,
    said: protocol.Claim,
    share: Assignment | None,
    reason: str,
) -> protocol.Receipt:
    body = protocol.encode(
        protocol.ReceiptBody(
            assignment=said.assignment,
            epoch=said.epoch,
            n=said.n,
            claim=protocol.sha256_hex(usage.claim),
            claimed_ms=said.running_ms,
            accepted_ms=min(share.accrued_ms, share.claimed_ms) if share else 0,
            reason=reason,
        )
    )
    key = Ed25519PrivateKey.from_private_bytes(settings.MARKET_SIGNING_KEY)
    return protocol.Receipt(body=body, signature=key.sign(protocol.receipt_bytes(node.pk, body)))
