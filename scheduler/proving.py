"""What a record proves: to each party that its own rows stood in a round, and to anybody, once the
round is released, that all of it is right.
"""

import functools
import io
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np
from django.conf import settings

from buyers.models import Job
from marketplace import storage
from marketplace.core.errors import Conflict, Missing, TooLarge, Unavailable
from scheduler import archive
from scheduler.matching import proofs, verify
from scheduler.matching.book import Book
from scheduler.matching.check import VERSION
from scheduler.matching.proofs import Proof, Tree
from scheduler.matching.verify import Released
from scheduler.models import Assignment, Lease
from scheduler.numbering import numbers, salting_key
from scheduler.record_models import Record
from suppliers.models import Node

log = logging.getLogger(__name__)

CHECKED_HERE: Final = 300_000
"""Rounds of more rows are for others to check: one of 60,000 takes six seconds of a free core, and
five times the rows take up to 25 times as long."""
_CHECK_S: Final = 1200
_WAITING: Final = 20
"""Most rounds that wait to be checked."""
_SAID: Final = 2000
"""Characters of a check's output that are kept."""


@dataclass(frozen=True)
class Proven:
    """One party's row in one round."""

    round: UUID
    at: datetime
    proof: Proof

    def as_json(self) -> dict[str, Any]:
        """As a file that anybody can check: `python -m scheduler.matching prove`."""
        return {"round": str(self.round), "at": self.at.isoformat(), **asdict(self.proof)}


def of_job(job: Job, *, round: UUID | None = None) -> Proven:
    """The job's row in a round, else in the one that placed it last, else in the newest.

    Raises Missing where there is none, Conflict while the round's root is being made, Unavailable.
    """
    placed = Lease.objects.filter(job=job, round__record__isnull=False).order_by("-epoch")
    return _proven(_record(round, placed.values_list("round", flat=True).first()), job.pk)


def of_node(node: Node, *, round: UUID | None = None) -> Proven:
    """The node's row in a round, else in the one that let it last, else in the newest; as `of_job`."""
    let = Assignment.objects.filter(node=node, lease__round__record__isnull=False)
    last = let.order_by("-lease__epoch").values_list("lease__round", flat=True).first()
    return _proven(_record(round, last), node.pk)


def can_check(record: Record) -> bool:
    """Whether somebody may ask for a check that would tell more than is known."""
    kept = record.released_at is not None and record.forgotten_at is None
    return kept and record.leaves <= CHECKED_HERE and record.checker != VERSION


def want_check(record: Record, *, now: datetime) -> None:
    """Has a released round checked, unless it was by these rules. Raises Conflict, TooLarge."""
    if record.released_at is None or record.forgotten_at is not None:
        raise Conflict("only rounds that are released, and still kept, can be checked")
    if record.leaves > CHECKED_HERE:
        raise TooLarge(
            f"this round has {record.leaves} rows, and rounds of up to {CHECKED_HERE} are checked"
            " here; download the two files and run the command"
        )
    if not can_check(record) or record.is_waiting:
        return
    if Record.objects.to_check().exclude(pk=record.pk).count() >= _WAITING:
        raise Conflict("many rounds wait to be checked; come back in some minutes")
    Record.objects.filter(pk=record.pk).update(wanted_at=now)


def check(*, now: datetime) -> bool:
    """Checks the round that has waited longest for it, by the very command that its page names, in
    a process of its own; whether it was."""
    record = Record.objects.to_check().order_by("wanted_at").select_related("round").first()
    if record is None:
        return False
    try:
        with tempfile.TemporaryDirectory(prefix="round-") as folder:
            is_right, said = _run(_files(record, Path(folder)))
    except Unavailable as error:
        log.warning("round %s is checked later: %s", record.pk, error)
        Record.objects.filter(pk=record.pk).update(wanted_at=now)
        return False
    Record.objects.filter(pk=record.pk).update(
        checked_at=now, checker=VERSION, is_right=is_right, found=said[:_SAID]
    )
    if not is_right:
        log.error("the check of round %s says: %s", record.pk, said[:_SAID])
    return True


def published(record: Record) -> dict[str, Any]:
    """What the command needs of a released round beside its two files."""
    round = record.round
    return asdict(
        verify.Published(
            book_sha256=round.book_sha256, matches_sha256=record.matches_sha256, root=record.root,
            leaves=record.leaves, salting_key=archive.salting_key_of(record), seed=round.seed,
            matched_jobs=round.matched_jobs, matched_gpus=round.matched_gpus,
            welfare=round.welfare, bound=round.bound, make_whole=round.make_whole,
        )
    )  # fmt: skip


def _files(record: Record, folder: Path) -> Sequence[Path]:
    """ROUND.json and its two files, laid into a folder."""
    said = folder / "ROUND.json"
    said.write_text(json.dumps(published(record)), encoding="utf-8")
    made = [said]
    for name, key in archive.file_keys(record).items():
        with (folder / name).open("wb") as file:
            file.writelines(storage.read(key))
        made.append(folder / name)
    return made


def _run(files: Sequence[Path]) -> tuple[bool | None, str]:
    """Whether all is right, None if it can't be told; and what was said."""
    told = [sys.executable, "-m", "scheduler.matching", "verify", *map(str, files)]
    try:
        done = subprocess.run(
            told, capture_output=True, text=True, timeout=_CHECK_S, cwd=settings.BASE_DIR
        )
    except subprocess.TimeoutExpired:
        return None, f"it was broken off after {_CHECK_S // 60} minutes"
    return (done.returncode == 0 if done.returncode in (0, 1) else None), done.stdout + done.stderr


def _record(asked: UUID | None, last: UUID | None) -> Record:
    chosen = asked or last
    if chosen is not None:
        record = Record.objects.filter(pk=chosen).first()
    else:
        record = Record.objects.order_by("-at").first()
    if record is None:
        raise Missing("there is no such round, or it kept no record")
    return record


def _proven(record: Record, pk: UUID) -> Proven:
    if not record.root:
        raise Conflict("the root of this round is being made; ask again in some seconds")
    if record.forgotten_at is not None:
        raise Missing("the book of this round is no longer kept")
    kept = _leaves(record.pk)
    number = numbers(bytes(record.secret), [str(pk)])[0]
    index = _index(kept.book, number)
    if index is None:
        raise Missing("it was not in the book of this round")
    return Proven(record.pk, record.at, proofs.prove(kept.tree, kept.content, index))


def _index(book: Book, number: np.uint64) -> int | None:
    """The leaf of the row of this number: jobs first."""
    for ids, first in ((book.job_id, 0), (book.node_id, book.jobs)):
        found = np.flatnonzero(ids == number)
        if len(found):
            return first + int(found[0])
    return None


@dataclass(frozen=True)
class _Leaves:
    book: Book
    content: Sequence[bytes]
    tree: Tree


@functools.lru_cache(maxsize=2)
def _leaves(pk: UUID) -> _Leaves:
    """A round's leaves never change. They take a second to make where it is large."""
    record = Record.objects.get(pk=pk)
    released = _kept(record)
    key = salting_key(bytes(record.secret))
    content = proofs.leaves(released.book, released.matches, released.dropped, key)
    return _Leaves(released.book, content, Tree(content))


def _kept(record: Record) -> Released:
    if record.raw is not None:
        return archive.read(bytes(record.raw))[0]
    files = [io.BytesIO(b"".join(storage.read(key))) for key in archive.file_keys(record).values()]
    return verify.read_released(*files)
