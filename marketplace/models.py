"""Who takes part (orgs, members, keys), and how any row's state may change, with its story."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, ClassVar, Self, TypeVar
from uuid import UUID

from django.conf import settings
from django.db import connection, models

from marketplace import bulk
from marketplace.core.errors import Conflict
from marketplace.core.ids import uuid7
from marketplace.core.states import Machine

Row = TypeVar("Row", bound="Stateful")


class Org(models.Model):
    """A company, university or person. Any org may supply, buy, or both."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100)
    slug = models.SlugField(max_length=60, unique=True)
    created_at = models.DateTimeField()
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, through="Member")

    def __str__(self) -> str:
        return self.name


class Member(models.Model):
    """A user in an org. Owners also hand out keys and move money."""

    class Role(models.TextChoices):
        OWNER = "owner"
        MEMBER = "member"

    org = models.ForeignKey(Org, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role)
    joined_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["org", "user"], name="member_once")]


class Scope(models.TextChoices):
    """What an API key may do; each includes reading its own kind of thing."""

    BUY = "buy", "Datasets, quotes, jobs, artifacts"
    SUPPLY = "supply", "Sites, nodes, offers"
    MONEY = "money", "Top-ups and payouts"
    ATTACH = "attach", "Shells in running jobs"


class ApiKey(models.Model):
    """A program's way in, for one org and some scopes. Only the digest of it is kept."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    org = models.ForeignKey(Org, models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=60)
    start = models.CharField(max_length=12, help_text="Its first characters, to tell keys apart")
    digest = models.BinaryField(max_length=32, unique=True)
    scopes = models.JSONField()
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
    last_used_at = models.DateTimeField(null=True)


def new_secret(kind: str) -> tuple[str, bytes]:
    """A fresh random secret, `gl<kind>_…`, and the digest to keep of it."""
    secret = f"gl{kind}_{secrets.token_urlsafe(32)}"
    return secret, digest(secret)


def digest(secret: str) -> bytes:
    """SHA-256. Enough for secrets of 256 random bits; a password would need a slow hash."""
    return hashlib.sha256(secret.encode()).digest()


class Bell(models.Model):
    """A bell that rang and that nobody has answered yet: written by `marketplace.locks` alone."""

    name = models.CharField(primary_key=True, max_length=40)


class StateChange(models.Model):
    """One line of a row's story: written by `advance` and never changed."""

    id = models.BigAutoField(primary_key=True)
    machine = models.CharField(max_length=20)
    subject = models.UUIDField()
    event = models.CharField(max_length=20)
    source = models.CharField(max_length=20)
    target = models.CharField(max_length=20)
    reason = models.CharField(max_length=300, blank=True)
    by = models.CharField(max_length=150, help_text="A user's name, a node's name or 'market'")
    at = models.DateTimeField()

    class Meta:
        # For a page's story: all lines of one row, in order.
        indexes = [models.Index(fields=["subject", "id"], name="story")]


class Stateful(models.Model):
    """A row with a life: `state` moves only by `advance`, along the model's MACHINE."""

    MACHINE: ClassVar[Machine]

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    state = models.CharField(max_length=20, editable=False)
    state_since = models.DateTimeField(editable=False)

    class Meta:
        abstract = True

    def advance(
        self, event: str, *, now: datetime, reason: str = "", by: str = "market", **also: Any
    ) -> Self:
        """`advance` for one row that must move; raises Conflict if somebody was first."""
        if not advance([self], event, now=now, reason=reason, by=by, **also):
            raise Conflict(f"this {self.MACHINE.name} has moved on from {self.state!r}; look again")
        return self

    def story(self) -> models.QuerySet[StateChange]:
        """What happened to this row, oldest first."""
        return StateChange.objects.filter(subject=self.pk).order_by("id")


def remark(row: Stateful, event: str, *, now: datetime, reason: str, by: str) -> None:
    """A line of story about something that moved no state. In the transaction of its cause."""
    StateChange.objects.create(
        machine=row.MACHINE.name, subject=row.pk, event=event, source=row.state, target=row.state,
        reason=reason[:300], by=by[:150], at=now,
    )  # fmt: skip


def advance(
    rows: Sequence[Row],
    event: str,
    *,
    now: datetime,
    reason: str | Mapping[UUID, str] = "",
    by: str = "market",
    held: bool = False,
    **also: Any,
) -> list[Row]:
    """Takes rows of one model along one event, each with a line of story: `reason` is one for
    all, or each row's own by its id. `held`: the caller has locked the rows. Two statements, however
    many rows there are.

    A compare-and-swap: a row moves only if the database still holds the state that it was read
    with. Returns the rows that moved, with `state`, `state_since` and the fields in `also`
    (field → one value for all) brought up to date; the others are left as they were. Call it
    inside the transaction of its cause. Raises InvalidTransition if the event is not in the
    machine's table for one of the rows, and then moves none.
    """
    if not rows:
        return []
    model, machine = type(rows[0]), rows[0].MACHINE
    target = machine.transition(event).target
    before = {row.id: row.state for row in rows if machine.after(row.state, event)}
    moved = _swap(model, before, {"state": target, "state_since": now, **also}, held=held)
    if told := sorted(moved, key=attrgetter("int")):
        said = [reason if isinstance(reason, str) else reason.get(pk, "") for pk in told]
        sources = [before[pk] for pk in told]
        bulk.write(
            StateChange,
            {"subject": told, "source": sources, "reason": [one[:300] for one in said]},
            {"machine": machine.name, "event": event, "target": target, "by": by[:150], "at": now},
        )
    for row in rows:
        if row.id in moved:
            row.state, row.state_since = target, now
            for name, value in also.items():
                setattr(row, name, value)
    return [row for row in rows if row.id in moved]


def _swap(
    model: type[Stateful], before: dict[UUID, str], values: dict[str, object], *, held: bool
) -> set[UUID]:
    """One UPDATE … FROM unnest … RETURNING: the ids whose row was still as it was read.

    Rows are locked in primary-key order first, so that two swaps over the same rows queue up
    instead of deadlocking; those that are `held` are so already.
    """
    meta = model._meta
    quote = connection.ops.quote_name
    columns = {field.name: field for field in meta.concrete_fields}
    assigned = {
        quote(columns[name].column or name): columns[name].get_db_prep_save(value, connection)
        for name, value in values.items()
    }
    # Only names from our own models are put into the text; all values are parameters.
    lock = f"""
        , held AS (
            SELECT t.id FROM {quote(meta.db_table)} t JOIN expected e USING (id)
            WHERE t.state = e.state ORDER BY t.id FOR NO KEY UPDATE OF t
        )
    """  # noqa: S608
    sql = f"""
        WITH expected AS (SELECT * FROM unnest(%s::uuid[], %s::text[]) AS e(id, state))
        {"" if held else lock}
        UPDATE {quote(meta.db_table)} t
        SET {", ".join(f"{column} = %s" for column in assigned)}
        FROM expected e {"" if held else "JOIN held USING (id)"}
        WHERE t.id = e.id AND t.state = e.state
        RETURNING t.id
    """  # noqa: S608
    # States are plain words, which an array of PostgreSQL's takes as they are.
    states = "{" + ",".join(before.values()) + "}"
    with connection.cursor() as cursor:
        cursor.execute(sql, [bulk.ids(before), states, *assigned.values()])
        return {row[0] for row in cursor.fetchall()}
