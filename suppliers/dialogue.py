"""What each message on a node's socket does: the half of `suppliers.consumers` with a database.

Every function runs in a thread of its own call, begins by finding the node as it now is, and
refuses when another socket speaks for it.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from agent import protocol
from agent.protocol import Desired, Heartbeat, Hello, Samples, Usage
from marketplace import telemetry
from marketplace.core.errors import MarketError
from scheduler import assignments, metering, watch
from suppliers import enrolment, inventory, services, sessions
from suppliers.models import Node

_NOTHING: Final = Desired(assignments=[])
_NUL: Final = "\\u0000"


class Refusal(Exception):
    """Why a socket is closed; `final` says that trying again can't help."""

    def __init__(self, code: str, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.code, self.final = code, final


@dataclass(frozen=True)
class Opened:
    """A node that has said hello."""

    node: UUID
    session: UUID
    owner: tuple[bool, str]
    desired: Desired


def decode(raw: str | bytes) -> protocol.Up:
    """A message from a node; raises Malformed. PostgreSQL can't keep U+0000, so none may come."""
    message = protocol.decode_up(raw)
    escaped = _NUL in raw if isinstance(raw, str) else _NUL.encode() in raw
    if escaped and _has_nul(msgspec.to_builtins(message)):
        raise protocol.Malformed("no text may contain U+0000")
    return message


def open_session(hello: Hello, *, nonce: str, now: datetime) -> Opened:
    """Lets a node in that answers this challenge with its own key; raises Refusal.

    1. It is who it says, and answers this very challenge.
    2. It speaks for itself alone: the socket before learns that it is over.
    3. What it is made of, what it still runs, and what it should run.
    """
    node = _authenticated(hello, nonce)
    before = sessions.take_session(node, now=now)
    if before is not None:
        telemetry.session_taken(node.pk, _session(node))
    try:
        trusted = inventory.apply_inventory(node, hello.inventory, now=now)
    except MarketError as error:
        raise Refusal(error.code, str(error), final=True) from None
    if trusted:
        metering.beat(node, hello, now=now)
    watch.connected(node, hello, now=now)
    if not trusted:
        watch.reclaim(node, why="it is in quarantine", now=now)
    owner = (node.owner_busy, node.owner_why)
    return Opened(node.pk, _session(node), owner, _desired(node))


def hear(node_id: UUID, session: UUID, beat: Heartbeat, *, now: datetime) -> Desired:
    """Takes in the heartbeat of a node that has work; returns what it should run now.

    A quarantined node earns nothing, but may say what has ended.
    """
    node = _speaking(node_id, session)
    if node.state != "quarantined":
        metering.beat(node, beat, now=now)
    assignments.report(node, beat.assignments, boot_id=beat.boot_id, now=now)
    return _desired(node)


def desired(node_id: UUID, session: UUID) -> Desired:
    """What the node should run now; raises Refusal if this socket may no longer be told."""
    return _desired(_speaking(node_id, session))


def note_owner(node_id: UUID, owner: tuple[bool, str], *, now: datetime) -> None:
    """The owner needs the machine, or no longer does. What runs is reclaimed within the notice."""
    node = Node.objects.select_related("site").get(pk=node_id)
    busy, why = owner
    services.note_owner(node, busy=busy, why=why)
    if busy:
        watch.reclaim(node, why=why or "its owner needs it", now=now)


def claim(node_id: UUID, usage: Usage, *, now: datetime) -> protocol.Receipt:
    """Takes in what the node says it is owed; a quarantined node is told the same as others."""
    return metering.claim(Node.objects.get(pk=node_id), usage, now=now)


def keep_samples(node_id: UUID, samples: Samples, *, now: datetime) -> None:
    """Keeps curves and the tails of logs, of this node's own assignments only."""
    watch.record_metrics(Node.objects.get(pk=node_id), samples, now=now)


def note_swap(node_id: UUID, *, now: datetime) -> None:
    """A live socket was taken over; once too often, and its jobs go elsewhere."""
    if sessions.note_swap(node_id, now=now):
        node = Node.objects.select_related("site").get(pk=node_id)
        watch.reclaim(node, why="two agents share its key", now=now)
        telemetry.node_changed(node_id)


def _authenticated(hello: Hello, nonce: str) -> Node:
    if hello.version != protocol.VERSION:
        raise Refusal(
            "version",
            f"this agent speaks version {hello.version} of the protocol, the market "
            f"{protocol.VERSION}; install the agent that goes with this market",
            final=True,
        )
    if hello.nonce != nonce:
        raise Refusal("replayed", "that answers another challenge than this socket's")
    if hello.server != services.server_name():
        raise Refusal(
            "wrong_server",
            f"this is {services.server_name()}, not {hello.server}; enrol with the market that "
            "you mean to work for",
            final=True,
        )
    node = Node.objects.select_related("site").filter(pk=hello.node).first()
    said = protocol.hello_bytes(hello.node, hello.nonce, hello.boot_id, hello.server)
    # The same words whether there is no such node or the key is another's: nothing to fish for.
    if node is None or not enrolment.is_signed(bytes(node.public_key), hello.signature, said):
        raise Refusal(
            "unauthenticated",
            "there is no node of this id with this key; enrol the machine with a new token",
            final=True,
        )
    if node.state == "retired":
        raise Refusal("retired", "this node is retired; enrol the machine anew", final=True)
    return node


def _speaking(node_id: UUID, session: UUID) -> Node:
    """The node, if this session still speaks for it."""
    node = Node.objects.select_related("site").get(pk=node_id)
    if node.state == "retired":
        raise Refusal("retired", "this node is retired; enrol the machine anew", final=True)
    if node.session != session:
        raise Refusal("taken_over", "another agent with this node's key has connected")
    return node


def _desired(node: Node) -> Desired:
    """A node that isn't trusted is told to run nothing, and so ends what it runs."""
    return assignments.desired(node) if node.state in ("ready", "draining") else _NOTHING


def _session(node: Node) -> UUID:
    assert node.session is not None, "take_session has set it"
    return node.session


def _has_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(part) for key, part in value.items())
    return isinstance(value, list) and any(_has_nul(part) for part in value)
