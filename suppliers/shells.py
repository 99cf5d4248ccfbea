"""A node's end of a shell, `/agent/v1/shells/<id>`: a socket that its agent opens when it is told
that somebody wants to look into a job. Bytes pass to and from the buyer's process."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import django.db
from django.utils import timezone

from marketplace.core.errors import MarketError
from marketplace.telemetry import CutOff, Exchange, shell_exchange
from scheduler import shells
from scheduler.models import Shell
from suppliers import sessions
from suppliers.listening import in_thread

log = logging.getLogger(__name__)

_MOST_SHOWN = 64 * 1024
"""Bytes of one message: an agent sends a quarter of it."""

_Event = dict[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]


async def socket(scope: _Event, receive: _Receive, send: _Send) -> None:
    """The ASGI application."""
    await receive()
    try:
        shell = await in_thread(_take, scope)
    except (MarketError, django.db.Error) as error:
        log.info("a shell is refused: %s", error)
        await send({"type": "websocket.close"})
        return
    exchange = shell_exchange(shell.pk, node=True)
    try:
        await exchange.open()
        await send({"type": "websocket.accept"})
        await exchange.say(b"")  # from here on the buyer is heard
        work = [
            asyncio.create_task(one)
            for one in (_from_node(receive, exchange), _to_node(send, exchange))
        ]
        await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for task in work:
            task.cancel()
        for ended in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(ended, CutOff):
                log.warning("the shell %s is cut off: %s", shell.pk, ended)
        await exchange.say(None)
    except CutOff as error:
        log.warning("the shell %s is cut off: %s", shell.pk, error)
    finally:
        await exchange.close()
        with contextlib.suppress(OSError, RuntimeError):
            await send({"type": "websocket.close"})


async def _from_node(receive: _Receive, exchange: Exchange) -> None:
    while (event := await receive())["type"] == "websocket.receive":
        data = event.get("bytes") or b""
        if len(data) > _MOST_SHOWN:
            return
        await exchange.say(data)


async def _to_node(send: _Send, exchange: Exchange) -> None:
    while (data := await exchange.hear()) is not None:
        await send({"type": "websocket.send", "bytes": data})


def _take(scope: _Event) -> Shell:
    said = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    node = sessions.node_of_bearer(said.removeprefix("Bearer ").strip())
    return shells.take(node, scope["url_route"]["kwargs"]["pk"], now=timezone.now())
