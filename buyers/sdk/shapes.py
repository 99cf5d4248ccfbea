"""What the market answers, as typed values. Money in micros (millionths), memory in bytes.

Fields that a newer market adds are passed over, so an older SDK goes on working.
"""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

from buyers.sdk.waiting import Told

MICRO: Final = 1_000_000


class Wallet(Struct, frozen=True):
    """What can be spent; `held_micros` is in escrow for jobs, and what is unused comes back."""

    currency: str
    balance_micros: int
    held_micros: int


class Transfer(Struct, frozen=True):
    """A line of the wallet's statement."""

    id: UUID
    at: datetime
    kind: str
    change_micros: int
    reference: UUID


class Dataset(Struct, frozen=True):
    """One version of a dataset, or of a project's code."""

    id: UUID
    name: str
    version: int
    bytes: int
    rows: int
    sha256: str
    files: int
    committed_at: datetime | None
    state: str = "ready"
    detail: str = ""
    kinds: list[str] = []


class Part(Struct, frozen=True):
    """The rows of one part of a dataset, and the first of them, shortened."""

    rows: int
    first: list[Any]


class Report(Dataset, frozen=True):
    """A version with what was found in it: train, heldout, domains/<name>."""

    parts: dict[str, Part] = {}


class Put(Struct, frozen=True):
    """Where a file goes."""

    url: str
    headers: dict[str, str]


class Begun(Struct, frozen=True):
    """A declared version: `puts` are the files that are still to be sent."""

    id: UUID
    committed_at: datetime | None
    puts: dict[str, Put]


class File(Struct, frozen=True):
    """A file of a folder; `url` reads it for some minutes."""

    path: str
    bytes: int
    sha256: str
    url: str = ""


class Folder(Struct, frozen=True):
    """A manifest: of an artifact, a dataset, a checkpoint."""

    id: UUID
    name: str
    bytes: int
    sha256: str
    files: list[File]


class Artifact(Struct, frozen=True):
    """A model: a job's result, or a public base."""

    id: UUID
    name: str
    public: bool
    licence: str
    bytes: int
    sha256: str
    job: UUID | None
    lineage: dict[str, Any]
    created_at: datetime
    state: str = "kept"
    source: str = ""


class Base(Artifact, frozen=True):
    """A model to start from that no job made here; `accepted`: its licence, by your org."""

    accepted: bool = True


class Measured(Struct, frozen=True):
    """One domain before and after; `dropped`: worse by more than its margin."""

    name: str
    measure: str
    rows: int
    before: float | None
    after: float | None
    margin: float
    dropped: bool


class Model(Struct, frozen=True):
    """What a model can do, and what it took (`card`, Markdown)."""

    id: UUID
    name: str
    state: str
    measured: list[Measured]
    card: str


class Fetch(Struct, frozen=True):
    """A base on its way from a hub; `detail` says what it waits for, or why it was refused."""

    id: UUID
    hub: str
    repo: str
    revision: str
    commit: str
    state: str
    detail: str
    licence: str
    bytes_done: int
    bytes_total: int
    artifact: UUID | None

    @property
    def rests(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in {"ready", "refused"}


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


class TopUp(Struct, frozen=True):
    """The page on which a person pays."""

    url: str


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


class RecipeInput(Struct, frozen=True):
    """What a recipe reads."""

    name: str
    required: bool
    help: str


class Recipe(Struct, frozen=True):
    """What can be run; `parameters` is a JSON Schema."""

    inputs: list[RecipeInput]
    parameters: dict[str, Any]
    about: str = ""


class Problem(Struct, frozen=True):
    """The body of every no."""

    code: str
    message: str
    field: str = ""
