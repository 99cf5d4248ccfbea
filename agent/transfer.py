"""Downloads: by ranges, resumed where they broke off, hashed while they arrive."""

import asyncio
import contextlib
import hashlib
import logging
import time
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import httpx

from agent import order as files
from agent.cache import BadInput, Shelf, make_room
from agent.config import is_loopback
from agent.patience import Backoff
from agent.protocol import File

log = logging.getLogger(__name__)

_AT_ONCE: Final = 4
_CHUNK: Final = 1024 * 1024
_TIMEOUT: Final = httpx.Timeout(30, connect=10, pool=None)
_TRIES_AT_HASH: Final = 2
_TRIES_AT_URL: Final = 3
_MOST_HOPS: Final = 5
_LEAST_MEASURED: Final = 4 * 2**20
"""Bytes below which a transfer says nothing about bandwidth."""


class Source(NamedTuple):
    """Where a file is to be had, and what to show for it, if anything."""

    url: str
    authorization: str = ""
    is_ours: bool = True
    """Whether it lies in the market's storage."""


class Urls(Protocol):
    """Where files are to be had; `renew` says that a source opens nothing any more."""

    async def get(self, sha256: str) -> Source: ...

    async def renew(self, stale: Source) -> None: ...


class Bandwidth:
    """Mbit/s from the market's storage, as transfers have shown it; 0 before the first."""

    def __init__(self, path: Path) -> None:
        """`path`: where it is kept over restarts."""
        self._path = path
        self.mbps = 0.0
        with contextlib.suppress(OSError, ValueError):
            self.mbps = float(path.read_text("ascii"))

    def note(self, size: int, seconds: float) -> None:
        """A transfer has taken so long; recent ones count most."""
        if size >= _LEAST_MEASURED and seconds > 0:
            now = size * 8 / seconds / 1e6
            self.mbps = now if not self.mbps else 0.7 * self.mbps + 0.3 * now
            files.replace(self._path, f"{self.mbps:.3f}".encode())


class Progress:
    """Says how far a transfer is: "fetching base, 120 of 270 MB"."""

    def __init__(self, doing: str, total: int, say: Callable[[str], None]) -> None:
        self._doing, self._total, self._say = doing, total, say
        self._done = 0
        self.add(0)

    def add(self, size: int) -> None:
        """So many bytes more; fewer than none if some must come again."""
        self._done += size
        self._say(f"{self._doing}, {self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB")


class _Broken(Exception):
    """The connection broke, or the server could not answer: go on later."""


class _Expired(Exception):
    """The URL opens nothing any more."""


