"""A buyer's end of a shell in a running job, `/api/v1/jobs/<id>/shell`, for the command line.

By an API key with the scope `attach`; for everybody but the job's org there is no such job. Typed
frames (`agent.sandbox.init.serve_shell`) go to the node's agent, what the terminal shows comes
back, and what was typed is kept.
"""

import asyncio
import codecs
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import django.db
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.utils import timezone
from rest_framework.exceptions import AuthenticationFailed

from buyers.models import Job
from marketplace.core.errors import MarketError
from marketplace.http import key_of
from marketplace.models import Scope
from marketplace.telemetry import CutOff, Exchange, shell_exchange
from scheduler import shells
from scheduler.models import Shell

log = logging.getLogger(__name__)

_ANSWER_S: Final = 20.0
_MOST_FRAME: Final = 16 * 1024
_KEEP_S: Final = 5.0
_REFUSED: Final = 4000


class ShellConsumer(AsyncWebsocketConsumer):
    """One shell, as its user sees it."""

    _shell: Shell | None = None
    _exchange: Exchange | None = None
    _work: "Sequence[asyncio.Task[None]]" = ()

    async def connect(self) -> None:
        """Opens it, or says why not."""
        self._frames, self._ready = Frames(), asyncio.Event()
        try:
            found = await database_sync_to_async(self._find)()
        except AuthenticationFailed:
            found = None
        if found is None:
            await self._deny()
            return
        await self.accept()
        job, user = found
        try:
            self._shell = await database_sync_to_async(shells.open_shell)(
                job, by=user, now=timezone.now()
            )
            self._exchange = shell_exchange(self._shell.pk, node=False)
            await self._exchange.open()
        except (MarketError, CutOff, django.db.Error) as error:
            await self.close(code=_REFUSED, reason=str(error)[:120])
            return
        self._work = [
            asyncio.create_task(self._show(self._exchange)),
            asyncio.create_task(self._keep(self._shell)),
        ]

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """What was typed."""
        data = bytes_data or b""
        if self._exchange is None or text_data or len(data) > _MOST_FRAME:
            await self.close(code=_REFUSED, reason="send frames of at most 16 KiB")
            return
        await self._ready.wait()
        whole = self._frames.take(data)
        if self._frames.received > shells.MOST_TYPED:
            await self.close(code=_REFUSED, reason="more was typed than is kept")
            return
        try:
            if whole:
                await self._exchange.say(whole)
        except CutOff as error:
            await self.close(code=_REFUSED, reason=str(error)[:120])

    async def disconnect(self, code: int) -> None:
        """It is over, whoever ended it."""
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        if self._exchange is not None:
            with contextlib.suppress(CutOff):
                await self._exchange.say(None)
            await self._exchange.close()
        if self._shell is not None:
            await database_sync_to_async(self._end)(self._shell)

    async def _show(self, exchange: Exchange) -> None:
        """All that the terminal shows, from the moment that the node answers."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                first = await exchange.hear()
            self._ready.set()
            data = first
            while data is not None:
                if data:
                    await self.send(bytes_data=data)
                data = await exchange.hear()
            await self.close()
        except TimeoutError:
            await self.close(code=_REFUSED, reason="the node doesn't answer")
        except CutOff as error:
            await self.close(code=_REFUSED, reason=str(error)[:120])
        finally:
            # Who waits to say something must not wait for ever: its end is then not heard of.
            self._ready.set()

    async def _keep(self, shell: Shell) -> None:
        """What was typed, every few seconds: our process may go at any time."""
        open_still = True
        while open_still:
            await asyncio.sleep(_KEEP_S)
            try:
                open_still = await database_sync_to_async(shells.keep)(
                    shell, typed=self._frames.typed, now=timezone.now()
                )
            except django.db.Error as error:
                log.warning("what was typed into %s is not kept for now: %s", shell.pk, error)
        await self.close()

    def _end(self, shell: Shell) -> None:
        shells.keep(shell, typed=self._frames.typed, now=timezone.now())
        shells.end(shell, now=timezone.now())

    def _find(self) -> tuple[Job, Any] | None:
        said = dict(self.scope["headers"]).get(b"authorization", b"").decode("latin-1")
        key = key_of(said)
        if key is None or Scope.ATTACH not in key.scopes:
            return None
        pk: UUID = self.scope["url_route"]["kwargs"]["pk"]
        job = Job.objects.of(key.org).filter(pk=pk).first()
        return (job, key.created_by) if job else None

    async def _deny(self) -> None:
        """404 on the handshake, where the server can say so; else it is refused."""
        if "websocket.http.response" not in self.scope.get("extensions", {}):
            await self.close()
            return
        start = {"type": "websocket.http.response.start", "status": 404, "headers": []}
        await self.base_send(start)
        await self.base_send({"type": "websocket.http.response.body", "body": b""})


class Frames:
    """What was typed, cut into whole frames, however it was cut into messages: nothing passes on
    that has not been read."""

    def __init__(self) -> None:
        self.typed, self.received = "", 0
        self._rest = b""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def take(self, data: bytes) -> bytes:
        """The frames that are whole by now; keeps the keys in them, and no windows' sizes."""
        self.received += len(data)
        told, begun = self._rest + data, 0
        while (end := begun + 3 + int.from_bytes(told[begun + 1 : begun + 3], "big")) <= len(told):
            if told[begun : begun + 1] == b"d":
                self.typed += self._decode(told[begun + 3 : end])
            begun = end
        self._rest = told[begun:]
        return told[:begun]
