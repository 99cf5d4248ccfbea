"""What is nice to see and may be lost: live samples, log tails, doorbells to open pages.

The only module with redis. PostgreSQL is the truth: every function here logs and goes on when
Valkey is away, and nothing that matters depends on it.
"""

import asyncio
import contextlib
import functools
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import redis
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.conf import settings

log = logging.getLogger(__name__)

# One group for all processes that hold nodes' sockets, not one a node: a reconnect then costs no
# subscription, and a socket lives on while Valkey is away.
NODES_GROUP = "nodes"
_LOG_BYTES = 64 * 1024
_JOBS = "job."
_GROUP_CHANNEL = "asgi__group__"
"""What channels_redis puts before a group's name, where it subscribes to it."""
_KEEP_S = 24 * 3600
_WINDOW = 2**20
_PATIENCE_S = 60
_AT_ONCE = 1000
"""Nodes in one message."""
_TOGETHER = 50
"""Messages on their way at a time, each with a connection."""


def job_group(job: UUID) -> str:
    """The Channels group of the pages that watch a job."""
    return f"{_JOBS}{job}"


def publish(group: str, message: Mapping[str, Any]) -> None:
    """Sends `message` (with a `type` for the consumer) to a group, from synchronous code."""
    layer = get_channel_layer()
    try:
        async_to_sync(layer.group_send)(group, dict(message))
    except (redis.RedisError, OSError) as error:
        log.warning("a doorbell to %s was lost: %s", group, error)


def node_changed(*nodes: UUID) -> None:
    """Tells nodes' sockets that what is desired of them has changed."""
    told = [str(node) for node in nodes]
    for at in range(0, len(told), _AT_ONCE):
        publish(NODES_GROUP, {"type": "desired.changed", "nodes": told[at : at + _AT_ONCE]})


def session_taken(node: UUID, session: UUID) -> None:
    """Tells a node's other sockets that `session` speaks for it now."""
    publish(NODES_GROUP, {"type": "session.taken", "node": str(node), "session": str(session)})


async def listen(group: str) -> AsyncIterator[dict[str, Any]]:
    """What is published to a group, for ever; while Valkey is away it waits and tries again."""
    layer = get_channel_layer()
    while True:
        try:
            channel = await layer.new_channel()
            await layer.group_add(group, channel)
            while True:
                yield await layer.receive(channel)
        except (redis.RedisError, OSError) as error:
            log.warning("no doorbells of %s for now: %s", group, error)
            await asyncio.sleep(1)


class CutOff(Exception):
    """Valkey is away, or the other side takes in nothing: what was being said is lost."""


