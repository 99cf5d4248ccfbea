"""The one socket to the market: challenge, hello, welcome; then what is, against what is wanted.

Level-triggered: after a cut everything is said anew, so nothing needs to be remembered but what
is signed. Cut off, the agent is back within two seconds; only after a refusal it waits longer,
so that a market that is overrun isn't run over.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol, TypeVar
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from agent import order as files
from agent import protocol
from agent.api import Bearer
from agent.config import Config, is_loopback
from agent.patience import spread
from agent.protocol import (
    Ack,
    Challenge,
    Desired,
    Down,
    Heartbeat,
    Hello,
    Inventory,
    Receipt,
    Refused,
    Samples,
    Status,
    Up,
    Usage,
    Welcome,
)

log = logging.getLogger(__name__)

_GREETING_S: Final = 20.0
_SOON_S: Final = 2.0
_APART_S: Final = 0.05
"""Two heartbeats are at least so far apart, however much changes."""
_SAMPLES_S: Final = 1.0
_AGAIN_S: Final = 15.0
"""A claim without a receipt is sent again after this long."""
_T = TypeVar("_T", Challenge, Welcome)


class TurnedAway(Exception):
    """The market has refused this socket; if `final`, trying again can't help."""

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.final = final


class Node(Protocol):
    """Who speaks through the socket."""

    def inventory(self) -> Inventory: ...

    def statuses(self) -> list[Status]: ...

    def heartbeat(self, seq: int) -> Heartbeat: ...

    def claims(self) -> Mapping[UUID, Usage]:
        """Those without a receipt."""
        ...

    def samples(self) -> Samples | None: ...

    def welcomed(self, welcome: Welcome) -> None: ...

    def desires(self, desired: Desired) -> None: ...

    def receives(self, receipt: Receipt) -> None: ...


@dataclass(frozen=True)
class Pace:
    """Seconds until the next attempt, drawn from these ranges."""

    after_a_cut: tuple[float, float] = (0.1, 2.0)
    after_a_refusal: tuple[float, float] = (0.0, 30.0)


PACE: Final = Pace()


