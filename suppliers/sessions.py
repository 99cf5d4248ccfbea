"""Which socket speaks for a node: at most one, named by `Node.session`.

A socket that opens takes the session over; the one before learns of it and closes. The bearer
that opens HTTPS names the session too, so it ends with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

from django.conf import settings
from django.core import signing
from django.db import connection, transaction

from marketplace.core.errors import Unauthenticated
from suppliers.models import Node
from suppliers.services import quarantine

_SALT: Final = "gridloom.agent.bearer"


@dataclass(frozen=True)
class Fact:
    """What PostgreSQL holds of a node just flushed: whose session it is, and whether it is lost."""

    session: UUID | None
    lost: bool


def take_session(node: Node, *, now: datetime) -> UUID | None:
    """Gives the node a session of its own; returns the one that it replaces, if any."""
    node.session, node.last_seen_at = uuid4(), now
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH before AS (
                SELECT id, session FROM suppliers_node WHERE id = %s FOR NO KEY UPDATE
            )
            UPDATE suppliers_node n SET session = %s, last_seen_at = %s
            FROM before WHERE n.id = before.id RETURNING before.session
            """,
            [node.pk, node.session, now],
        )
        before: UUID | None = cursor.fetchone()[0]
    return before


def end_session(node: UUID, session: UUID) -> None:
    """Called when a socket has closed; one that was taken over changes nothing."""
    Node.objects.filter(pk=node, session=session).update(session=None)


@transaction.atomic
def note_swap(node: UUID, *, now: datetime) -> bool:
    """A socket that was alive has been taken over: two agents may share one key.

    Says whether that was once too often, and the node is quarantined now. An agent that only
    lost its network leaves a silent socket behind, which is no swap.
    """
    held = Node.objects.select_for_update(no_key=True).get(pk=node)
    since = now.timestamp() - settings.POLICY.swaps_window_s
    held.swaps = [at for at in held.swaps if at > since] + [now.timestamp()]
    held.save(update_fields=["swaps"])
    if len(held.swaps) < settings.POLICY.swaps_limit:
        return False
    return quarantine(
        held,
        reason=(
            f"two agents take turns with its key: {len(held.swaps)} times within "
            f"{round(settings.POLICY.swaps_window_s / 60)} minutes; stop one, and give the node "
            "a new key if you don't know the other"
        ),
        now=now,
    )


def flush_seen(seen: Mapping[UUID, datetime]) -> dict[UUID, Fact]:
    """Writes when nodes were last heard of, all in one UPDATE, and tells how they stand.

    Rows are locked in primary-key order, as everywhere. Nodes that are gone are left out.
    """
    if not seen:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH heard AS (SELECT * FROM unnest(%s::uuid[], %s::timestamptz[]) AS h(id, at)),
            held AS (
                SELECT n.id FROM suppliers_node n JOIN heard USING (id)
                ORDER BY n.id FOR NO KEY UPDATE OF n
            )
            UPDATE suppliers_node n SET last_seen_at = greatest(n.last_seen_at, heard.at)
            FROM held JOIN heard USING (id) WHERE n.id = held.id
            RETURNING n.id, n.session, n.lost_at IS NOT NULL
            """,
            [list(seen), list(seen.values())],
        )
        return {node: Fact(session, lost) for node, session, lost in cursor.fetchall()}


def make_bearer(node: UUID, session: UUID) -> str:
    """What the agent shows with each HTTPS call: good for `bearer_s`, and for this session."""
    return signing.dumps([str(node), str(session)], salt=_SALT)


def node_of_bearer(bearer: str) -> Node:
    """The node that a bearer speaks for; raises Unauthenticated, saying what to do."""
    life = timedelta(seconds=settings.POLICY.bearer_s)
    try:
        node_id, session = signing.loads(bearer, salt=_SALT, max_age=life)
    except signing.SignatureExpired:
        raise Unauthenticated("this bearer has run out; take the one from the latest ack") from None
    except signing.BadSignature:
        raise Unauthenticated("this bearer isn't one of ours; connect to get one") from None
    node = Node.objects.filter(pk=node_id).select_related("site__org").first()
    if node is None or node.state == "retired" or str(node.session) != session:
        raise Unauthenticated("this bearer's socket has closed; connect again to get another")
    return node
