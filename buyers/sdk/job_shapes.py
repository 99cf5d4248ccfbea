"""What the market answers of jobs, quotes and receipts, as typed values. Money in micros, memory in
bytes; what a newer market adds is passed over, and what an older one lacks has a default.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct

from buyers.sdk.waiting import Held, Told


class Line(Struct, frozen=True):
    """One line of a quoted cost."""

    label: str
    micros_low: int
    micros: int
    micros_high: int


class Option(Struct, frozen=True):
    """One way to run a job. `why` says what keeps it from fitting, where it doesn't."""

    index: int
    fits: bool
    why: str
    node: str
    site: str
    supplier: str
    region: str
    trust: str
    tier: str
    gpu_class: str
    gpus: int
    price_micros: int
    seconds_low: float
    seconds: float
    seconds_high: float
    lines: list[Line]
    total_low: int
    total: int
    total_high: int
    kwh: float
    g_co2: float
    notice_s: int
    sandbox: str
    environment: str
    memory_bytes: int
    premium_bps: int = 0
    premium_micros: int = 0
    """Of the price."""


class Quote(Struct, frozen=True):
    """The best ways to run a job, the cheapest first; the prices hold until `expires_at`."""

    id: UUID
    options: list[Option]
    created_at: datetime
    expires_at: datetime
    taken_at: datetime | None
    job: UUID | None

    @property
    def best(self) -> Option | None:
        """The cheapest option that fits, if one does."""
        return next((option for option in self.options if option.fits), None)


class Lease(Struct, frozen=True):
    """One attempt at a job, at one price per GPU-hour."""

    epoch: int
    state: str
    gpu_class: str
    gpus: int
    price_micros: int
    running_at: datetime | None
    end_reason: str
    end_detail: str
    premium_micros: int = 0
    """Of the price."""


class Node(Struct, frozen=True):
    """One node's part in an attempt."""

    node: str
    site: str
    region: str
    supplier: str
    sandbox: str
    gpus: int
    state: str
    detail: str


class JobRow(Struct, frozen=True):
    """A job as lists show it."""

    id: UUID
    name: str
    state: str
    recipe: str
    created_at: datetime
    budget_micros: int
    spent_micros: int
    step: int
    total_steps: int


class Job(JobRow, frozen=True):
    """A job with its live figures; `words` is its state in a sentence."""

    words: str
    may: list[str]
    lease: Lease | None
    nodes: list[Node]
    artifact: UUID | None
    parameters: dict[str, Any]
    told: Told | None = None
    service: str = "protected"
    """Or interruptible: the market may displace it."""
    premium_bps: int = 0
    """On top of the market's price, basis points."""
    held: Held | None = None

    @property
    def rests(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in {"succeeded", "failed", "cancelled", "stopped"}


class Update(Struct, frozen=True):
    """A job as it is now, and what its curves have gained: {"step", "epoch", "loss", …}."""

    job: Job
    points: list[dict[str, float]]


class Change(Struct, frozen=True):
    """One line of a job's story."""

    at: datetime
    event: str
    source: str
    target: str
    reason: str
    by: str


class Checkpoint(Struct, frozen=True):
    """A state that a job can go on from."""

    id: UUID
    epoch: int
    step: int
    bytes: int
    sha256: str
    committed_at: datetime
    deleted_at: datetime | None


class Credit(Struct, frozen=True):
    """Money given back, and why."""

    micros: int
    reason: str


class ReceiptLine(Struct, frozen=True):
    """One node's share of one attempt."""

    epoch: int
    node: str
    supplier: str
    gpu_class: str
    gpus: int
    seconds: int
    gpu_seconds: int
    price_micros: int
    charge_micros: int
    fee_micros: int
    earnings_micros: int
    take_bps: int
    credits: list[Credit]
    end_reason: str
    kwh: float
    g_co2: float
    estimated: bool
    premium_micros: int = 0
    """Of the price."""
    premium_charged_micros: int = 0
    """Of the charge."""


class Receipt(Struct, frozen=True):
    """What a job cost; `estimated` is said of the energy."""

    lines: list[ReceiptLine]
    budget_micros: int
    gpu_seconds: int
    charged_micros: int
    credited_micros: int
    total_micros: int
    fees_micros: int
    earnings_micros: int
    kwh: float
    g_co2: float
    estimated: bool
    premium_bps: int = 0
    premium_charged_micros: int = 0
    """Of what was charged, before credits."""


class Points(Struct, frozen=True):
    """A piece of a job's curves, and where to go on from."""

    points: list["Point"]
    next: str


class Point(Struct, frozen=True):
    """What one attempt reported at one step."""

    epoch: int
    step: int
    values: dict[str, float]


class Log(Struct, frozen=True):
    """The end of a job's output."""

    text: str
