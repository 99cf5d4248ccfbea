"""A market for the agent's tests: the real protocol over real sockets, signatures checked, with an
object store that serves ranges and refuses what was not signed. It decides nothing by itself.

It runs in a thread of its own, so that tests can wait for it whether or not they have a loop.
"""

import asyncio
import contextlib
import hashlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import msgspec
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent import protocol
from agent.protocol import AssignmentSpec, Claim, Desired, Drain, File, Input, Status, Wanted
from tests.agent.endpoints import Endpoints
from tests.agent.store import Faults, Sent, Store

SERVER = "test market"
_WITHIN_S = 60


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
        self.statuses: dict[UUID, Status] = {}
        self.history: list[Status] = []
        self.heartbeats: list[protocol.Heartbeat] = []
        self.hellos: list[protocol.Hello] = []
        self.claims: list[Claim] = []
        self.metrics: list[protocol.Metric] = []
        self.logs: list[protocol.LogChunk] = []
        self.folders: list[Sent] = []
        self.commits = 0
        self.secrets: dict[str, str] | None = {}
        """None: this node gets none."""
        self.proof_task: protocol.ProofTask | None = None
        self.proof_opening: protocol.ProofOpening | None = None
        self.proof_commit: protocol.ProofCommit | None = None
        self.layers: protocol.LayerUrls | None = protocol.LayerUrls(urls={})
        """Where an image's layers lie; None: nobody has them any more."""
        self.fenced: set[UUID] = set()
        """Assignments of which nothing is taken any more."""
        self.problems: list[str] = []
        """What a node did that no node may."""
        self.key = Ed25519PrivateKey.generate()
        self.bearers: dict[str, UUID] = {}
        self._pushes: set[Callable[[], None]] = set()
        self._cuts: set[Callable[[], None]] = set()
        self._news = threading.Condition(threading.RLock())
        self.store = Store(self.faults, self._news)
        self.endpoints = Endpoints(self)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def objects(self) -> dict[str, bytes]:
        return self.store.objects

    @property
    def gets(self) -> list[tuple[str, str]]:
        """(sha256, the Range header) of each download."""
        return self.store.gets

    @property
    def puts(self) -> list[str]:
        return self.store.puts

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
        self.bearers.clear()
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
            self.store.objects[sha256] = data
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
    def noting(self) -> Iterator[None]:
        with self._news:
            yield
            self._news.notify_all()

    # The applications.

    async def _app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self._socket(receive, send)
        elif scope["path"].startswith("/store/"):
            await self.store.app(scope, receive, send)
        else:
            await self.endpoints.app(scope, receive, send)

    def admit(self, public_key: bytes) -> protocol.EnrolReply:
        """Makes a node of a key."""
        node = uuid4()
        self.nodes[node] = public_key
        return protocol.EnrolReply(
            node=node,
            fingerprint=protocol.fingerprint(public_key),
            server=SERVER,
            agents_url=self.url,
            market_key=self.key.public_key().public_bytes_raw(),
        )

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
            self.bearers.pop(talk.bearer, None)

    async def _greet(self, talk: "_Talk") -> protocol.Hello | None:
        nonce = secrets.token_hex(32)
        await talk.say(
            protocol.Challenge(version=protocol.VERSION, nonce=nonce, server=self.server_name)
        )
        hello = await talk.hear()
        if not isinstance(hello, protocol.Hello):
            return None
        said = protocol.hello_bytes(hello.node, nonce, hello.boot_id, self.server_name)
        self._public_key(hello.node).verify(hello.signature, said)
        self.bearers[talk.bearer] = hello.node
        with self.noting():
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
            with self.noting():
                self.heartbeats.append(message)
                self._note(message.assignments)
            await talk.say(protocol.Ack(seq=message.seq))
        elif isinstance(message, protocol.Usage):
            await self._claim(node, message, talk)
        elif isinstance(message, protocol.Samples):
            with self.noting():
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
        with self.noting():
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
        signature = self.key.sign(protocol.receipt_bytes(node, body))
        await talk.say(protocol.Receipt(body=body, signature=signature))


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
