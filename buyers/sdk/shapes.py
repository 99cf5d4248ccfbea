"""What the market answers, as typed values. Money in micros (millionths), memory in bytes.

Fields that a newer market adds are passed over, so an older SDK goes on working.
"""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

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


class TopUp(Struct, frozen=True):
    """The page on which a person pays."""

    url: str


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
