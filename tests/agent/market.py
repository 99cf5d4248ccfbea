"""A market for the agent's tests: the real protocol over real sockets, signatures checked, with an
object store that serves ranges and refuses what was not signed. It decides nothing by itself.

It runs in a thread of its own, so that tests can wait for it whether or not they have a loop.
"""

import asyncio
import base64
import contextlib
import hashlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID, uuid4

import msgspec
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent import protocol
from agent.protocol import AssignmentSpec, Claim, Desired, Drain, File, Input, Status, Wanted

SERVER = "test market"
_WITHIN_S = 60


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


class Market:
    """See the module. Everything public may be used from any thread."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.interval_s, self.spool_s = 0.3, 3600.0
        self.tokens = {"good-token"}
        self.server_name = SERVER
        self.nodes: dict[UUID, bytes] = {}
        self.wanted: dict[UUID, Wanted] = {}
        self.specs: dict[UUID, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.statuses: dict[UUID, Status] = {}
        self.history: list[Status] = []
        self.heartbeats: list[protocol.Heartbeat] = []
        self.hellos: list[protocol.Hello] = []
        self.claims: list[Claim] = []
        self.metrics: list[protocol.Metric] = []
        self.logs: list[protocol.LogChunk] = []
        self.folders: list[Sent] = []
        self.commits = 0
        self.puts: list[str] = []
        self.gets: list[tuple[str, str]] = []
        """(sha256, the Range header)"""
        self.proof_task: protocol.ProofTask | None = None
        self.proof_opening: protocol.ProofOpening | None = None
        self.proof_commit: protocol.ProofCommit | None = None
        self.fenced: set[UUID] = set()
        """Assignments of which nothing is taken any more."""
        self.problems: list[str] = []
        """What a node did that no node may."""
        self._key = Ed25519PrivateKey.generate()
        self._bearers: dict[str, UUID] = {}
        self._pushes: set[Callable[[], None]] = set()
        self._cuts: set[Callable[[], None]] = set()
        self._uploads: dict[str, dict[int, bytes]] = {}
        self._news = threading.Condition(threading.RLock())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # Its life.

    def start(self) -> None:
        config = uvicorn.Config(
            self._app, host="127.0.0.1", port=self.port, log_level="critical", ws="websockets-sansio", interface="asgi3",
            lifespan="off", timeout_graceful_shutdown=0,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, args=(self._server,), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _WITHIN_S
        while not self._server.started:
            assert time.monotonic() < deadline, "the test's market did not start"
            time.sleep(0.005)

    def stop(self) -> None:
        assert self._server
        assert self._thread
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(_WITHIN_S)
        self._bearers.clear()
        self._pushes.clear()
        self._cuts.clear()

    def _serve(self, server: uvicorn.Server) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            await server.serve()

        asyncio.run(main())

    # What tests do.

    def offer(self, folder: dict[str, bytes], name: str, *, public: bool = False) -> Input:
        """Puts files where they can be fetched."""
        files = []
        for path, data in sorted(folder.items()):
            sha256 = hashlib.sha256(data).hexdigest()
            self.objects[sha256] = data
            files.append(File(path=path, bytes=len(data), sha256=sha256))
        return Input(name=name, files=files, public=public)

    def want(self, spec: AssignmentSpec, *, paid_ms: int = 3_600_000) -> UUID:
        """Tells the node to run it."""
        data = protocol.encode(spec)
        self.specs[spec.assignment] = data
        self.wanted[spec.assignment] = Wanted(
            id=spec.assignment,
            epoch=spec.epoch,
            spec=hashlib.sha256(data).hexdigest(),
            paid_through_ms=paid_ms,
        )
        self.push()
        return spec.assignment

    def pay(self, id: UUID, paid_ms: int) -> None:
        self._change(id, paid_through_ms=paid_ms)

    def drain(self, id: UUID, why: str, grace_s: float) -> None:
        self._change(id, drain=Drain(why=why, grace_s=grace_s))

    def unwant(self, id: UUID) -> None:
        del self.wanted[id]
        self.push()

    def push(self) -> None:
        """Says what is desired on every socket."""
        self._call(self._pushes)

    def cut(self) -> None:
        """Closes every socket without a word."""
        self._call(self._cuts)

    def wait(self, what: Callable[[], object], within_s: float = _WITHIN_S) -> Any:
        """Until it is true; its value."""
        deadline = time.monotonic() + within_s
        with self._news:
            while not (found := what()):
                left = deadline - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    states = list(self.statuses.values())
                    raise AssertionError(f"it did not come; {states} {self.problems}")
        return found

    async def until(self, what: Callable[[], object], within_s: float = _WITHIN_S) -> Any:
        """The same, for tests with a loop."""
        return await asyncio.to_thread(self.wait, what, within_s)

    def last(self) -> protocol.Heartbeat:
        """The newest heartbeat; waits for the first."""
        return self.wait(lambda: self.heartbeats)[-1]

    def state(self, id: UUID) -> str:
        status = self.statuses.get(id)
        return status.state if status else ""

    def detail(self, id: UUID) -> str:
        status = self.statuses.get(id)
        return status.detail if status else ""

    def settled(self, id: UUID) -> Status | None:
        status = self.statuses.get(id)
        return status if status and status.settled else None

    def sent(self, kind: str) -> list[Sent]:
        return [folder for folder in self.folders if folder.kind == kind]

    def _change(self, id: UUID, **changes: Any) -> None:
        self.wanted[id] = msgspec.structs.replace(self.wanted[id], **changes)
        self.push()

    def _call(self, callbacks: set[Callable[[], None]]) -> None:
        assert self._loop
        for callback in list(callbacks):
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(callback)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        with self._news:
            yield
            self._news.notify_all()

    # The applications.

    async def _app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self._socket(receive, send)
        elif scope["path"].startswith("/store/"):
            await self._store(scope, receive, send)
        else:
            await self._https(scope, receive, send)

    # The socket.

    async def _socket(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        talk = _Talk(receive, send)
        if self.faults.refuse_socket:
            why, final = self.faults.refuse_socket
            await talk.say(protocol.Refused(code="no", message=why, final=final))
            await talk.close()
            return
        hello = await self._greet(talk)
        if hello is None:
            return
        pushes = lambda: talk.spawn(  # noqa: E731
            talk.say(Desired(assignments=list(self.wanted.values())))
        )
        cut = lambda: talk.spawn(talk.close())  # noqa: E731
        self._pushes.add(pushes)
        self._cuts.add(cut)
        pushes()
        try:
            while message := await talk.hear():
                await self._take(hello.node, message, talk)
        finally:
            self._pushes.discard(pushes)
            self._cuts.discard(cut)
            self._bearers.pop(talk.bearer, None)

    async def _greet(self, talk: "_Talk") -> protocol.Hello | None:
        nonce = secrets.token_hex(32)
        await talk.say(protocol.Challenge(version=1, nonce=nonce, server=self.server_name))
        hello = await talk.hear()
        if not isinstance(hello, protocol.Hello):
            return None
        said = protocol.hello_bytes(hello.node, nonce, hello.boot_id, self.server_name)
        self._public_key(hello.node).verify(hello.signature, said)
        self._bearers[talk.bearer] = hello.node
        with self._noting():
            self.hellos.append(hello)
            self._note(hello.assignments)
        await talk.say(
            protocol.Welcome(
                server_ms=0, interval_s=self.interval_s, lease_ttl_s=30, spool_s=self.spool_s,
                bearer=talk.bearer, bearer_s=3600,
            )
        )  # fmt: skip
        return hello

    async def _take(self, node: UUID, message: protocol.Up, talk: "_Talk") -> None:
        if isinstance(message, protocol.Heartbeat):
            if message.seq <= talk.seq:
                self.problems.append(f"seq {message.seq} after {talk.seq}")
            talk.seq = message.seq
            with self._noting():
                self.heartbeats.append(message)
                self._note(message.assignments)
            await talk.say(protocol.Ack(seq=message.seq))
        elif isinstance(message, protocol.Usage):
            await self._claim(node, message, talk)
        elif isinstance(message, protocol.Samples):
            with self._noting():
                self.metrics += message.metrics
                self.logs += message.logs

    def _public_key(self, node: UUID) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.nodes[node])

    def _note(self, statuses: list[Status]) -> None:
        for status in statuses:
            self.statuses[status.id] = status
            self.history.append(status)

    async def _claim(self, node: UUID, usage: protocol.Usage, talk: "_Talk") -> None:
        self._public_key(node).verify(usage.signature, protocol.claim_bytes(node, usage.claim))
        claim = protocol.decode(usage.claim, Claim)
        known = [one for one in self.claims if one.assignment == claim.assignment]
        if known and known[-1].n == claim.n and known[-1] != claim:
            self.problems.append(f"two claims {claim.n}")
        if known and claim.running_ms < known[-1].running_ms:
            self.problems.append(f"claim {claim.n} takes running time back")
        with self._noting():
            self.claims.append(claim)
        if self.faults.lose_receipts:
            self.faults.lose_receipts -= 1
            return
        body = protocol.encode(
            protocol.ReceiptBody(
                assignment=claim.assignment, epoch=claim.epoch, n=claim.n,
                claim=protocol.sha256_hex(usage.claim), claimed_ms=claim.running_ms,
                accepted_ms=claim.running_ms,
            )
        )  # fmt: skip
        signature = self._key.sign(protocol.receipt_bytes(node, body))
        await talk.say(protocol.Receipt(body=body, signature=signature))

    # HTTPS.

    async def _https(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = await _read(receive)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        status, reply = self._answer(scope["method"], scope["path"], headers, body)
        data = reply if isinstance(reply, bytes) else protocol.encode(reply)
        await _reply(send, status, data)

    def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        if self.faults.unavailable:
            self.faults.unavailable -= 1
            return 503, protocol.Problem(code="unavailable", message="away for a moment")
        parts = path.removeprefix("/agent/v1/").split("/")
        if parts == ["enrol"]:
            return self._enrol(protocol.decode(body, protocol.EnrolRequest))
        if headers.get("authorization", "").removeprefix("Bearer ") not in self._bearers:
            return 401, protocol.Problem(code="unauthenticated", message="no such bearer")
        if parts[0] == "proof":
            return self._proof(parts[1:], body)
        if parts[0] != "assignments" or UUID(parts[1]) not in self.specs:
            return 404, protocol.Problem(code="missing", message="there is no such assignment")
        id = UUID(parts[1])
        if parts[2] == "spec":
            return 200, self.specs[id]
        if id not in self.wanted:
            return 409, protocol.Problem(code="conflict", message="this lease is over")
        if parts[2] == "inputs":
            urls = {sha: f"{self.url}/store/get/{sha}?{uuid4()}" for sha in self.objects}
            return 200, protocol.InputUrls(urls=urls)
        if parts[2] == "uploads":
            return self._grant(id, protocol.decode(body, protocol.UploadRequest))
        return self._commit(id, protocol.decode(body, protocol.CommitRequest))

    def _enrol(self, request: protocol.EnrolRequest) -> Any:
        said = protocol.enrol_bytes(request.token, request.public_key)
        Ed25519PublicKey.from_public_bytes(request.public_key).verify(request.proof, said)
        if request.token not in self.tokens:
            message = "there is no such enrolment token"
            if request.token == "used-token":
                message = "this enrolment token is used up; make a new one on the site's page"
            if request.token == "old-token":
                message = "this enrolment token has expired; make a new one on the site's page"
            return 401, protocol.Problem(code="unauthenticated", message=message)
        self.tokens.discard(request.token)
        return 201, self.admit(request.public_key)

    def admit(self, public_key: bytes) -> protocol.EnrolReply:
        """Makes a node of a key."""
        node = uuid4()
        self.nodes[node] = public_key
        return protocol.EnrolReply(
            node=node,
            fingerprint=protocol.fingerprint(public_key),
            server=SERVER,
            agents_url=self.url,
            market_key=self._key.public_key().public_bytes_raw(),
        )

    def _proof(self, parts: list[str], body: bytes) -> Any:
        if self.proof_task is None:
            return 404, protocol.Problem(code="missing", message="no proof is due")
        if not parts:
            return 200, self.proof_task
        with self._noting():
            if parts[1] == "commit":
                self.proof_commit = protocol.decode(body, protocol.ProofCommit)
                return 200, protocol.ProofChallenge(cells=[(0, 1), (1, 5)])
            self.proof_opening = protocol.decode(body, protocol.ProofOpening)
            self.proof_task = None
        return 204, b""

    def _grant(self, id: UUID, request: protocol.UploadRequest) -> Any:
        if request.epoch != self.wanted[id].epoch or id in self.fenced:
            return 409, protocol.Problem(code="conflict", message="another lease has taken over")
        if self.faults.refuse_uploads:
            return 413, protocol.Problem(code="too_large", message="the quota is used up")
        files = []
        for file in request.files:
            upload = file.upload_id or (str(uuid4()) if len(file.parts) > 1 else None)
            puts = []
            for number, part in enumerate(file.parts):
                assert part.bytes <= protocol.PART_BYTES
                name = f"{id}/{request.kind}-{request.step}/{file.path}"
                query = f"part={number}&upload={upload or ''}&until={uuid4()}"
                checksum = base64.b64encode(bytes.fromhex(part.sha256)).decode()
                puts.append(
                    protocol.Put(
                        url=f"{self.url}/store/put/{name}?{query}",
                        headers={
                            "content-length": str(part.bytes),
                            "x-amz-checksum-sha256": checksum,
                        },
                    )
                )
            files.append(protocol.Upload(path=file.path, upload_id=upload, puts=puts))
        return 200, protocol.UploadReply(files=files)

    def _commit(self, id: UUID, request: protocol.CommitRequest) -> Any:
        if request.epoch != self.wanted[id].epoch or id in self.fenced:
            return 409, protocol.Problem(code="conflict", message="another lease has taken over")
        found = {}
        for file in request.files:
            name = f"{id}/{request.kind}-{request.step}/{file.path}"
            if file.upload_id:
                parts = self._uploads.get(file.upload_id, {})
                self.objects[name] = b"".join(parts[number] for number in sorted(parts))
                assert len(file.etags) == len(parts)
            data = self.objects.get(name)
            if data is None or hashlib.sha256(data).hexdigest() != file.sha256:
                return 409, protocol.Problem(code="conflict", message=f"{file.path} not arrived")
            found[file.path] = data
        with self._noting():
            self.commits += 1
            self.folders.append(Sent(request.kind, request.step, found, request.seconds))
        if self.faults.lose_commits:
            self.faults.lose_commits -= 1
            return 503, protocol.Problem(code="unavailable", message="the answer is lost")
        manifest = [File(path=f.path, bytes=f.bytes, sha256=f.sha256) for f in request.files]
        return 200, protocol.CommitReply(manifest=protocol.manifest_sha256(manifest))

    # Storage.

    async def _store(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        _, _, verb, name = scope["path"].split("/", 3)
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        if verb == "get":
            await self._get(name, headers.get("range", ""), send)
            return
        body = await _read(receive)
        if self.faults.expire_uploads:
            self.faults.expire_uploads -= 1
            await _reply(send, 403, b"Request has expired")
            return
        checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if headers["x-amz-checksum-sha256"] != checksum or len(body) != int(
            headers["content-length"]
        ):
            await _reply(send, 400, b"BadDigest")
            return
        query = parse_qs(scope["query_string"].decode())
        self.puts.append(name)
        if upload := query.get("upload"):
            self._uploads.setdefault(upload[0], {})[int(query["part"][0])] = body
        else:
            self.objects[name] = body
        await _reply(send, 200, b"", [(b"etag", b'"e"')])

    async def _get(self, sha256: str, span: str, send: Any) -> None:
        with self._noting():
            self.gets.append((sha256, span))
        if self.faults.expire_downloads:
            self.faults.expire_downloads -= 1
            await _reply(send, 403, b"Request has expired")
            return
        data = self.objects[sha256]
        if self.faults.spoil:
            self.faults.spoil -= 1
            data = bytes(len(data))
        start = 0
        if span and not self.faults.no_ranges:
            start = int(span.removeprefix("bytes=").removesuffix("-"))
        length = str(len(data) - start).encode()
        status = 206 if start else 200
        await send(
            {"type": "http.response.start", "status": status,
             "headers": [(b"content-length", length)]}
        )  # fmt: skip
        if self.faults.break_after:
            end = start + self.faults.break_after.pop(0)
            await send({"type": "http.response.body", "body": data[start:end], "more_body": True})
            await asyncio.sleep(0.05)
            raise ConnectionError("broken off")
        await send({"type": "http.response.body", "body": data[start:]})


class _Talk:
    """One socket."""

    def __init__(self, receive: Any, send: Any) -> None:
        self._receive, self._send = receive, send
        self.bearer, self.seq = secrets.token_hex(8), -1
        self._tasks: set[asyncio.Task[None]] = set()

    async def say(self, message: protocol.Down) -> None:
        text = protocol.encode(message).decode()
        with contextlib.suppress(Exception):
            await self._send({"type": "websocket.send", "text": text})

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await self._send({"type": "websocket.close", "code": 1011})

    async def hear(self) -> protocol.Up | None:
        event = await self._receive()
        return protocol.decode_up(event["text"]) if event["type"] == "websocket.receive" else None

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _read(receive: Any) -> bytes:
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            return body


async def _reply(send: Any, status: int, body: bytes, headers: Any = ()) -> None:
    start = {"type": "http.response.start", "status": status,
             "headers": [(b"content-length", str(len(body)).encode()), *headers]}  # fmt: skip
    await send(start)
    await send({"type": "http.response.body", "body": body})
