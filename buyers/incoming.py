"""One file of a base on its way: from the hub to the scratch disk, checked, to our storage.

The scratch file outlives the worker, so that what was received of many gigabytes is gone on with.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

from django.conf import settings

from buyers import hub as hubs
from buyers.hub import Hub, RemoteFile
from buyers.hub_models import Fetch
from marketplace import storage
from marketplace.core.errors import Conflict, Invalid, Unavailable

Clock = Callable[[], datetime]

MOST_JSON: Final = 32 * 2**20
"""Bytes of the largest file whose size the hub doesn't tell: they are all JSON or text."""
_MOST_HEADER: Final = 100 * 2**20
"""safetensors' own limit on the header of a file."""
_TELL_S: Final = 1.0
_SPARE: Final = 2**30
"""Bytes that stay free on the scratch disk."""


class Paused(Exception):
    """Its time is up for now; what was received is kept."""


def sweep() -> None:
    """Removes the scratch files of fetches that have ended, however they did."""
    under_way = {str(pk) for pk in Fetch.objects.under_way().values_list("pk", flat=True)}
    for part in settings.SCRATCH_DIR.glob("*.part"):
        if part.name.rpartition("-")[0] not in under_way:
            part.unlink(missing_ok=True)


@dataclass
class Transfer:
    """One file on its way: from the hub to the scratch disk, checked, to our storage."""

    fetch: Fetch
    index: int
    hub: Hub
    clock: Clock
    until: datetime

    def __post_init__(self) -> None:
        entry = {key: value for key, value in self._entry.items() if key != "done"}
        self._file = RemoteFile(**entry)
        self._told = self.clock()

    def run(self) -> None:
        """Raises Unavailable to be tried again, Invalid for a file that can't be a base's."""
        folder: Path = settings.SCRATCH_DIR
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = folder / f"{self.fetch.pk}-{self.index}.part"
        free = shutil.disk_usage(folder).free
        have = part.stat().st_size if part.exists() else 0
        if self._file.bytes - have > free - _SPARE:
            raise Unavailable(
                f"the market's scratch disk has {free / 2**30:.3g} GiB free, and "
                f"{self._file.path} needs {self._file.bytes / 2**30:.3g}"
            )
        try:
            self._receive(part)
        except hubs.Conflicted:
            part.unlink(missing_ok=True)
            raise
        self._keep(part)

    @property
    def _entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = self.fetch.files[self.index]
        return entry

    def _receive(self, part: Path) -> None:
        """Brings the scratch file to its whole length."""
        have = part.stat().st_size if part.exists() else 0
        if have and have == self._file.bytes:
            return
        with self.hub.stream(
            self.fetch.repo, self.fetch.commit, self._file, start=have
        ) as stream, part.open("ab") as out:  # fmt: skip
            self._file = stream.file
            out.truncate(stream.start)
            have = stream.start
            for chunk in stream.chunks:
                out.write(chunk)
                have += len(chunk)
                if have > (self._file.bytes or MOST_JSON):
                    raise Unavailable(f"the hub sends more of {self._file.path} than it told")
                self._tell(have)
        if self._file.bytes and have < self._file.bytes:
            raise Unavailable(f"the hub broke off in {self._file.path}")

    def _keep(self, part: Path) -> None:
        """Checks the whole file against what the hub says of it, and sends it to our storage."""
        size = part.stat().st_size
        with part.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
            content.seek(0)
            wrong = self._wrong(sha256, size, content)
            if wrong:
                part.unlink()
                raise Unavailable(f"{self._file.path} came with another {wrong} than the hub says")
            if self._file.path.endswith(".safetensors"):
                content.seek(0)
                _require_safetensors(self._file.path, content.read(9), size)
            content.seek(0)
            storage.put(storage.file_key(storage.base_prefix(self.fetch.pk), sha256), content)
        self._entry.update(asdict(replace(self._file, bytes=size, sha256=sha256)), done=True)
        done = sum(entry["bytes"] for entry in self.fetch.files if entry["done"])
        self._write(files=self.fetch.files, bytes_done=done, failures=0, detail="")
        part.unlink()

    def _wrong(self, sha256: str, size: int, content: IO[bytes]) -> str:
        """In what it differs from what the hub says of it; empty if in nothing."""
        if self._file.bytes and self._file.bytes != size:
            return "size"
        if self._file.sha256:
            return "" if self._file.sha256 == sha256 else "hash"
        if len(self._file.git_sha1) == 40:
            # Git's way to name content: SHA-1 is for finding damage here, not forgery.
            found = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            while chunk := content.read(2**20):
                found.update(chunk)
            return "" if found.hexdigest() == self._file.git_sha1 else "hash"
        return ""

    def _tell(self, have: int) -> None:
        """Progress, now and then; raises Conflict if the fetch was ended meanwhile, Paused if
        others shall have their turn."""
        now = self.clock()
        if (now - self._told).total_seconds() < _TELL_S:
            return
        self._told = now
        done = sum(entry["bytes"] for entry in self.fetch.files if entry["done"])
        self._write(bytes_done=done + have, detail="")
        if now > self.until:
            raise Paused

    def _write(self, **values: Any) -> None:
        if not Fetch.objects.under_way().filter(pk=self.fetch.pk).update(**values):
            raise Conflict("it was ended meanwhile")
        for name, value in values.items():
            setattr(self.fetch, name, value)


def _require_safetensors(path: str, start: bytes, size: int) -> None:
    """Eight bytes of length, then a JSON header: a renamed pickle begins otherwise."""
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or not 2 <= length <= min(_MOST_HEADER, size - 8) or start[8:] != b"{":
        raise Invalid(f"{path} is no safetensors file; take another revision or base")
