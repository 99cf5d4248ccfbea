"""Bytes between a folder here and the market's storage, each file checked by its SHA-256."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Final

import httpx

from buyers.sdk.errors import Damaged, GridloomError, Unreachable
from buyers.sdk.shapes import File, Put

Progress = Callable[[int], None]
"""Told how many more bytes have been hashed, sent or received."""

_CHUNK: Final = 1 << 20
_AT_ONCE: Final = 4
_ATTEMPTS: Final = 4
_LEFT_OUT: Final = frozenset({"__pycache__", "node_modules"})


class Expired(Exception):
    """A URL is too old; ask the market for fresh ones, and go on."""


def scan(folder: Path) -> dict[str, Path]:
    """Relative path → file, of a folder or of one file. Hidden files and caches are left out.

    Raises GridloomError if there is nothing.
    """
    if folder.is_file():
        return {folder.name: folder}
    if not folder.is_dir():
        raise GridloomError(f"there is no folder {folder}")
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") or part in _LEFT_OUT for part in inside.parts)
        if path.is_file() and not hidden:
            found[inside.as_posix()] = path
    if not found:
        raise GridloomError(f"there are no files in {folder}")
    return found


def declare(files: Mapping[str, Path]) -> list[File]:
    """Sizes and hashes of files."""
    return [File(path, file.stat().st_size, digest(file)) for path, file in sorted(files.items())]


def digest(path: Path) -> str:
    """SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def send(files: Mapping[str, Path], puts: Mapping[str, Put], progress: Progress) -> None:
    """PUTs files, some at once; raises Expired, Damaged, Unreachable."""
    timeout = httpx.Timeout(120, connect=10)
    with httpx.Client(timeout=timeout) as http, ThreadPoolExecutor(_AT_ONCE) as pool:
        sent = [pool.submit(_put, http, files[path], put, progress) for path, put in puts.items()]
        try:
            for each in sent:
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def fetch(http: httpx.Client, file: File, folder: Path, progress: Progress) -> Path:
    """One file into `folder`, going on where an earlier try ended; raises Expired, Damaged,
    Unreachable. What is there and right already is not fetched again."""
    target = _inside(folder, file.path)
    if target.is_file() and target.stat().st_size == file.bytes and digest(target) == file.sha256:
        progress(file.bytes)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    for _ in range(_ATTEMPTS):
        _receive(http, file, part, progress)
        if digest(part) == file.sha256:
            part.replace(target)
            return target
        # Not what it should be: nothing of it can be kept.
        part.unlink()
    raise Damaged(f"{file.path} is not what its hash says, {_ATTEMPTS} times over; report it")


def _inside(folder: Path, path: str) -> Path:
    """Where a named file lies; raises Damaged for a name that would lead out of the folder."""
    plain = PurePosixPath(path)
    windows = PureWindowsPath(path)
    if (
        not path
        or plain.is_absolute()
        or ".." in plain.parts
        or "\\" in path
        or windows.drive
        or any(ord(letter) < 32 for letter in path)
    ):
        raise Damaged(f"the market names a file {path!r}, which would lie outside {folder}")
    return folder / plain


class _Sent:
    """Counts what of one file has gone out, to take it back if it must go again."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._bytes = progress, 0

    def chunks(self, file: BinaryIO) -> Iterator[bytes]:
        while chunk := file.read(_CHUNK):
            yield chunk
            self._bytes += len(chunk)
            self._progress(len(chunk))

    def undo(self) -> None:
        self._progress(-self._bytes)
        self._bytes = 0


def _put(http: httpx.Client, path: Path, put: Put, progress: Progress) -> None:
    why, sent = "", _Sent(progress)
    for attempt in range(_ATTEMPTS):
        if attempt:
            sent.undo()
            time.sleep(2**attempt / 4)
        try:
            with path.open("rb") as file:
                answer = http.put(put.url, headers=put.headers, content=sent.chunks(file))
        except httpx.HTTPError as error:
            # Perhaps refused in mid-stream; the next answer tells.
            why = str(error) or type(error).__name__
            continue
        if answer.is_success:
            return
        if answer.status_code == 403:
            raise Expired
        if answer.status_code == 400:
            raise Damaged(f"{path} has changed since it was hashed; upload it again")
        why = f"HTTP {answer.status_code}"
    raise Unreachable(f"{path} could not be sent to the market's storage ({why}); try again")


def _receive(http: httpx.Client, file: File, part: Path, progress: Progress) -> None:
    """Brings `part` to its full length, by as many requests as that takes."""
    why, have = "", _size(part)
    progress(have)
    for attempt in range(_ATTEMPTS):
        if have >= file.bytes:
            part.touch()
            return
        if attempt:
            time.sleep(2**attempt / 4)
        try:
            headers = {"Range": f"bytes={have}-"} if have else {}
            with http.stream("GET", file.url, headers=headers) as answer:
                if answer.status_code == 403:
                    raise Expired
                if answer.status_code not in (200, 206):
                    why = f"HTTP {answer.status_code}"
                    continue
                if answer.status_code == 200 and have:
                    progress(-have)
                with part.open("ab" if answer.status_code == 206 else "wb") as out:
                    for chunk in answer.iter_raw():
                        out.write(chunk)
                        progress(len(chunk))
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
        have = _size(part)
    if have < file.bytes:
        raise Unreachable(f"{file.path} could not be fetched ({why}); try again: it goes on")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