@dataclass
class Downloads:
    """All downloads of this node: a few at a time, each file by one of them."""

    root: Path
    """The cache's folder."""
    bandwidth: Bandwidth
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    _locks: weakref.WeakValueDictionary[Path, asyncio.Lock] = field(
        default_factory=weakref.WeakValueDictionary
    )
    _clients: dict[bool, httpx.AsyncClient] = field(default_factory=dict)

    async def fetch(
        self, file: File, shelf: Shelf, urls: Urls, arrived: Callable[[int], None]
    ) -> Path:
        """The cached file, fetched if it isn't there; `arrived` is told of bytes as they come.

        Goes on for as long as the storage is away; raises BadInput, NoRoom, OSError.
        """
        lock = self._locks.setdefault(shelf.partial(file), asyncio.Lock())
        async with lock:
            found = shelf.find(file)
            if found is not None:
                arrived(file.bytes)
                return found
            for _ in range(_TRIES_AT_HASH):
                if await self._collect(file, shelf, urls, arrived):
                    return shelf.keep(file)
                shelf.partial(file).unlink()
                arrived(-file.bytes)
        raise BadInput(f"{file.path} is not what its manifest says: its SHA-256 differs")

    async def aclose(self) -> None:
        """Ends idle connections."""
        for client in self._clients.values():
            await client.aclose()

    async def _collect(
        self, file: File, shelf: Shelf, urls: Urls, arrived: Callable[[int], None]
    ) -> bool:
        """Fills the partial file up; whether its hash is right."""
        partial = await asyncio.to_thread(_Partial, shelf.partial(file), file.bytes)
        try:
            make_room(self.root, file.bytes - partial.size)
            arrived(partial.size)
            backoff, expired = Backoff(), 0
            while partial.size < file.bytes:
                before, source = partial.size, await urls.get(file.sha256)
                try:
                    # Who waits for a storage that is away keeps no other from theirs.
                    async with self._slots:
                        await self._stream(file, partial, source, arrived)
                except _Expired as error:
                    expired += 1
                    if expired >= _TRIES_AT_URL:
                        raise BadInput(f"{file.path} can't be fetched: {error}") from None
                    await urls.renew(source)
                except (_Broken, httpx.TransportError) as error:
                    log.info("%s broke off at %d bytes: %s", file.path, partial.size, error)
                    if partial.size > before:
                        backoff.reset()
                    await backoff.pause()
            return partial.sha256 == file.sha256
        finally:
            partial.close()

    async def _stream(
        self, file: File, partial: "_Partial", source: Source, arrived: Callable[[int], None]
    ) -> None:
        """One request: from where the partial file ends to the end, or as far as it gets."""
        headers = {"accept-encoding": "identity"}
        if source.authorization:
            headers["authorization"] = source.authorization
        if partial.size:
            headers["range"] = f"bytes={partial.size}-"
        begun, before = time.monotonic(), partial.size
        async with self._answer(source.url, headers) as answer:
            _check(answer)
            if partial.size and answer.status_code != 206:
                arrived(-partial.size)
                partial.restart()  # a server without ranges sends all of it
                before = 0
            async for chunk in answer.aiter_raw(_CHUNK):
                if partial.size + len(chunk) > file.bytes:
                    raise BadInput(f"{file.path} has more than the {file.bytes} bytes it should")
                await asyncio.to_thread(partial.add, chunk)
                arrived(len(chunk))
        if source.is_ours:
            self.bandwidth.note(partial.size - before, time.monotonic() - begun)
        if partial.size < file.bytes:
            raise _Broken("the answer ended early")

    @contextlib.asynccontextmanager
    async def _answer(self, url: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """What is sent for a URL, or for those that it leads to: registries send on to where their
        bytes lie. httpx shows the authorization to no other host."""
        request = client_for(self._clients, url).build_request("GET", url, headers=headers)
        for _ in range(_MOST_HOPS):
            client = client_for(self._clients, str(request.url))
            answer = await client.send(request, stream=True)
            try:
                if answer.next_request is None:
                    yield answer
                    return
                _require_as_safe(request.url, answer.next_request.url)
                request = answer.next_request
            finally:
                await answer.aclose()
        raise _Expired("the storage sends on without end")


def _require_as_safe(url: httpx.URL, next_url: httpx.URL) -> None:
    """Raises _Expired for a step from https to anything else, or from elsewhere to this machine."""
    less_private = next_url.scheme not in ("https", url.scheme)
    if less_private or is_loopback(str(next_url)) > is_loopback(str(url)):
        raise _Expired(f"the storage sends on to {next_url.scheme}://{next_url.host}")


def client_for(clients: dict[bool, httpx.AsyncClient], url: str) -> httpx.AsyncClient:
    """The client for storage at `url`: one for this machine itself, which is reached through no
    proxy, one beyond."""
    local = is_loopback(url)
    if local not in clients:
        clients[local] = httpx.AsyncClient(timeout=_TIMEOUT, trust_env=not local)
    return clients[local]


class _Partial:
    """A file in the making, and its hash so far."""

    def __init__(self, path: Path, most: int) -> None:
        """Takes up what an earlier attempt has left, reading it once."""
        self._file = path.open("a+b")
        self._digest = hashlib.sha256()
        self.size = 0
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK):
            self._digest.update(chunk)
            self.size += len(chunk)
        if self.size > most:
            self.restart()

    @property
    def sha256(self) -> str:
        self._file.flush()
        return self._digest.hexdigest()

    def add(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        self._file.truncate(0)
        self._digest = hashlib.sha256()
        self.size = 0

    def close(self) -> None:
        self._file.close()


def _check(answer: httpx.Response) -> None:
    """Raises _Expired or _Broken unless bytes follow."""
    status = answer.status_code
    if status in (200, 206):
        return
    if status >= 500 or status in (408, 425, 429):
        raise _Broken(f"HTTP status {status}")
    raise _Expired(f"the storage answers with HTTP status {status}")
