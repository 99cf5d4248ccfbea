"""The messages of the WebSocket, down and up."""

from typing import Annotated, Any, Final, Literal, cast
from uuid import UUID

import msgspec
from msgspec import Meta

from agent.protocol.node import Inventory
from agent.protocol.wire import (
    MAX_MESSAGE,
    AssignmentState,
    BootId,
    Count,
    Malformed,
    Name,
    Nonce,
    Sha256,
    Text,
    Wire,
)


class Challenge(Wire, frozen=True, kw_only=True, tag_field="type", tag="challenge"):
    """The first message on a socket: sign this."""

    version: int
    nonce: Nonce
    server: Name


class Welcome(Wire, frozen=True, kw_only=True, tag_field="type", tag="welcome"):
    """The node is who it says. `bearer` opens HTTPS for `bearer_s`, while this socket lives."""

    server_ms: Count
    interval_s: float
    lease_ttl_s: float
    spool_s: float
    """How long to run on, on what is paid, when cut off."""
    bearer: str
    bearer_s: float


class Ack(Wire, frozen=True, kw_only=True, tag_field="type", tag="ack"):
    """Heartbeat `seq` has been taken in; a fresh bearer when the old one nears its end."""

    seq: Count
    bearer: str | None = None


class Drain(Wire, frozen=True, kw_only=True):
    """Checkpoint and leave within `grace_s`."""

    why: Name
    grace_s: float


class Wanted(Wire, frozen=True, kw_only=True):
    """One assignment that this node should have. What it has and isn't wanted, it must end."""

    id: UUID
    epoch: Count
    spec: Sha256
    paid_through_ms: Count
    """Running time that is paid for; past it the keeper ends the job by itself."""
    drain: Drain | None = None
    shells: list[UUID] = []
    """Shells that somebody waits for in it; the agent opens a socket for each."""


class Desired(Wire, frozen=True, kw_only=True, tag_field="type", tag="desired"):
    """Everything this node should be running, and nothing else."""

    assignments: list[Wanted]


class Receipt(Wire, frozen=True, kw_only=True, tag_field="type", tag="receipt"):
    """The market's signed word on a usage claim: the node's proof of what it is owed.

    `body` is an encoded ReceiptBody, `signature` the market's Ed25519 over it.
    """

    body: bytes
    signature: bytes


class ReceiptBody(Wire, frozen=True, kw_only=True):
    """`accepted_ms`: running time billed so far, of the `claimed_ms` claimed."""

    assignment: UUID
    epoch: Count
    n: Count
    claim: Sha256
    claimed_ms: Count
    accepted_ms: Count
    reason: Text = ""


class Refused(Wire, frozen=True, kw_only=True, tag_field="type", tag="refused"):
    """Why the market closes this socket, and whether trying again can help."""

    code: Name
    message: Text
    final: bool


class Exit(Wire, frozen=True, kw_only=True):
    """How a process ended; `why` is the keeper's word for what ended it."""

    code: Annotated[int, Meta(ge=-255, le=255)] | None
    signal: Annotated[int, Meta(ge=-255, le=255)] | None
    why: Name


class Status(Wire, frozen=True, kw_only=True):
    """One assignment as it is on the node."""

    id: UUID
    epoch: Count
    state: AssignmentState
    running_ms: Count = 0
    step: Count = 0
    checkpoint: Count | None = None
    """Step of the last checkpoint that has been committed."""
    exit: Exit | None = None
    settled: bool = False
    """Gone, and nothing is left to upload: the market may forget it."""
    detail: Text = ""
    """What it is doing, in words: "fetching base, 120 of 270 MB"."""


class Hello(Wire, frozen=True, kw_only=True, tag_field="type", tag="hello"):
    """The node's answer to the challenge; `signature` is over `hello_bytes`."""

    version: int
    node: UUID
    nonce: Nonce
    boot_id: BootId
    server: Name
    signature: bytes
    inventory: Inventory
    assignments: list[Status]


class DeviceSample(Wire, frozen=True, kw_only=True):
    """What a device does now."""

    uuid: Name
    utilisation: Annotated[float, Meta(ge=0, le=100)]
    memory_bytes: Count
    watts: Annotated[float, Meta(ge=0, le=10_000)]
    celsius: Annotated[float, Meta(ge=-50, le=200)] | None = None
    xid: int | None = None


class Heartbeat(Wire, frozen=True, kw_only=True, tag_field="type", tag="heartbeat"):
    """The node as it is; `seq` rises by one for as long as the agent lives."""

    seq: Count
    boot_id: BootId
    up_ms: Count
    assignments: list[Status]
    devices: list[DeviceSample] = []
    owner_busy: bool = False
    """The owner needs the machine: nothing new may start, and what runs is reclaimed."""
    owner_why: Text = ""


class Claim(Wire, frozen=True, kw_only=True):
    """What a node says one assignment has used so far, from its start: totals, not deltas."""

    assignment: UUID
    epoch: Count
    n: Count
    boot_id: BootId
    running_ms: Count
    step: Count
    checkpoint: Count | None
    millijoules: Count
    measured: bool
    """Whether power was measured; else `millijoules` is an estimate."""
    final: bool


class Usage(Wire, frozen=True, kw_only=True, tag_field="type", tag="usage"):
    """A signed claim, each minute and at the end; spooled while the market is away.

    `claim` is an encoded Claim, `signature` the node's Ed25519 over `claim_bytes`.
    """

    claim: bytes
    signature: bytes


class Metric(Wire, frozen=True, kw_only=True):
    """One line of a job's metrics file: finite numbers by name, at a step."""

    assignment: UUID
    step: Count
    running_ms: Count
    values: Annotated[dict[Name, float], Meta(max_length=32)]


class LogChunk(Wire, frozen=True, kw_only=True):
    """Output of a job, from byte `offset` of its `stream` on; control characters stripped."""

    assignment: UUID
    stream: Literal["stdout", "stderr"]
    offset: Count
    text: Annotated[str, Meta(max_length=16_384)]


class Samples(Wire, frozen=True, kw_only=True, tag_field="type", tag="samples"):
    """What is nice to see and may be lost on the way: curves and the tail of the log."""

    metrics: list[Metric] = []
    logs: list[LogChunk] = []


Down = Challenge | Welcome | Ack | Desired | Receipt | Refused
Up = Hello | Heartbeat | Usage | Samples


_DOWN: Final = msgspec.json.Decoder(Down)
_UP: Final = msgspec.json.Decoder(Up)


def decode_down(data: bytes | str) -> Down:
    """A message from the market; raises Malformed if it is over 64 KiB or not of this version."""
    return cast(Down, _decode(data, _DOWN))


def decode_up(data: bytes | str) -> Up:
    """A message from a node; raises Malformed if it is over 64 KiB or not of this version."""
    return cast(Up, _decode(data, _UP))


def _decode(data: bytes | str, decoder: msgspec.json.Decoder[Any]) -> object:
    if len(data) > MAX_MESSAGE:
        raise Malformed(f"a message is at most {MAX_MESSAGE} bytes, this one has {len(data)}")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from None
