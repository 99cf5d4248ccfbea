"""What a job leaves behind, sent to the market's storage: hashed, granted, sent, committed.

A file is read twice through descriptors that `Outgoing.open` gives, once for the hashes that its
upload URLs sign and once to send it; if it has changed in between, the storage refuses it.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import httpx
import msgspec

from agent.api import Api, Refused
from agent.patience import Backoff, all_of
from agent.protocol import (
    PART_BYTES,
    CommitRequest,
    FileToSend,
    Part,
    Put,
    SentFile,
    UploadKind,
    UploadRequest,
)
from agent.transfer import client_for

log = logging.getLogger(__name__)

_AT_ONCE: Final = 4
_FILES_A_CALL: Final = 200
_PARTS_A_CALL: Final = 20_000
_CHUNK: Final = 1024 * 1024
_TRIES_AT_COMMIT: Final = 3
_TRIES_AT_PUT: Final = 4
"""Times that storage may refuse a part, with a fresh URL each, before it is given up."""


class Fenced(Exception):
    """The lease is over for the market: whatever is sent now, nobody will read."""


class NotSent(RuntimeError):
    """What should be sent can't be; says why."""


@dataclass(frozen=True)
class Outgoing:
    """A file to send: how to open it (a descriptor to close), and its size."""

    path: str
    size: int
    open: Callable[[], int]


@dataclass(frozen=True)
class Folder:
    """One checkpoint, artifact or log of one lease."""

    assignment: UUID
    epoch: int
    kind: UploadKind
    step: int
    files: Sequence[Outgoing]
    seconds: float = 0.0
    """How long the job took to write it, if it said so."""
    running_ms: int | None = None
    """Running time at which a checkpoint was written."""
    place: str = ""
    """Where it lay below the work folder."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)


class Uploads:
    """All uploads of this node, a few parts at a time."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.slots = asyncio.Semaphore(_AT_ONCE)
        self._clients: dict[bool, httpx.AsyncClient] = {}

    async def aclose(self) -> None:
        """Ends idle connections."""
        for client in self._clients.values():
            await client.aclose()

    async def send(self, folder: Folder, sent: Callable[[int], None]) -> str:
        """Sends and commits; returns the manifest's hash. `sent` is told of bytes as they go.

        Goes on for as long as market or storage are away. Raises Fenced, NotSent, and whatever
        opening the files raises.
        """
        hashed = [await asyncio.to_thread(_hash, file) for file in folder.files]
        sending = _Sending(self, folder, sent)
        for _ in range(_TRIES_AT_COMMIT):
            done = [file for batch in _batches(hashed) for file in await sending.batch(batch)]
            try:
                return await sending.commit(done)
            except Refused as no:
                # Either we are fenced, and the next grant says so, or something is missing.
                if no.status != 409:
                    raise NotSent(f"the market refused it: {no}") from None
                log.info("commit of %s %d refused: %s", folder.kind, folder.step, no)
        raise NotSent("the market finds other bytes than were sent")

    async def put(self, put: Put, content: AsyncIterator[bytes]) -> tuple[int, str]:
        """Sends one part: (HTTP status, etag), status 0 if there was no answer."""
        client = client_for(self._clients, put.url)
        try:
            answer = await client.put(put.url, headers=put.headers, content=content)
        except httpx.TransportError as error:
            log.info("a part broke off: %s: %s", type(error).__name__, error)
            return 0, ""
        if not answer.is_success:
            log.info("storage answers %d: %s", answer.status_code, answer.text[:300])
            return answer.status_code, ""
        return 200, answer.headers.get("etag", "")


@dataclass(frozen=True)
class _Hashed:
    source: Outgoing
    wire: FileToSend


class _Grant:
    """The URLs of one file's parts; renewed when they run out."""

    def __init__(self, upload_id: str | None, puts: list[Put]) -> None:
        self.upload_id, self.puts = upload_id, puts
        self.lock = asyncio.Lock()


@dataclass(frozen=True)
class _Open:
    """A file while it is being sent."""

    hashed: _Hashed
    grant: _Grant
    fd: int

    @property
    def wire(self) -> FileToSend:
        return self.hashed.wire


