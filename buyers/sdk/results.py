"""What the market answers, typed. Money is integer micros (millionths of the currency).

Fields that this version doesn't know are passed over, so that an older client goes on working
with a newer market.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct


class Wallet(Struct, frozen=True):
    """What can be spent, and what is held for jobs."""

    currency: str
    balance_micros: int
    held_micros: int


class Dataset(Struct, frozen=True):
    """One version of a dataset or of code."""

    id: UUID
    name: str
    version: int
    bytes: int
    rows: int
    sha256: str
    committed_at: datetime | None


class Line(Struct, frozen=True):
    """One line of a quoted cost."""

    label: str
    micros_low: int
    micros: int
    micros_high: int


class Option(Struct, frozen=True):
    """One way to run a job. What doesn't fit says `why`."""

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


class Quote(Struct, frozen=True):
    """All options, best first; their prices hold until `expires_at`."""

    id: UUID
    options: list[Option]
    expires_at: datetime


class Place(Struct, frozen=True):
    """One node's part in the current attempt."""

    node: str
    site: str
    region: str
    supplier: str
    sandbox: str
    gpus: int
    state: str
    detail: str


class Lease(Struct, frozen=True):
    """One attempt at a job."""

    epoch: int
    state: str
    gpu_class: str
    gpus: int
    price_micros: int
    running_at: datetime | None
    ended_at: datetime | None
    end_reason: str
    end_detail: str


class Job(Struct, frozen=True):
    """A job as it now is; `words` says its state in a sentence."""

    id: UUID
    name: str
    state: str
    words: str
    recipe: str
    created_at: datetime
    state_since: datetime
    budget_micros: int
    spent_micros: int
    step: int
    total_steps: int
    lease: Lease | None = None
    nodes: list[Place] = []
    artifact: UUID | None = None

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in ("succeeded", "failed", "cancelled", "stopped")


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


class Update(Struct, frozen=True):
    """A job as it now is, and the points of its curves since the last update."""

    job: Job
    points: list[dict[str, Any]]


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


class Receipt(Struct, frozen=True):
    """What a job cost; `total_micros` is what was paid in the end."""

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


class Artifact(Struct, frozen=True):
    """A model: a job's result, or a public base."""

    id: UUID
    name: str
    public: bool
    licence: str
    bytes: int
    sha256: str
    job: UUID | None


class StoryLine(Struct, frozen=True):
    """One thing that happened to a job."""

    at: datetime
    event: str
    source: str
    target: str
    reason: str
    by: str


class RemoteFile(Struct, frozen=True):
    """A file of a folder in the market's storage."""

    path: str
    bytes: int
    sha256: str
    url: str


class Folder(Struct, frozen=True):
    """A folder's manifest, its files readable by their URLs for a while."""

    id: UUID
    name: str
    bytes: int
    sha256: str
    files: list[RemoteFile]
