"""What was uploaded, looked through: all of it there, as declared, and rows that a recipe reads.

Small versions are looked at while their buyer waits. Larger ones, and all Parquet, are `checking`
until a worker has (`work`): then `ready`, or `refused` with the file, the row and the reason.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.db import transaction

from agent import protocol
from agent.recipes import formats
from agent.recipes.formats import Kind
from buyers import parquet, rows
from buyers.models import Dataset
from marketplace import storage
from marketplace.core.errors import Conflict, Invalid, MarketError, TooLarge, Unavailable

log = logging.getLogger(__name__)

# Looking at one object is one round trip; so many are under way at once.
_LOOKS: Final = 16
_FEW: Final = 200
"""So many files are looked at while a buyer waits: a second or two."""


@dataclass
class Findings:
    """What a version holds, by its parts: train, heldout, domains/<name>."""

    parts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[object]] = field(default_factory=dict)
    kinds: list[Kind] = field(default_factory=list)


def at_once(files: Sequence[protocol.File]) -> bool:
    """Whether these files may be looked at while somebody waits."""
    small = sum(file.bytes for file in files) <= settings.POLICY.check_bytes
    parsed = any(formats.part_of(f.path) and f.path.endswith(".parquet") for f in files)
    return small and len(files) <= _FEW and not parsed


def require_fit(files: Sequence[protocol.File]) -> None:
    """Before a byte is sent: raises Invalid for files that no check would pass."""
    paths = [file.path for file in files]
    try:
        formats.domains(paths)
        for part in {formats.part_of(path) for path in paths} - {""}:
            formats.file_of(part, paths)
    except ValueError as error:
        raise Invalid(f"this can't be a dataset: {error}", field="files") from None
    most = settings.POLICY.parquet_bytes
    for file in files:
        part = formats.part_of(file.path)
        if part and not file.bytes:
            raise Invalid(f"{file.path} has no rows; put at least one into it", field="files")
        if part and file.path.endswith(".parquet") and file.bytes > most:
            raise TooLarge(
                f"a Parquet file has at most {most / 2**30:.4g} GiB, {file.path} has "
                f"{file.bytes / 2**30:.4g}; send it as .jsonl, or less of it",
                field="files",
            )


def look(dataset: Dataset, files: Sequence[protocol.File]) -> Findings:
    """Looks through a version. Raises Conflict for files that are not there as declared, Invalid
    for rows that no recipe reads. Reads from the network: not for use in a transaction."""
    until = time.monotonic() + settings.POLICY.check_s
    _require_all(dataset, files)
    found = Findings()
    common: frozenset[Kind] | None = None
    for file in files:
        part = formats.part_of(file.path)
        if not part:
            continue
        report = _report(dataset, file, until)
        found.parts[part], found.first[part] = report.rows, report.first
        both = report.kinds if common is None else common & report.kinds
        if not both:
            raise Invalid(
                f"{file.path} has rows of {_named(report.kinds)}, the other files of "
                f"{_named(common or frozenset())}; a dataset has rows of one kind",
                field="files",
            )
        common = both
    found.kinds = sorted(common or ())
    return found


def work(clock: Callable[[], datetime]) -> None:
    """Looks through all versions that wait for it. One flight at a time: what lies on the
    scratch disk when it begins, a worker that was killed has left."""
    for left in settings.SCRATCH_DIR.glob("*.parquet"):
        left.unlink(missing_ok=True)
    for dataset in Dataset.objects.checking().order_by("state_since"):
        try:
            _work_on(dataset, clock)
        except Conflict:
            log.info("the check of %s is left: it was discarded meanwhile", dataset.pk)


def _work_on(dataset: Dataset, clock: Callable[[], datetime]) -> None:
    try:
        found = look(dataset, [protocol.File(**entry) for entry in dataset.manifest])
    except (Unavailable, OSError) as error:
        # Ours, not theirs: the next bell tries again.
        log.warning("the check of %s waits: %s", dataset.pk, error)
    except MarketError as error:
        refuse(dataset, str(error), now=clock())
    else:
        settle(dataset, found, now=clock())


@transaction.atomic
def settle(dataset: Dataset, found: Findings, *, now: datetime) -> Dataset:
    """Makes a version usable; raises Conflict if somebody was first."""
    dataset.advance(
        "commit",
        now=now,
        committed_at=now,
        parts=found.parts,
        kinds=found.kinds,
        preview=found.first,
        detail="",
    )
    dataset.rows = sum(found.parts.values())
    dataset.save(update_fields=["rows"])
    return dataset


@transaction.atomic
def refuse(dataset: Dataset, why: str, *, now: datetime) -> None:
    """Keeps the reason with the version, where its page shows it."""
    dataset.advance("refuse", now=now, reason=why, detail=why[:1000])


def _report(dataset: Dataset, file: protocol.File, until: float) -> rows.Report:
    key = storage.file_key(dataset.prefix, file.sha256)
    if not file.path.endswith(".parquet"):
        return rows.check(rows.decoded(storage.read(key), file.path), file.path, until=until)
    folder: Path = settings.SCRATCH_DIR
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Its index is at its end, so it is read from a disk.
    copy = folder / f"{dataset.pk}-{file.sha256}.parquet"
    try:
        with copy.open("wb") as out:
            for chunk in storage.read(key):
                out.write(chunk)
        return rows.check(parquet.rows(copy, file.path, until=until), file.path, until=until)
    finally:
        copy.unlink(missing_ok=True)


def _named(kinds: frozenset[Kind]) -> str:
    return " or ".join(sorted(kinds)) or "nothing"


def _require_all(dataset: Dataset, files: Sequence[protocol.File]) -> None:
    """Raises Conflict naming files that are not in our storage as declared."""
    with ThreadPoolExecutor(_LOOKS) as pool:
        looks = pool.map(lambda file: _wrong(dataset.prefix, file), files)
        wrong: Mapping[str, str] = {
            file.path: why for file, why in zip(files, looks, strict=True) if why
        }
    if wrong:
        first = "; ".join(f"{path} {why}" for path, why in list(wrong.items())[:3])
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Conflict(f"nothing was committed: {first}{more}. Send what is missing again")


def _wrong(prefix: str, file: protocol.File) -> str:
    """What is wrong with one object; empty if it is as declared."""
    key = storage.file_key(prefix, file.sha256)
    found = storage.stat(key)
    if found is None:
        return "has not arrived"
    if found.bytes != file.bytes:
        return f"has {found.bytes:,} bytes instead of {file.bytes:,}"
    if (found.sha256 or _hash(key)) != file.sha256:
        return "has another hash than declared"
    return ""


def _hash(key: str) -> str:
    """For storage that keeps no checksum: read it all."""
    digest = sha256()
    for chunk in storage.read(key):
        digest.update(chunk)
    return digest.hexdigest()


def as_json(dataset: Dataset) -> dict[str, Any]:
    """What was found in a version, part by part, for its page and the API."""
    return {
        part: {"rows": count, "first": dataset.preview.get(part, [])}
        for part, count in sorted(dataset.parts.items(), key=lambda each: _order(each[0]))
    }


def _order(part: str) -> tuple[int, str]:
    """Train first, then what it is measured on."""
    named = (formats.TRAIN, formats.HELD_OUT)
    return (named.index(part) if part in named else len(named), part)