@dataclass(frozen=True)
class _Sending:
    """One folder on its way."""

    uploads: Uploads
    folder: Folder
    sent: Callable[[int], None]

    async def batch(self, files: list[_Hashed]) -> list[SentFile]:
        grants = await self._granted([one.wire for one in files])
        return await all_of(
            self._file(one, grant) for one, grant in zip(files, grants, strict=True)
        )

    async def commit(self, files: list[SentFile]) -> str:
        folder = self.folder
        request = CommitRequest(
            epoch=folder.epoch,
            kind=folder.kind,
            step=folder.step,
            files=files,
            seconds=folder.seconds,
            running_ms=folder.running_ms,
            place=folder.place,
        )
        return (await self.uploads.api.commit(folder.assignment, request)).manifest

    async def _granted(self, files: list[FileToSend]) -> list[_Grant]:
        folder = self.folder
        request = UploadRequest(epoch=folder.epoch, kind=folder.kind, step=folder.step, files=files)
        try:
            reply = await self.uploads.api.grant(folder.assignment, request)
        except Refused as no:
            if no.status in (404, 409):
                raise Fenced(str(no)) from None
            raise NotSent(f"the market takes no more of it: {no}") from None
        return [_Grant(one.upload_id, one.puts) for one in reply.files]

    async def _file(self, hashed: _Hashed, grant: _Grant) -> SentFile:
        wire = hashed.wire
        fd = await asyncio.to_thread(hashed.source.open)
        try:
            file = _Open(hashed, grant, fd)
            etags = await all_of(self._part(file, number) for number in range(len(wire.parts)))
        finally:
            os.close(fd)
        return SentFile(
            path=wire.path,
            bytes=wire.bytes,
            sha256=wire.sha256,
            upload_id=grant.upload_id,
            etags=etags if grant.upload_id else [],
        )

    async def _part(self, file: _Open, number: int) -> str:
        """Sends one part until it has arrived; its etag."""
        size, refusals, backoff = file.wire.parts[number].bytes, 0, Backoff()
        async with self.uploads.slots:
            while True:
                put = file.grant.puts[number]
                content = _read(file, number * PART_BYTES, size)
                status, etag = await self.uploads.put(put, content)
                if status == 200:
                    self.sent(size)
                    return etag
                if 400 <= status < 500 and status not in (408, 429):
                    refusals += 1
                    if refusals >= _TRIES_AT_PUT:
                        raise NotSent(f"storage refuses {file.wire.path} (HTTP status {status})")
                    await self._renew(file, put)
                await backoff.pause()

    async def _renew(self, file: _Open, stale: Put) -> None:
        """Fresh URLs for a file whose own ran out; several parts may find that at once."""
        grant = file.grant
        async with grant.lock:
            if stale not in grant.puts:
                return
            wire = msgspec.structs.replace(file.wire, upload_id=grant.upload_id)
            [fresh] = await self._granted([wire])
            grant.puts = fresh.puts


def _hash(file: Outgoing) -> _Hashed:
    """Reads the file once: its hash and its parts'. Raises NotSent if it is not `size` long."""
    fd = file.open()
    try:
        whole, parts = hashlib.sha256(), []
        for start in range(0, max(file.size, 1), PART_BYTES):
            digest, size = hashlib.sha256(), min(PART_BYTES, file.size - start)
            for data in _chunks(fd, start, size, file.path):
                digest.update(data)
                whole.update(data)
            parts.append(Part(bytes=size, sha256=digest.hexdigest()))
    finally:
        os.close(fd)
    wire = FileToSend(path=file.path, bytes=file.size, sha256=whole.hexdigest(), parts=parts)
    return _Hashed(file, wire)


def _chunks(fd: int, start: int, size: int, path: str) -> Iterator[bytes]:
    """Exactly `size` bytes from `start` on; raises NotSent if the file is shorter by now."""
    at, end = start, start + size
    while at < end:
        data = os.pread(fd, min(_CHUNK, end - at), at)
        if not data:
            raise NotSent(f"{path} became shorter while it was read")
        at += len(data)
        yield data


async def _read(file: _Open, start: int, size: int) -> AsyncIterator[bytes]:
    chunks = _chunks(file.fd, start, size, file.wire.path)
    while data := await asyncio.to_thread(next, chunks, b""):
        yield data


def _batches(files: Sequence[_Hashed]) -> list[list[_Hashed]]:
    """Cut so that each call stays small enough."""
    batches: list[list[_Hashed]] = []
    parts = 0
    for one in files:
        parts += len(one.wire.parts)
        if not batches or len(batches[-1]) == _FILES_A_CALL or parts > _PARTS_A_CALL:
            batches.append([])
            parts = len(one.wire.parts)
        batches[-1].append(one)
    return batches