class Exchange:
    """Bytes between two processes of ours that serve the two ends of one thing.

    Nothing is kept: what is said while the other side doesn't listen is lost, so one side says
    when it is there. None is the end. At most `_WINDOW` bytes are on their way: a side says more
    once the other has passed on what it heard.
    """

    def __init__(self, hears: str, says: str) -> None:
        self._hears, self._says = hears, says
        self._ahead, self._owed, self._room = 0, 0, asyncio.Event()
        self._layer = get_channel_layer()
        self._channel = ""

    async def open(self) -> None:
        """Listens from now on; raises CutOff."""
        try:
            self._channel = await self._layer.new_channel()
            await self._layer.group_add(self._hears, self._channel)
        except (redis.RedisError, OSError) as error:
            raise CutOff(str(error)) from None

    async def hear(self) -> bytes | None:
        """What the other side says next; raises CutOff. What was heard before has been passed on."""
        while True:
            if self._owed >= _WINDOW // 4:
                await self._send({"heard": self._owed})
                self._owed = 0
            try:
                message = await self._layer.receive(self._channel)
            except (redis.RedisError, OSError) as error:
                raise CutOff(str(error)) from None
            if message.get("over"):
                return None
            if "data" in message:
                self._owed += len(message["data"])
                return bytes(message["data"])
            self._ahead -= message["heard"]
            self._room.set()

    async def say(self, data: bytes | None) -> None:
        """Waits while the other side has too much to pass on; raises CutOff if that takes too
        long."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while data and self._ahead and self._ahead + len(data) > _WINDOW:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            raise CutOff("the other side is too slow") from None
        self._ahead += len(data or b"")
        await self._send({"over": True} if data is None else {"data": data})

    async def _send(self, message: Mapping[str, Any]) -> None:
        try:
            await self._layer.group_send(self._says, {"type": "shell.bytes", **message})
        except (redis.RedisError, OSError) as error:
            raise CutOff(str(error)) from None

    async def close(self) -> None:
        """Listens no more."""
        with contextlib.suppress(redis.RedisError, OSError):
            await self._layer.group_discard(self._hears, self._channel)


def shell_exchange(shell: UUID, *, node: bool) -> Exchange:
    """One side of a shell: the node's, or the buyer's."""
    typed, shown = _ends(shell)
    return Exchange(typed, shown) if node else Exchange(shown, typed)


def shell_over(shell: UUID) -> None:
    """Tells both sides of a shell that it is over."""
    for end in _ends(shell):
        publish(end, {"type": "shell.bytes", "over": True})


def _ends(shell: UUID) -> tuple[str, str]:
    return f"shell.{shell}.typed", f"shell.{shell}.shown"


def job_changed(*jobs: UUID) -> None:
    """Tells the pages that watch these jobs to look again."""
    try:
        async_to_sync(_tell_pages)(jobs if len(jobs) == 1 else _watched(jobs))
    except (redis.RedisError, OSError) as error:
        log.warning("doorbells to the pages of %s jobs were lost: %s", len(jobs), error)


def _watched(jobs: Sequence[UUID]) -> Sequence[UUID]:
    """Those that some page watches: a round changes thousands, of which few are looked at. One who
    begins to watch meanwhile looks by itself."""
    if not jobs:
        return ()
    # Asked which channels there are: to name thousands of jobs takes longer than to hear of those few.
    start = f"{_GROUP_CHANNEL}{_JOBS}"
    watched = {str(each).removeprefix(start) for each in _redis().pubsub_channels(f"{start}*")}
    return [job for job in jobs if str(job) in watched] if watched else ()


async def _tell_pages(jobs: Sequence[UUID]) -> None:
    """So many at a time: each waits for its answer."""
    layer = get_channel_layer()
    for at in range(0, len(jobs), _TOGETHER):
        some = jobs[at : at + _TOGETHER]
        await asyncio.gather(
            *(layer.group_send(job_group(job), {"type": "job.changed"}) for job in some)
        )


def keep_log(job: UUID, epoch: int, chunks: list[tuple[str, int, str]]) -> None:
    """Keeps the tail of a job's output: (stream, offset, text), in order."""
    key = f"log:{job}:{epoch}"
    try:
        with _redis().pipeline() as pipe:
            for stream, offset, text in chunks:
                pipe.rpush(key, json.dumps([stream, offset, text]))
            pipe.ltrim(key, -400, -1)
            pipe.expire(key, _KEEP_S)
            pipe.execute()
    except (redis.RedisError, OSError) as error:
        log.warning("the log of job %s was not kept: %s", job, error)


def log_tail(job: UUID, epoch: int) -> str:
    """The end of a job's output, at most 64 KiB; empty if nothing was kept."""
    try:
        chunks = _redis().lrange(f"log:{job}:{epoch}", 0, -1)
    except (redis.RedisError, OSError):
        return ""
    seen: set[tuple[str, int]] = set()
    lines: list[str] = []
    for chunk in chunks:
        stream, offset, text = json.loads(chunk)
        if (stream, offset) not in seen:
            seen.add((stream, offset))
            lines.append(text)
    return "".join(lines)[-_LOG_BYTES:]


def keep_samples(batch: Mapping[UUID, list[dict[str, Any]]]) -> None:
    """Keeps what the devices of some nodes do now."""
    if not batch:
        return
    try:
        with _redis().pipeline(transaction=False) as pipe:
            for node, devices in batch.items():
                pipe.set(f"samples:{node}", json.dumps(devices), ex=120)
            pipe.execute()
    except (redis.RedisError, OSError) as error:
        log.warning("the samples of %s nodes were not kept: %s", len(batch), error)


def samples(nodes: list[UUID]) -> dict[UUID, list[dict[str, Any]]]:
    """The latest samples of each node that has sent any in the last two minutes."""
    if not nodes:
        return {}
    try:
        found = _redis().mget([f"samples:{node}" for node in nodes])
    except (redis.RedisError, OSError):
        return {}
    return {node: json.loads(text) for node, text in zip(nodes, found, strict=True) if text}


def count(key: str, *, keep_s: int) -> int:
    """How often this key has been counted, this time included; 0 while Valkey is away."""
    try:
        with _redis().pipeline() as pipe:
            pipe.incr(key)
            pipe.expire(key, keep_s)
            return int(pipe.execute()[0])
    except (redis.RedisError, OSError) as error:
        log.warning("%s was not counted: %s", key, error)
        return 0


@functools.cache
def _redis() -> "redis.Redis":
    pool = redis.BlockingConnectionPool.from_url(
        settings.REDIS_URL, max_connections=20, timeout=2, socket_connect_timeout=1,
        socket_timeout=2, decode_responses=True,
    )  # fmt: skip
    return redis.Redis(connection_pool=pool)
