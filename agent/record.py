"""What the agent knows of one assignment, on the disk so that a killed agent goes on with it."""

from pathlib import Path
from uuid import UUID

import msgspec
from msgspec import Struct

from agent import order as files
from agent.protocol import Drain, Exit, Status, Wanted
from agent.reconcile import Held
from agent.tails import LogPlace

_FILE = "assignment.json"
SPEC = "spec.json"


class Unreadable(ValueError):
    """A record that this agent can't go on with; says why."""


class Record(Struct, kw_only=True):
    """`assignment.json`. Times in milliseconds; `*_up_ms` of the boot clock of `boot_id`."""

    id: UUID
    epoch: int
    spec: str
    """SHA-256 of `spec.json`."""
    paid_through_ms: int
    boot_id: str
    accepted_up_ms: int
    # What has been asked of it.
    drain: Drain | None = None
    leave_by_up_ms: int = 0
    """When the longest of the drains' patience is over; 0 before any."""
    is_abandoned: bool = False
    # How far it has come.
    is_hung: bool = False
    step: int = 0
    checkpoint: int | None = None
    """Step of the last one that the market has committed."""
    saved_ns: int = 0
    """When that one was written (ctime)."""
    detail: str = ""
    metrics_offset: int = 0
    stdout: LogPlace = msgspec.field(default_factory=LogPlace)
    stderr: LogPlace = msgspec.field(default_factory=LogPlace)
    # How it ended.
    is_gone: bool = False
    ran_ms: int = 0
    exit: Exit | None = None
    is_claimed: bool = False
    """Its last claim has been signed."""
    is_artifact_sent: bool = False
    is_log_sent: bool = False
    is_settled: bool = False

    def held(self) -> Held:
        """As `reconcile` sees it."""
        return Held(
            epoch=self.epoch,
            paid_through_ms=self.paid_through_ms,
            drain=self.drain,
            is_gone=self.is_gone,
            is_settled=self.is_settled,
            is_abandoned=self.is_abandoned,
        )

    def gone_status(self) -> Status:
        """As the market is told once it is gone."""
        return Status(
            id=self.id,
            epoch=self.epoch,
            state="gone",
            running_ms=self.ran_ms,
            step=self.step,
            checkpoint=self.checkpoint,
            exit=self.exit,
            settled=self.is_settled,
            detail=self.detail[:2000],
        )


def accept(assignments: Path, wanted: Wanted) -> tuple[Path, Record]:
    """The folder of an assignment just taken up, and its record."""
    folder = assignments / str(wanted.id)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    record = Record(
        id=wanted.id,
        epoch=wanted.epoch,
        spec=wanted.spec,
        paid_through_ms=wanted.paid_through_ms,
        boot_id=files.boot_id(),
        accepted_up_ms=files.up_ms(),
    )
    files.write_paid_through(folder, wanted.paid_through_ms)
    save(folder, record)
    return folder, record


def folders(assignments: Path) -> list[Path]:
    """Those of all assignments that the node has, the oldest id first."""
    return sorted(folder for folder in assignments.iterdir() if folder.is_dir())


def load(folder: Path) -> Record:
    """The record of a folder; raises Unreadable."""
    try:
        record = msgspec.json.decode((folder / _FILE).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"{folder / _FILE}: {error}") from None
    if folder.name != str(record.id):
        raise Unreadable(f"{folder / _FILE} is about another assignment, {record.id}")
    return record


def save(folder: Path, record: Record) -> None:
    """Replaces the record atomically."""
    files.replace(folder / _FILE, msgspec.json.encode(record))