class Client:
    """Keeps the socket open for as long as the agent lives."""

    def __init__(
        self, config: Config, key: Ed25519PrivateKey, node: Node, bearer: Bearer, pace: Pace
    ) -> None:
        self._config, self._key, self._node, self._bearer = config, key, node, bearer
        self._pace = pace
        self._seq = 0
        self._interval_s = 10.0
        self._bell = asyncio.Event()
        self._beat_by = 0.0
        self._cut_at: float | None = time.monotonic()
        self._cut_by = ""

    @property
    def away_s(self) -> float:
        """For how long the market has not been heard; 0 while the socket is open."""
        return 0.0 if self._cut_at is None else time.monotonic() - self._cut_at

    def ring(self) -> None:
        """Something has changed that the market should hear at once."""
        self._beat_by = 0.0
        self._bell.set()

    def ring_soon(self) -> None:
        """The same, but a few seconds don't matter."""
        soon = time.monotonic() + _SOON_S
        if soon < self._beat_by:
            self._beat_by = soon
            self._bell.set()

    async def run(self) -> NoReturn:
        """Connects again and again; raises TurnedAway if that is final."""
        while True:
            try:
                await self._connect()
            except TurnedAway as refusal:
                if refusal.final:
                    raise
                log.warning("the market refuses: %s", refusal)
                await asyncio.sleep(spread(*self._pace.after_a_refusal))
            except InvalidStatus as refusal:
                log.warning("the market refuses: %s", refusal)
                await asyncio.sleep(spread(*self._pace.after_a_refusal))
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake) as cut:
                self._note_cut(f"{type(cut).__name__}: {cut}")
                await asyncio.sleep(spread(*self._pace.after_a_cut))

    def _note_cut(self, why: str) -> None:
        """Says it once, however often we try."""
        if why != self._cut_by:
            self._cut_by = why
            log.info("cut off from %s: %s", self._config.agents_url, why)

    async def _connect(self) -> None:
        url = self._config.agents_url
        async with connect(
            socket_url(url),
            compression=None,
            max_size=protocol.MAX_MESSAGE,
            open_timeout=_GREETING_S,
            ping_interval=10,
            ping_timeout=20,
            close_timeout=1,
            proxy=None if is_loopback(url) else True,
        ) as socket:
            try:
                await self._greet(socket)
                await self._talk(socket)
            finally:
                if self._cut_at is None:
                    self._cut_at = time.monotonic()
                self._bearer.clear()

    async def _greet(self, socket: ClientConnection) -> None:
        """Challenge, hello, welcome; raises TurnedAway."""
        challenge = await _expect(socket, Challenge)
        if challenge.version != protocol.VERSION:
            raise TurnedAway(
                f"the market speaks version {challenge.version} of the protocol, this agent "
                f"{protocol.VERSION}; install the agent that goes with this market",
                final=True,
            )
        if challenge.server != self._config.server:
            raise TurnedAway(
                f"this is the market {challenge.server!r}, and the node enrolled with "
                f"{self._config.server!r}: its address leads elsewhere by now",
                final=True,
            )
        boot = files.boot_id()
        said = protocol.hello_bytes(self._config.node, challenge.nonce, boot, self._config.server)
        hello = Hello(
            version=protocol.VERSION,
            node=self._config.node,
            nonce=challenge.nonce,
            boot_id=boot,
            server=self._config.server,
            signature=self._key.sign(said),
            inventory=self._node.inventory(),
            assignments=self._node.statuses(),
        )
        await _say(socket, hello)
        welcome = await _expect(socket, Welcome)
        self._interval_s = welcome.interval_s
        self._bearer.set(welcome.bearer)
        self._cut_at, self._cut_by = None, ""
        log.info("connected to %s", self._config.server)
        self._node.welcomed(welcome)

    async def _talk(self, socket: ClientConnection) -> None:
        """Both ways at once, until either fails."""
        tasks = [
            asyncio.create_task(self._listen(socket)),
            asyncio.create_task(self._speak(socket)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, socket: ClientConnection) -> None:
        while True:
            match await _hear(socket):
                case Desired() as desired:
                    self._node.desires(desired)
                case Receipt() as receipt:
                    self._node.receives(receipt)
                case Ack(bearer=str(bearer)):
                    self._bearer.set(bearer)
                case _:
                    pass

    async def _speak(self, socket: ClientConnection) -> None:
        """Claims first: what is billed at a job's end must have been claimed before; then curves,
        so that the last of them has come when a job is said to be over."""
        sent: dict[UUID, tuple[Usage, float]] = {}
        self._beat_by, samples_at = 0.0, 0.0
        while True:
            self._bell.clear()
            now = time.monotonic()
            beats = now >= self._beat_by
            for usage in self._due(sent, now):
                await _say(socket, usage)
            if (beats or now >= samples_at) and (samples := self._node.samples()):
                samples_at = now + _SAMPLES_S
                await _say(socket, samples)
            if beats:
                self._beat_by = now + self._interval_s * spread(0.8, 1.2)
                await _say(socket, self._node.heartbeat(self._seq))
                self._seq += 1
            await asyncio.sleep(_APART_S)
            with contextlib.suppress(TimeoutError):
                wait = min(self._beat_by - time.monotonic(), _SAMPLES_S)
                async with asyncio.timeout(max(wait, 0)):
                    await self._bell.wait()

    def _due(self, sent: dict[UUID, tuple[Usage, float]], now: float) -> list[Usage]:
        """Claims not yet said on this socket, or said and not answered for a while."""
        due = []
        for assignment, usage in self._node.claims().items():
            said, at = sent.get(assignment, (None, 0.0))
            if said != usage or now - at >= _AGAIN_S:
                sent[assignment] = usage, now
                due.append(usage)
        return due


def socket_url(agents_url: str) -> str:
    """The socket's address: encrypted wherever the other calls are."""
    scheme, _, rest = agents_url.partition("://")
    return f"{'wss' if scheme == 'https' else 'ws'}://{rest}/agent/v1/socket"


async def _say(socket: ClientConnection, message: Up) -> None:
    await socket.send(protocol.encode(message).decode())


async def _hear(socket: ClientConnection) -> Down:
    """The next message; raises TurnedAway for a refusal, or where the market talks nonsense."""
    try:
        message = protocol.decode_down(await socket.recv())
    except protocol.Malformed as error:
        raise TurnedAway(f"it sends what is not of this protocol: {error}", final=False) from None
    if isinstance(message, Refused):
        raise TurnedAway(message.message, final=message.final)
    return message


async def _expect(socket: ClientConnection, kind: type[_T]) -> _T:
    async with asyncio.timeout(_GREETING_S):
        message = await _hear(socket)
    if not isinstance(message, kind):
        raise TurnedAway(f"it sends {type(message).__name__} out of order", final=False)
    return message
