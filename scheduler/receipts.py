"""What a job cost, to the micro: what ran where, what it was charged, and who got what."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from buyers.models import Job
from marketplace.core import energy
from marketplace.core.hardware import is_cpu
from scheduler.models import Assignment


@dataclass(frozen=True)
class CreditLine:
    """Money given back, and why."""

    micros: int
    reason: str
    at: datetime


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
    credits: Sequence[CreditLine]
    end_reason: str
    kwh: float
    g_co2: float
    estimated: bool

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

    @property
    def gpu_seconds(self) -> int:
        return sum(line.gpu_seconds for line in self.lines)

    @property
    def charged(self) -> int:
        return sum(line.charge for line in self.lines)

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
    return Receipt(job.pk, [_line(share) for share in shares], job.budget_micros)


def _line(share: Assignment) -> ReceiptLine:
    slices = list(share.slices.all())
    charge = sum(piece.charge_micros for piece in slices)
    fee = sum(piece.fee_micros for piece in slices)
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
        charge=charge,
        fee=fee,
        earnings=charge - fee,
        take_bps=share.take_bps,
        credits=[
            CreditLine(credit.micros, credit.reason, credit.at) for credit in share.credits.all()
        ],
        end_reason=share.lease.end_reason,
        kwh=used.kwh,
        g_co2=used.grams_co2(share.node.site.carbon_g_per_kwh),
        estimated=used.estimated,
    )


def _energy(share: Assignment) -> energy.Energy:
    """As the node measured it; else as it estimated; else from the class's data sheet."""
    drawn = share.millijoules
    if not drawn:
        cores = share.node.cpu_cores if is_cpu(share.lease.gpu_class) else 1
        watts = energy.watts(share.lease.gpu_class, cores=cores)
        drawn = watts * share.gpus_count * share.accrued_ms
    return energy.at_the_wall(drawn, pue=share.node.site.pue, estimated=not share.power_measured)
