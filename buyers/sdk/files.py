"""Folders up and down: hashed, sent by presigned URLs, gone on with where they broke off."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import httpx
from msgspec import Struct

from buyers.sdk.errors import Damaged, GridloomError, Unreachable
from buyers.sdk.results import RemoteFile

_CHUNK: Final = 1 << 20
_TRIES: Final = 5
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
Tell = Callable[[int], None]
"""Is told how many more bytes have passed."""


class LocalFile(Struct, frozen=True):
    """A file about to be sent."""

    path: str
    bytes: int
    sha256: str


def scan(folder: Path) -> list[LocalFile]:
    """All files beneath, with their hashes. Raises GridloomError if there is none."""
    if folder.is_file():
        return [_local(folder, folder.name)]
    found = [
        _local(path, path.relative_to(folder).as_posix())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.parts[-1:])
    ]
    if not found:
        raise GridloomError(f"there are no files in {folder}")
    return found


def send(path: Path, url: str, headers: dict[str, str], tell: Tell) -> None:
    """PUTs one file; tries again from its start if the line breaks. Raises Unreachable."""

    def body() -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                tell(len(chunk))
                yield chunk

    for attempt in range(_TRIES):
        try:
            answer = httpx.put(url, content=body(), headers=headers, timeout=_TIMEOUT)
            if answer.is_success:
                return
            reason = f"{answer.status_code} {answer.text[:200]}"
        except httpx.TransportError as error:
            reason = str(error)
        time.sleep(0.3 * 2**attempt)
    raise Unreachable(f"{path} could not be sent: {reason}")


def fetch(file: RemoteFile, target: Path, tell: Tell) -> None:
    """Downloads one file to `target`, from where an earlier try ended; whole and right, or not.

    Raises Damaged if its hash is wrong, Unreachable if the storage doesn't answer.
    """
    if target.is_file() and _sha256(target) == file.sha256:
        tell(file.bytes)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{file.sha256[:12]}.part")
    reason = ""
    for attempt in range(_TRIES):
        try:
            _go_on(file, part, tell)
            break
        except httpx.HTTPError as error:
            reason = str(error)
            time.sleep(0.3 * 2**attempt)
    else:
        raise Unreachable(f"{file.path} could not be fetched: {reason}")
    if _sha256(part) != file.sha256:
        part.unlink()
        raise Damaged(f"{file.path} arrived damaged and was not kept; try again")
    os.replace(part, target)


def _go_on(file: RemoteFile, part: Path, tell: Tell) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have > file.bytes:
        part.unlink()
        have = 0
    if have == file.bytes and have:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    with httpx.stream("GET", file.url, headers=headers, timeout=_TIMEOUT) as answer:
        answer.raise_for_status()
        resumes = answer.status_code == httpx.codes.PARTIAL_CONTENT
        with part.open("ab" if resumes else "wb") as out:
            for chunk in answer.iter_bytes(_CHUNK):
                out.write(chunk)
                tell(len(chunk))


def _local(path: Path, name: str) -> LocalFile:
    return LocalFile(path=name, bytes=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
