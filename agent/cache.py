"""Files by their SHA-256, kept on the node so that a job's next start fetches nothing.

Public files are shared by all orgs; what belongs to one org is seen by its jobs alone. A file has
its name only once its hash has been found right; it is linked into a job's inputs, read-only.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from agent.protocol import File, paths
from agent.sandbox import workspace

_STALE_S: Final = 24 * 3600
_READ_ONLY: Final = 0o444


class BadInput(RuntimeError):
    """An input can't be had as its manifest says; the message names the file."""


class NoRoom(RuntimeError):
    """The disk is too full for what must be fetched."""


@dataclass(frozen=True)
class Shelf:
    """The part of the cache that one job may see."""

    root: Path
    org: UUID
    public: bool

    def find(self, file: File) -> Path | None:
        """The file, if it is there; marks it as used."""
        for path in (self._public / file.sha256, self._own / file.sha256):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size == file.bytes:
                    os.utime(path)
                    return path
        return None

    def partial(self, file: File) -> Path:
        """Where it is collected until it is whole."""
        folder = self._folder.with_name("partial")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder / file.sha256

    def keep(self, file: File) -> Path:
        """Takes in the partial file, which must have been found whole and right."""
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        partial, path = self.partial(file), self._folder / file.sha256
        partial.chmod(_READ_ONLY)
        os.replace(partial, path)
        return path

    @property
    def _public(self) -> Path:
        return self.root / "sha256"

    @property
    def _own(self) -> Path:
        return self.root / "orgs" / str(self.org) / "sha256"

    @property
    def _folder(self) -> Path:
        return self._public if self.public else self._own


def lay_out(found: dict[str, Path], files: list[File], into: Path) -> None:
    """Makes the folder `into` of links to cached files, all at once.

    found: path in the manifest → cached file. Raises BadInput for a name or path that leads
    elsewhere, and for files that can't lie in one folder.
    """
    if why := paths.fault_of_name(into.name) or paths.fault_of_paths(file.path for file in files):
        raise BadInput(why)
    beside = into.with_name(f".{into.name}.making")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(mode=0o755, parents=True)
    for file in files:
        target = beside / file.path
        for folder in reversed(target.relative_to(beside).parents):
            (beside / folder).mkdir(mode=0o755, exist_ok=True)
        os.link(found[file.path], target)
    if into.exists():
        shutil.rmtree(into)
    beside.rename(into)


def make_room(root: Path, needed: int) -> None:
    """Removes what no job uses, the longest unused first, until `needed` bytes are free beyond
    the reserve; raises NoRoom."""
    missing = needed + workspace.RESERVE_BYTES - workspace.free_bytes(root)
    if missing <= 0:
        return
    for path, info in sorted(_unused(root), key=lambda found: found[1].st_mtime):
        path.unlink(missing_ok=True)
        missing -= info.st_blocks * 512
        if missing <= 0:
            return
    raise NoRoom(
        f"{missing >> 20} MiB are missing on the disk of {root} to fetch what the job reads"
    )


def sweep(root: Path) -> None:
    """Removes partial files that nobody has gone on with for a day."""
    for path in root.rglob("partial/*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()


def _unused(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in root.rglob("sha256/*"):
        info = path.stat()
        if info.st_nlink == 1:
            yield path, info
