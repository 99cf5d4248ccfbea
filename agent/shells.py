"""A shell that somebody wants in a job here: a terminal in its sandbox, joined to the market.

The market says so in what it wants run (`Wanted.shells`); the agent opens a socket of its own for
each, and moves bytes until either end closes. Nothing of a shell is kept on the node.
"""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Final
from uuid import UUID

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from agent.config import is_loopback
from agent.sandbox import visits

log = logging.getLogger(__name__)

_WITHIN_S: Final = 20.0
_CHUNK: Final = 16 * 1024


async def attend(shell: UUID, folder: Path, agents_url: str, bearer: str) -> None:
    """Serves one shell to its end; a shell that fails harms nothing else."""
    scheme, _, rest = agents_url.partition("://")
    address = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/agent/v1/shells/{shell}"
    try:
        terminal = await asyncio.to_thread(visits.visit, folder)
    except visits.NoVisit as error:
        log.warning("the shell %s: %s", shell, error)
        return
    reader, writer = await asyncio.open_unix_connection(sock=terminal)
    try:
        async with connect(
            address,
            additional_headers={"Authorization": f"Bearer {bearer}"},
            compression=None,
            open_timeout=_WITHIN_S,
            close_timeout=1,
            proxy=None if is_loopback(agents_url) else True,
        ) as market:
            work = [
                asyncio.create_task(one) for one in (_show(reader, market), _type(market, writer))
            ]
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
    except (OSError, TimeoutError, InvalidHandshake) as error:
        log.warning("the shell %s is cut off: %s", shell, error)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _show(terminal: asyncio.StreamReader, market: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while data := await terminal.read(_CHUNK):
            await market.send(data)


async def _type(market: ClientConnection, terminal: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for data in market:
            if isinstance(data, bytes):
                terminal.write(data)
                await terminal.drain()
