"""What the agent asks of the market over HTTPS. Patient: an answer comes, or a definite no."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Final, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from agent import protocol
from agent.config import is_loopback
from agent.patience import Backoff
from agent.protocol import (
    CommitReply,
    CommitRequest,
    InputUrls,
    LayerUrls,
    ProofChallenge,
    ProofCommit,
    ProofOpening,
    ProofTask,
    SecretValues,
    UploadReply,
    UploadRequest,
)

log = logging.getLogger(__name__)

_TIMEOUT: Final = httpx.Timeout(60, connect=10)
_LATER: Final = (401, 408, 425, 429)
"""Statuses of the 400s that ask for another try; 401: another socket brings another bearer."""
_Reply = TypeVar("_Reply", bound=protocol.Wire)


class Refused(Exception):
    """The market's definite no, with its reason."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Bearer:
    """What opens HTTPS for this node, while its socket lives."""

    def __init__(self) -> None:
        self._token = ""
        self._there = asyncio.Event()

    def set(self, token: str) -> None:
        """A socket has handed one out."""
        self._token = token
        self._there.set()

    def clear(self) -> None:
        """The socket has closed: it opens nothing any more."""
        self._there.clear()

    @property
    def token(self) -> str:
        """The latest, whether or not it still opens anything."""
        return self._token

    async def get(self) -> str:
        """The one to show; waits for a socket."""
        await self._there.wait()
        return self._token


class Api:
    """Calls under /agent/v1. Each waits until the market answers, however long it is away, and
    raises Refused for a no; cancel it to give up."""

    def __init__(self, agents_url: str, bearer: Bearer) -> None:
        self._bearer = bearer
        self._host = urlsplit(agents_url).hostname
        # An address on this machine needs no proxy, whatever the environment says.
        self._http = httpx.AsyncClient(
            base_url=f"{agents_url}/agent/v1",
            timeout=_TIMEOUT,
            trust_env=not is_loopback(agents_url),
        )

    @property
    def bearer(self) -> str:
        """What opens another socket for this node, as long as its own lives."""
        return self._bearer.token

    async def aclose(self) -> None:
        await self._http.aclose()

    async def spec(self, assignment: UUID) -> bytes:
        """The spec's bytes."""
        return await self._call("GET", f"/assignments/{assignment}/spec")

    async def inputs(self, assignment: UUID) -> dict[str, str]:
        """SHA-256 → presigned GET URL, of the files that it reads."""
        body = await self._call("GET", f"/assignments/{assignment}/inputs")
        urls = _read(body, InputUrls).urls
        self._require_private(urls.values())
        return urls

    async def layers(self, assignment: UUID) -> LayerUrls:
        """Where the layers of its image are; waits for its registry as well."""
        body = await self._call("GET", f"/assignments/{assignment}/layers")
        reply = _read(body, LayerUrls)
        self._require_private(reply.urls.values())
        return reply

    async def secrets(self, assignment: UUID) -> dict[str, str]:
        """The values of the job's secrets; never to be written into a log."""
        return _read(
            await self._call("GET", f"/assignments/{assignment}/secrets"), SecretValues
        ).values

    async def grant(self, assignment: UUID, request: UploadRequest) -> UploadReply:
        """Where to send files to."""
        body = await self._call("POST", f"/assignments/{assignment}/uploads", request)
        reply = _read(body, UploadReply)
        self._require_private(put.url for file in reply.files for put in file.puts)
        return reply

    async def commit(self, assignment: UUID, request: CommitRequest) -> CommitReply:
        """Makes what was sent the job's."""
        body = await self._call("POST", f"/assignments/{assignment}/commits", request)
        return _read(body, CommitReply)

    async def proof(self) -> ProofTask:
        """The proof of hardware that is due; Refused with status 404 if none is."""
        return _read(await self._call("GET", "/proof"), ProofTask)

    async def commit_proof(self, proof: UUID, commit: ProofCommit) -> ProofChallenge:
        """Hands in the roots; the rows to open."""
        return _read(await self._call("POST", f"/proof/{proof}/commit", commit), ProofChallenge)

    async def open_proof(self, proof: UUID, opening: ProofOpening) -> None:
        """Opens the rows; Refused with code `proof_failed` if they are found wrong."""
        await self._call("POST", f"/proof/{proof}/open", opening)

    def _require_private(self, urls: Iterable[str]) -> None:
        """Raises Refused unless files go to and fro as safely as all else that is said here."""
        for url in urls:
            try:
                scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
            except ValueError:
                scheme, host = "", None
            near = (
                scheme == "http" and host is not None and (host == self._host or is_loopback(url))
            )
            if host is None or not (scheme == "https" or near):
                where = f"{scheme}://{host}"[:200]
                raise Refused(502, "insecure", f"the market names a storage without https: {where}")

    async def _call(self, method: str, path: str, body: protocol.Wire | None = None) -> bytes:
        backoff = Backoff()
        while True:
            token = await self._bearer.get()
            why = await self._try(method, path, token, body)
            if isinstance(why, bytes):
                return why
            log.info("%s %s: %s; trying again", method, path, why)
            await backoff.pause()

    async def _try(
        self, method: str, path: str, token: str, body: protocol.Wire | None
    ) -> bytes | str:
        """The answer's bytes, or why to try again; raises Refused."""
        try:
            answer = await self._http.request(
                method,
                path,
                headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
                content=protocol.encode(body) if body is not None else None,
            )
        except httpx.TransportError as error:
            return f"no answer ({type(error).__name__}: {error})"
        if answer.is_success:
            return answer.content
        problem = problem_of(answer)
        if answer.status_code >= 500 or answer.status_code in _LATER:
            return f"{answer.status_code} {problem.message}"
        raise Refused(answer.status_code, problem.code, problem.message)


def problem_of(answer: httpx.Response) -> protocol.Problem:
    """What an answer with an error status says, also if it comes from some proxy in between."""
    try:
        return protocol.decode(answer.content, protocol.Problem)
    except protocol.Malformed:
        return protocol.Problem(code="http", message=f"HTTP status {answer.status_code}")


def _read(body: bytes, kind: type[_Reply]) -> _Reply:
    try:
        return protocol.decode(body, kind)
    except protocol.Malformed as error:
        raise Refused(
            502, "malformed", f"the market's answer is not a {kind.__name__}: {error}"
        ) from None
