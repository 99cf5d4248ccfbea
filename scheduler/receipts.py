"""What a job cost, to the micro: what ran where, what it was charged, and who got what."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from buyers.models import Job
from marketplace.core import energy
from marketplace.core.hardware import is_cpu
from marketplace.core.money import before_premium, charge, fee, premium_in
from scheduler.models import Assignment, UsageSlice


@dataclass(frozen=True)
class CreditLine:
    """Money given back, and why."""

    micros: int
    reason: str
    at: datetime


@dataclass(frozen=True)
class Part:
    """Of a line, what the market's price made, or the premium on it; micros."""

    price_micros: int
    charge: int
    fee: int

    @property
    def earnings(self) -> int:
        """The supplier's."""
        return self.charge - self.fee


@dataclass(frozen=True)
class ReceiptLine:
    """One node's share of one lease. Micros; seconds of running that were billed."""

    lease: UUID
    epoch: int
    node: str
    supplier: str
    gpu_class: str
    gpus: int
    seconds: int
    price_micros: int
    charge: int
    fee: int
    earnings: int
    """The supplier's, before credits."""
    take_bps: int
    premium: Part
    """What of all this is for protection."""
    credits: Sequence[CreditLine]
    end_reason: str
    kwh: float
    g_co2: float
    estimated: bool

    @property
    def plain(self) -> Part:
        """The rest of it, at the market's price."""
        more = self.premium
        return Part(
            self.price_micros - more.price_micros, self.charge - more.charge, self.fee - more.fee
        )

    @property
    def gpu_seconds(self) -> int:
        """GPUs × seconds."""
        return self.gpus * self.seconds

    @property
    def credited(self) -> int:
        """All credits of the line."""
        return sum(credit.micros for credit in self.credits)


@dataclass(frozen=True)
class Receipt:
    """A job's lines and their totals. `total` is what the buyer paid in the end."""

    job: UUID
    lines: Sequence[ReceiptLine]
    budget: int
    premium_bps: int

    @property
    def gpu_seconds(self) -> int:
        return sum(line.gpu_seconds for line in self.lines)

    @property
    def charged(self) -> int:
        return sum(line.charge for line in self.lines)

    @property
    def premium(self) -> int:
        return sum(line.premium.charge for line in self.lines)

    @property
    def credited(self) -> int:
        return sum(line.credited for line in self.lines)

    @property
    def total(self) -> int:
        return self.charged - self.credited

    @property
    def fees(self) -> int:
        return sum(line.fee for line in self.lines)

    @property
    def earnings(self) -> int:
        return sum(line.earnings for line in self.lines)

    @property
    def kwh(self) -> float:
        return sum(line.kwh for line in self.lines)

    @property
    def g_co2(self) -> float:
        return sum(line.g_co2 for line in self.lines)

    @property
    def estimated(self) -> bool:
        """Whether any of the energy is an estimate."""
        return any(line.estimated for line in self.lines)


def receipt(job: Job) -> Receipt:
    """The job's receipt as it stands; three queries."""
    shares = (
        Assignment.objects.filter(lease__job=job)
        .select_related("lease", "node__site", "supplier")
        .prefetch_related("slices", "credits")
        .order_by("lease__epoch", "rank")
    )
    lines = [_line(share, job.premium_bps) for share in shares]
    return Receipt(job.pk, lines, job.budget_micros, job.premium_bps)


def _line(share: Assignment, premium_bps: int) -> ReceiptLine:
    slices = list(share.slices.all())
    paid = sum(piece.charge_micros for piece in slices)
    kept = sum(piece.fee_micros for piece in slices)
    used = _energy(share)
    return ReceiptLine(
        lease=share.lease_id,
        epoch=share.lease.epoch,
        node=share.node.name,
        supplier=share.supplier.name,
        gpu_class=share.lease.gpu_class,
        gpus=share.gpus_count,
        seconds=share.paid_s,
        price_micros=share.price_micros,
        charge=paid,
        fee=kept,
        earnings=paid - kept,
        take_bps=share.take_bps,
        premium=_premium(share, slices, premium_bps),
        credits=[
            CreditLine(credit.micros, credit.reason, credit.at) for credit in share.credits.all()
        ],
        end_reason=share.lease.end_reason,
        kwh=used.kwh,
        g_co2=used.grams_co2(share.node.site.carbon_g_per_kwh),
        estimated=used.estimated,
    )


def unprotected(share: Assignment, bps: int, since_s: int, until_s: int) -> tuple[int, int]:
    """(charge, fee) in micros of these seconds, had the job paid no premium."""
    price, gpus = before_premium(share.price_micros, bps), share.gpus_count
    return (
        charge(price, gpus, since_s, until_s),
        fee(price, gpus, since_s, until_s, take_bps=share.take_bps),
    )


def _premium(share: Assignment, slices: Sequence[UsageSlice], bps: int) -> Part:
    """What the slices came to beyond what they would have without the premium: so it and the rest
    make the charge, to the micro."""
    plain = [unprotected(share, bps, one.since_s, one.until_s) for one in slices]
    return Part(
        premium_in(share.price_micros, bps),
        sum(one.charge_micros for one in slices) - sum(charged for charged, _ in plain),
        sum(one.fee_micros for one in slices) - sum(kept for _, kept in plain),
    )


def _energy(share: Assignment) -> energy.Energy:
    """As the node measured it; else as it estimated; else from the class's data sheet."""
    drawn = share.millijoules
    if not drawn:
        cores = share.node.cpu_cores if is_cpu(share.lease.gpu_class) else 1
        watts = energy.watts(share.lease.gpu_class, cores=cores)
        drawn = watts * share.gpus_count * share.accrued_ms
    return energy.at_the_wall(drawn, pue=share.node.site.pue, estimated=not share.power_measured)
