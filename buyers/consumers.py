"""The live job page's socket: fragments that have changed, and new points of the curves.

A doorbell says only that something changed; the socket then looks again, at most twice a
second, and sends what differs from what it sent before. It looks every quarter of a minute
without a bell, too, so a lost one costs time and nothing else.
"""

import asyncio
import contextlib
import json
import logging
from datetime import datetime
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import django.db
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.core.serializers.json import DjangoJSONEncoder
from django.http import Http404, HttpRequest
from django.utils import timezone

from buyers import fragments, jobview
from buyers.models import Job
from marketplace import telemetry
from marketplace.core.errors import MarketError
from marketplace.http import org_of

log = logging.getLogger(__name__)

PAUSE_S: Final = 0.5
LOOK_S: Final = 15.0


class JobConsumer(AsyncWebsocketConsumer):
    """One open page of one job."""

    pk: UUID
    _after: str = ""
    _last: dict[str, Any] | None = None
    _sent: dict[str, bytes]
    _tasks: tuple["asyncio.Task[None]", ...] = ()

    async def connect(self) -> None:
        """Accepts a member of the job's org; for everybody else there is no such job."""
        self.pk = self.scope["url_route"]["kwargs"]["pk"]
        self._sent, self._rung = {}, asyncio.Event()
        self._rung.set()
        if await database_sync_to_async(self._find)() is None:
            await self._deny()
            return
        await self.accept()
        self._tasks = (
            asyncio.create_task(self._listen()),
            asyncio.create_task(self._show()),
        )

    async def disconnect(self, code: int) -> None:
        """The page is closed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deny(self) -> None:
        """404 on the handshake, where the server can say so; else it is refused."""
        if "websocket.http.response" not in self.scope.get("extensions", {}):
            await self.close()
            return
        start = {"type": "websocket.http.response.start", "status": 404, "headers": []}
        await self.base_send(start)
        await self.base_send({"type": "websocket.http.response.body", "body": b""})

    async def _listen(self) -> None:
        async for _ in telemetry.listen(telemetry.job_group(self.pk)):
            self._rung.set()

    async def _show(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._rung.wait(), LOOK_S)
            self._rung.clear()
            try:
                news = await database_sync_to_async(self._look)(timezone.now())
            except Http404:
                # No longer a member.
                await self.close()
                return
            except (django.db.Error, MarketError) as error:
                log.warning("the page of job %s waits: %s", self.pk, error)
                continue
            for text in news:
                await self.send(text_data=text)
            await asyncio.sleep(PAUSE_S)

    def _find(self) -> Job | None:
        # A socket begins as an HTTP request, and is judged like one.
        request = HttpRequest()
        request.user, request.session = self.scope["user"], self.scope["session"]
        try:
            mine = Job.objects.of(org_of(request)).select_related("created_by")
            return mine.filter(pk=self.pk).first()
        except MarketError:
            return None

    def _look(self, now: datetime) -> list[str]:
        """What to send: fragments that have changed, in one piece of HTML, and new points."""
        job = self._find()
        if job is None:
            raise Http404
        pieces = fragments.of_job(job, now=now).items()
        html = "".join(text for name, text in pieces if self._is_news(name, text))
        found = jobview.points(job, after=self._after)
        # The last point comes again, as it may have grown.
        rows = [row for row in found.rows if row != self._last]
        self._after, self._last = found.next, found.rows[-1] if found.rows else self._last
        points = json.dumps({"points": rows}, cls=DjangoJSONEncoder) if rows else ""
        return [text for text in (html, points) if text]

    def _is_news(self, name: str, text: str) -> bool:
        digest = sha256(text.encode()).digest()
        if self._sent.get(name) == digest:
            return False
        self._sent[name] = digest
        return True
