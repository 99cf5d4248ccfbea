"""The agents' socket, `/agent/v1/socket` (`agent.protocol`): one conversation a node.

A plain ASGI application: nothing here needs a channel of its own, and 10,000 nodes on one
process count every microsecond. What a message means is the engine's and the services'; this
module keeps the order of the conversation, its limits, and who may speak for whom.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final
from uuid import UUID

import django.db
from django.conf import settings
from django.utils import timezone

from agent import protocol
from agent.protocol import Ack, Challenge, Desired, Heartbeat, Hello, Samples, Usage, Welcome
from marketplace.core.errors import MarketError
from suppliers import dialogue, services, sessions
from suppliers.dialogue import Refusal
from suppliers.listening import LISTENER, in_thread
from suppliers.throttle import Bucket

log = logging.getLogger(__name__)

_HELLO_S: Final = 10.0
_CLOSED: Final = 4000
"""The close code after `refused`: of the range that RFC 6455 leaves to applications."""
# An hour of spooled claims of 16 assignments is a burst of 960; a node alone needs one a second.
_MESSAGES: Final = (20.0, 1000.0)
# Lines of curves and log; what is more is dropped, as it may be.
_LINES: Final = (50.0, 2000.0)
_ALIVE_BEATS: Final = 1.3
"""A socket silent for longer than so many heartbeats was dead when it was taken over."""

_Event = dict[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]


async def socket(scope: _Event, receive: _Receive, send: _Send) -> None:
    """The ASGI application."""
    await Conversation(receive, send).run()


async def nothing_here(scope: _Event, receive: _Receive, send: _Send) -> None:
    """Every other address: refused before the handshake."""
    await send({"type": "websocket.close"})


class _Gone(Exception):
    """The peer has closed the socket, or it broke."""


class Conversation:
    """One socket, from the challenge to its end."""

    def __init__(self, receive: _Receive, send: _Send) -> None:
        self._receive, self._send = receive, send
        self._lock = asyncio.Lock()
        """Held while a message is being answered, so that answers and pushes keep their order."""
        self._open = True
        self._tasks: set[asyncio.Task[None]] = set()
        self._messages, self._lines = Bucket(*_MESSAGES), Bucket(*_LINES)
        # Set by hello.
        self._node = self.session = UUID(int=0)
        self._boot = ""
        self._owner = (False, "")
        self._seq, self._up_ms = -1, 0
        self._heard_at = self._bearer_at = 0.0
        self._desired = Desired(assignments=[])
        self._running = False
        self._refresh_due = False

    async def run(self) -> None:
        """Talks until either side is done. What goes wrong harms this socket only."""
        await self._receive()
        await self._send({"type": "websocket.accept"})
        try:
            await self._greet()
            LISTENER.enter(self._node, self)
            while True:
                await self._answer(await self._hear())
        except _Gone:
            pass
        except Refusal as refusal:
            await self._refuse(refusal)
        except (django.db.DataError, django.db.IntegrityError) as error:
            # Not for want of a database: the same message would fail again.
            log.warning("node %s says what can't be kept: %s", self._node, error)
            await self._refuse(Refusal("malformed", "no message of this protocol says such things"))
        except django.db.Error as error:
            log.warning("a socket closes for want of the database: %s", error)
            await self._refuse(Refusal("unavailable", "the market's database is away; try again"))
        finally:
            self._open = False
            for task in self._tasks:
                task.cancel()
            if self.session.int:
                LISTENER.leave(self._node, self)
                await self._hang_up()

    def has_work(self) -> bool:
        """Whether the node has been told to run anything."""
        return bool(self._desired.assignments)

    def refresh(self) -> None:
        """Pushes what is desired if it has changed; calls until it has looked count as one."""
        if not self._refresh_due:
            self._refresh_due = True
            self._spawn(self._push_desired())

    def taken(self) -> None:
        """Another socket speaks for this node now: the end of this one."""
        if self._open:
            self._open = False
            self._spawn(self._give_way())

    def lost(self) -> None:
        """The market gave the node up in its silence: what it runs must be told anew."""
        self._spawn(self._refuse(Refusal("lost", "you were silent for too long; say hello again")))

    async def _greet(self) -> None:
        """Challenge, hello, welcome, desired."""
        nonce = secrets.token_hex(32)
        server = services.server_name()
        await self._say(Challenge(version=protocol.VERSION, nonce=nonce, server=server))
        try:
            async with asyncio.timeout(_HELLO_S):
                hello = await self._hear()
        except TimeoutError:
            raise Refusal("silent", f"no hello within {_HELLO_S:g} seconds") from None
        if not isinstance(hello, Hello):
            raise Refusal("out_of_order", "a socket begins with hello", final=True)
        opened = await in_thread(dialogue.open_session, hello, nonce=nonce, now=timezone.now())
        self._node, self.session = opened.node, opened.session
        self._boot, self._owner = hello.boot_id, opened.owner
        self._desired, self._running = opened.desired, bool(hello.assignments)
        policy = settings.POLICY
        await self._say(
            Welcome(
                server_ms=time.time_ns() // 1_000_000,
                interval_s=policy.heartbeat_s,
                lease_ttl_s=policy.lease_ttl_s,
                spool_s=policy.spool_s,
                bearer=self._new_bearer(),
                bearer_s=policy.bearer_s,
            )
        )
        await self._say(self._desired)

    async def _hear(self) -> protocol.Up:
        """The next message, at the pace that one node may speak."""
        event = await self._receive()
        if event["type"] == "websocket.disconnect":
            raise _Gone
        wait = self._messages.take(time.monotonic())
        if wait:
            # Not reading on is what slows the peer down.
            await asyncio.sleep(wait)
        self._heard_at = time.monotonic()
        raw: str | bytes = event.get("text") or event.get("bytes") or ""
        try:
            return dialogue.decode(raw)
        except protocol.Malformed as error:
            raise Refusal("malformed", f"not a message of this protocol: {error}") from None

    async def _answer(self, message: protocol.Up) -> None:
        async with self._lock:
            try:
                match message:
                    case Heartbeat():
                        await self._take_heartbeat(message)
                    case Usage():
                        receipt = await in_thread(
                            dialogue.claim, self._node, message, now=timezone.now()
                        )
                        await self._say(receipt)
                    case Samples():
                        await self._take_samples(message)
                    case Hello():
                        raise Refusal("out_of_order", "hello is said once", final=True)
            except MarketError as error:
                raise Refusal(error.code, str(error)) from None
            except (django.db.OperationalError, django.db.InterfaceError) as error:
                # Not answered is not taken in: the node says it again, and its jobs run on.
                log.warning("a message of node %s waits for the database: %s", self._node, error)

    async def _take_heartbeat(self, beat: Heartbeat) -> None:
        if beat.boot_id != self._boot:
            raise Refusal("rebooted", "another boot than in hello; say hello again")
        if beat.seq <= self._seq or beat.up_ms < self._up_ms:
            raise Refusal("replayed", f"heartbeat {beat.seq} has been heard; say hello again")
        now = timezone.now()
        LISTENER.heard(self._node, now, beat.devices)
        owner = (beat.owner_busy, beat.owner_why if beat.owner_busy else "")
        if owner != self._owner:
            await in_thread(dialogue.note_owner, self._node, owner, now=now)
            self._owner = owner
        running = bool(beat.assignments)
        if running or self._running or self.has_work():
            desired = await in_thread(dialogue.hear, self._node, self.session, beat, now=now)
            await self._tell(desired)
        self._seq, self._up_ms, self._running = beat.seq, beat.up_ms, running
        bearer = self._new_bearer() if self._bearer_is_old() else None
        await self._say(Ack(seq=beat.seq, bearer=bearer))

    async def _take_samples(self, samples: Samples) -> None:
        lines = len(samples.metrics) + len(samples.logs)
        if lines and self._lines.allows(time.monotonic(), lines):
            await in_thread(dialogue.keep_samples, self._node, samples, now=timezone.now())

    async def _push_desired(self) -> None:
        async with self._lock:
            self._refresh_due = False
            try:
                desired = await in_thread(dialogue.desired, self._node, self.session)
                await self._tell(desired)
            except Refusal as refusal:
                await self._refuse(refusal)
            except _Gone:
                pass
            except django.db.Error as error:
                log.warning("node %s can't be told what to run: %s", self._node, error)

    async def _tell(self, desired: Desired) -> None:
        if desired != self._desired:
            self._desired = desired
            await self._say(desired)

    async def _give_way(self) -> None:
        silent_s = time.monotonic() - self._heard_at
        if silent_s <= settings.POLICY.heartbeat_s * _ALIVE_BEATS:
            try:
                await in_thread(dialogue.note_swap, self._node, now=timezone.now())
            except django.db.Error as error:
                log.warning("a takeover of node %s was not noted: %s", self._node, error)
        await self._refuse(
            Refusal("taken_over", "another agent with this node's key has connected")
        )

    async def _refuse(self, refusal: Refusal) -> None:
        """The last word on this socket: why, then the close."""
        log.info("node %s refused: %s", self._node if self.session.int else "?", refusal)
        try:
            await self._say(
                protocol.Refused(
                    code=refusal.code, message=str(refusal)[:2000], final=refusal.final
                )
            )
            await self._send({"type": "websocket.close", "code": _CLOSED})
        except (_Gone, OSError, RuntimeError):
            # The peer was faster.
            pass

    async def _say(self, message: protocol.Down) -> None:
        try:
            await self._send({"type": "websocket.send", "text": protocol.encode(message).decode()})
        except (OSError, RuntimeError):
            # The server's words for a socket that has closed in the meantime.
            raise _Gone from None

    async def _hang_up(self) -> None:
        try:
            await in_thread(sessions.end_session, self._node, self.session)
        except django.db.Error as error:
            log.warning("the session of node %s was not ended: %s", self._node, error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _new_bearer(self) -> str:
        self._bearer_at = time.monotonic()
        return sessions.make_bearer(self._node, self.session)

    def _bearer_is_old(self) -> bool:
        return time.monotonic() - self._bearer_at > settings.POLICY.bearer_s / 2
