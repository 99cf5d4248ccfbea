"""The agents' process as it really runs, uvicorn and all, and a node's end of its socket."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta

import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from agent import protocol
from agent.protocol import Ack, Challenge, Desired, Down, Refused, Up, Welcome
from suppliers.models import Node
from tests.suppliers.machine import Machine, heartbeat

SOON = 20
"""Seconds that an answer may take on the busiest machine; none is awaited by its pace."""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Runs the agents' application on a free port; yields host:port."""
    from marketplace.asgi import agents

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(agents, lifespan="on", ws="websockets-sansio", log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield host
        finally:
            server.should_exit = True
            thread.join()


class Peer:
    """One socket to the market, and what is said on it."""

    def __init__(self, wire: ClientConnection, machine: Machine, server: str) -> None:
        self.wire, self.machine, self.server = wire, machine, server
        self.bearer = ""

    async def say(self, message: Up) -> None:
        await self.wire.send(protocol.encode(message).decode())

    async def hear(self) -> Down:
        async with asyncio.timeout(SOON):
            return protocol.decode_down(await self.wire.recv())

    async def greet(self, **hello: object) -> Desired:
        """Challenge, hello, welcome, desired."""
        challenge = await self.hear()
        assert isinstance(challenge, Challenge)
        said = {"server": challenge.server, **hello}
        await self.say(self.machine.hello(challenge.nonce, **said))  # type: ignore[arg-type]
        welcome = await self.hear()
        assert isinstance(welcome, Welcome), welcome
        self.bearer = welcome.bearer
        desired = await self.hear()
        assert isinstance(desired, Desired)
        return desired

    async def beat(self, seq: int, **more: object) -> Down:
        """Says a heartbeat; returns the next word."""
        await self.say(heartbeat(seq, **more))
        return await self.hear()

    async def refusal(self) -> Refused:
        """Reads on to the refusal, and sees the socket close after it."""
        while not isinstance(message := await self.hear(), Refused):
            pass
        async with asyncio.timeout(SOON):
            await self.wire.wait_closed()
        return message

    async def acked(self, seq: int, **more: object) -> None:
        """Says a heartbeat that is taken in."""
        answer = await self.beat(seq, **more)
        assert isinstance(answer, Ack), answer
        assert answer.seq == seq


@contextlib.asynccontextmanager
async def dial(host: str, machine: Machine) -> AsyncIterator[Peer]:
    """Opens a socket and says nothing yet."""
    async with connect(f"ws://{host}/agent/v1/socket", max_size=2**20) as wire:
        yield Peer(wire, machine, host)


async def fresh(node: Node) -> Node:
    """The node as PostgreSQL has it now."""
    return await Node.objects.aget(pk=node.pk)


async def session_is(node: Node, session: object) -> bool:
    """For `until`."""
    return (await fresh(node)).session == session


async def until(truth: object, *, what: str) -> None:
    """Waits for a condition that another process brings about; fails, named, if it never does."""
    deadline = datetime.now() + timedelta(seconds=SOON)
    while not await truth():  # type: ignore[operator]
        assert datetime.now() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.02)
