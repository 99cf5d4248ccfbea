"""An object store for the agent's tests: it serves ranges, refuses what was not signed, and fails
where a test wants it to.
"""

import asyncio
import base64
import hashlib
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs


@dataclass
class Faults:
    """What goes wrong on the market's side; counters count down."""

    break_after: list[int] = field(default_factory=list)
    """Bytes after which the next downloads break off, one after the other."""
    spoil: int = 0
    """Downloads whose bytes are wrong."""
    no_ranges: bool = False
    expire_downloads: int = 0
    expire_uploads: int = 0
    refuse_uploads: bool = False
    lose_receipts: int = 0
    lose_commits: int = 0
    """Commits that are taken in, but whose answer is lost."""
    unavailable: int = 0
    """HTTPS calls answered with 503."""
    refuse_socket: tuple[str, bool] | None = None
    """(why, final)"""


@dataclass
class Sent:
    """One committed folder."""

    kind: str
    step: int
    files: dict[str, bytes]
    seconds: float
    running_ms: int | None = None
    place: str = ""


class Store:
    """Objects by name, under /store/get/ and /store/put/."""

    def __init__(self, faults: Faults, news: threading.Condition) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        """Uploads in parts: id → number → bytes."""
        self.puts: list[str] = []
        self.gets: list[tuple[str, str]] = []
        """(sha256, the Range header)"""
        self._faults, self._news = faults, news

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        _, _, verb, name = scope["path"].split("/", 3)
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        if verb == "get":
            await self._get(name, headers.get("range", ""), send)
            return
        body = await read(receive)
        if self._faults.expire_uploads:
            self._faults.expire_uploads -= 1
            await reply(send, 403, b"Request has expired")
            return
        checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if headers["x-amz-checksum-sha256"] != checksum or len(body) != int(
            headers["content-length"]
        ):
            await reply(send, 400, b"BadDigest")
            return
        query = parse_qs(scope["query_string"].decode())
        self.puts.append(name)
        if upload := query.get("upload"):
            self.uploads.setdefault(upload[0], {})[int(query["part"][0])] = body
        else:
            self.objects[name] = body
        await reply(send, 200, b"", [(b"etag", b'"e"')])

    async def _get(self, sha256: str, span: str, send: Any) -> None:
        with self._news:
            self.gets.append((sha256, span))
            self._news.notify_all()
        if self._faults.expire_downloads:
            self._faults.expire_downloads -= 1
            await reply(send, 403, b"Request has expired")
            return
        data = self.objects[sha256]
        if self._faults.spoil:
            self._faults.spoil -= 1
            data = bytes(len(data))
        start = 0
        if span and not self._faults.no_ranges:
            start = int(span.removeprefix("bytes=").removesuffix("-"))
        length = str(len(data) - start).encode()
        status = 206 if start else 200
        await send(
            {"type": "http.response.start", "status": status,
             "headers": [(b"content-length", length)]}
        )  # fmt: skip
        if self._faults.break_after:
            end = start + self._faults.break_after.pop(0)
            await send({"type": "http.response.body", "body": data[start:end], "more_body": True})
            await asyncio.sleep(0.05)
            raise ConnectionError("broken off")
        await send({"type": "http.response.body", "body": data[start:]})


async def read(receive: Any) -> bytes:
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            return body


async def reply(send: Any, status: int, body: bytes, headers: Any = ()) -> None:
    start = {"type": "http.response.start", "status": status,
             "headers": [(b"content-length", str(len(body)).encode()), *headers]}  # fmt: skip
    await send(start)
    await send({"type": "http.response.body", "body": body})
