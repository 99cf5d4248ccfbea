"""The nodes' sockets of this process, seen together: who is here, who was heard, whom to wake.

What each heartbeat would cost as a write of its own is done for all at once: every two seconds
one UPDATE for last-seen, and every second the pulse that says that this process was listening
(`suppliers.pulse`). The pulse is written only after the flush before it succeeded, so it never
claims to have heard what PostgreSQL hasn't got.
"""

import asyncio
import itertools
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final, ParamSpec, Protocol, TypeVar, cast
from uuid import UUID

import django.db
import msgspec
from channels.db import database_sync_to_async
from django.conf import settings
from django.utils import timezone

from agent.protocol import DeviceSample
from marketplace import telemetry
from scheduler.models import Assignment
from suppliers import pulse, sessions

log = logging.getLogger(__name__)

PROCESS: Final = f"{socket.gethostname()[:60]}/{os.getpid()}"
_PULSE_S: Final = 1.0
_FLUSH_EVERY: Final = 2
"""Pulses from one flush to the next."""
_LOOK_EVERY: Final = 10
"""Pulses from one look for lost doorbells to the next."""
_KEEP_PULSES: Final = timedelta(days=1)

# Threads for the database, fewer than the connections of the pool, which pages share.
_THREADS: Final = ThreadPoolExecutor(max_workers=8, thread_name_prefix="sockets")
_P = ParamSpec("_P")
_R = TypeVar("_R")


async def in_thread(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Runs what talks to the database, without holding up the other sockets."""
    run = database_sync_to_async(function, thread_sensitive=False, executor=_THREADS)
    return cast(_R, await run(*args, **kwargs))


class Conversation(Protocol):
    """An open socket, as the listener knows it (`suppliers.consumers`)."""

    session: UUID

    def has_work(self) -> bool:
        """Whether the node has been told to run anything."""

    def refresh(self) -> None:
        """Look at what is desired, and tell the node if it has changed."""

    def taken(self) -> None:
        """Another socket speaks for the node now."""

    def lost(self) -> None:
        """The market has given the node up; it must say hello again."""


class Listener:
    """All conversations of this process. Its methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._here: dict[UUID, Conversation] = {}
        self._seen: dict[UUID, datetime] = {}
        self._samples: dict[UUID, list[DeviceSample]] = {}

    def enter(self, node: UUID, conversation: Conversation) -> None:
        """`conversation` speaks for `node` from now on; one before it learns that it's over."""
        before = self._here.get(node)
        self._here[node] = conversation
        if before is not None:
            before.taken()

    def leave(self, node: UUID, conversation: Conversation) -> None:
        """The socket has closed."""
        if self._here.get(node) is conversation:
            del self._here[node]

    def heard(self, node: UUID, at: datetime, samples: list[DeviceSample]) -> None:
        """The node has sent something; PostgreSQL learns of it with the next flush."""
        self._seen[node] = at
        if samples:
            self._samples[node] = samples

    async def run(self) -> None:
        """Flushes, pulses and answers doorbells until cancelled; then flushes once more."""
        try:
            async with asyncio.TaskGroup() as together:
                together.create_task(self._keep_time())
                together.create_task(self._answer_doorbells())
        finally:
            await self._flush()

    async def _keep_time(self) -> None:
        for count in itertools.count():
            await self._tick(count)
            await asyncio.sleep(_PULSE_S)

    async def _tick(self, count: int) -> None:
        if count % _FLUSH_EVERY == 0 and not await self._flush():
            return
        try:
            await in_thread(_pulse, timezone.now())
            if count % _LOOK_EVERY == 0:
                self._wake_those_with_news(await in_thread(_nodes_with_work))
        except django.db.Error as error:
            log.warning("the pulse of %s was not written: %s", PROCESS, error)

    async def _flush(self) -> bool:
        """Writes down who was heard; keeps it for the next time if PostgreSQL is away."""
        seen, self._seen = self._seen, {}
        samples, self._samples = self._samples, {}
        try:
            facts = await in_thread(_write, seen, samples)
        except django.db.Error as error:
            log.warning("last-seen of %s nodes waits for the database: %s", len(seen), error)
            self._seen = seen | self._seen
            return False
        for node, fact in facts.items():
            conversation = self._here.get(node)
            if conversation is None:
                continue
            if fact.session != conversation.session:
                conversation.taken()
            elif fact.lost:
                conversation.lost()
        return True

    def _wake_those_with_news(self, with_work: set[UUID]) -> None:
        """What a doorbell that was lost on its way would have done."""
        for node, conversation in self._here.items():
            if (node in with_work) != conversation.has_work():
                conversation.refresh()

    async def _answer_doorbells(self) -> None:
        async for message in telemetry.listen(telemetry.NODES_GROUP):
            if message["type"] == "desired.changed":
                nodes = [UUID(node) for node in message["nodes"]]
                for conversation in filter(None, map(self._here.get, nodes)):
                    conversation.refresh()
                continue
            taken = self._here.get(UUID(message["node"]))
            if taken is not None and message["session"] != str(taken.session):
                taken.taken()


LISTENER: Final = Listener()


async def lifespan(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
    """ASGI's lifespan: listens from the start of the process to its end, sockets or none.

    A market that restarts must know a node that never came back from one it never listened to.
    """
    await receive()
    listening = asyncio.create_task(LISTENER.run())
    listening.add_done_callback(_end_process)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    listening.cancel()
    with suppress(asyncio.CancelledError):
        await listening
    await send({"type": "lifespan.shutdown.complete"})


def _end_process(listening: "asyncio.Task[None]") -> None:
    """A process that can't listen must not look as if it did: its supervisor starts it anew."""
    if not listening.cancelled() and listening.exception():
        log.critical("the listener died", exc_info=listening.exception())
        signal.raise_signal(signal.SIGTERM)


def _pulse(now: datetime) -> None:
    pulse.beat(PROCESS, now=now, gap_s=settings.POLICY.pulse_gap_s)


def _write(
    seen: Mapping[UUID, datetime], samples: Mapping[UUID, list[DeviceSample]]
) -> dict[UUID, sessions.Fact]:
    facts = sessions.flush_seen(seen)
    telemetry.keep_samples({node: msgspec.to_builtins(kept) for node, kept in samples.items()})
    return facts


def _nodes_with_work() -> set[UUID]:
    pulse.forget(before=timezone.now() - _KEEP_PULSES)
    return set(Assignment.objects.wanted().values_list("node_id", flat=True).distinct())
