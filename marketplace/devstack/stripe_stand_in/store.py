"""What the stand-in remembers: JSON documents in one SQLite file, one writer at a time."""

import json
import secrets
import sqlite3
import string
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from marketplace.devstack.stripe_stand_in.errors import missing

# One Stripe object, as JSON. Its shape is Stripe's; tests check it against the SDK's types.
Doc = dict[str, Any]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    place INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of creation, for lists
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,                       -- the document's `object`
    account TEXT NOT NULL,                    -- '' is the platform
    doc TEXT NOT NULL,
    private TEXT NOT NULL                     -- what Stripe knows and doesn't show
);
CREATE INDEX IF NOT EXISTS listed ON objects (kind, account, place);
CREATE TABLE IF NOT EXISTS replays (
    account TEXT, key TEXT, request TEXT, status INTEGER, body TEXT,
    PRIMARY KEY (account, key)
);
CREATE TABLE IF NOT EXISTS timers (
    id INTEGER PRIMARY KEY, due REAL NOT NULL, action TEXT NOT NULL, subject TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS deliveries (
    event TEXT PRIMARY KEY, due REAL NOT NULL, attempts INTEGER NOT NULL, done INTEGER NOT NULL
);
"""
_ALPHABET = string.ascii_letters + string.digits


class Page(NamedTuple):
    """Part of a list, newest first."""

    docs: list[Doc]
    has_more: bool


def new_id(prefix: str, length: int = 24) -> str:
    """`pi_` and so many random letters and digits."""
    return f"{prefix}_" + "".join(secrets.choice(_ALPHABET) for _ in range(length))


class Store:
    """Every method but `transaction` must be called inside `transaction`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self.connection = sqlite3.connect(
            folder / "stripe.sqlite3", check_same_thread=False, isolation_level=None
        )
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.connection.executescript(_SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One at a time, all or nothing."""
        with self._lock:
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self.connection.execute("ROLLBACK")
                raise
            self.connection.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            self.connection.close()

    def put(self, doc: Doc, *, account: str = "", private: Doc | None = None) -> Doc:
        """Keeps a new document, or the new state of a known one (whose account stays)."""
        self.connection.execute(
            "INSERT INTO objects (id, kind, account, doc, private) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET doc = excluded.doc,"
            " private = CASE WHEN ? THEN excluded.private ELSE private END",
            [
                doc["id"], doc["object"], account, json.dumps(doc), json.dumps(private or {}),
                private is not None,
            ],
        )  # fmt: skip
        return doc

    def get(self, pk: str) -> Doc | None:
        """Whatever has this id, in whichever account."""
        row = self.connection.execute("SELECT doc FROM objects WHERE id = ?", [pk]).fetchone()
        return json.loads(row[0]) if row else None

    def find(self, kind: str, pk: str, *, account: str = "") -> Doc:
        """The account's own document of that kind; raises Stripe's `resource_missing`."""
        row = self.connection.execute(
            "SELECT doc FROM objects WHERE id = ? AND kind = ? AND account = ?",
            [pk, kind, account],
        ).fetchone()
        if row is None:
            raise missing(kind, pk)
        doc: Doc = json.loads(row[0])
        return doc

    def private(self, pk: str) -> Doc:
        row = self.connection.execute("SELECT private FROM objects WHERE id = ?", [pk]).fetchone()
        found: Doc = json.loads(row[0]) if row else {}
        return found

    def account_of(self, pk: str) -> str:
        row = self.connection.execute("SELECT account FROM objects WHERE id = ?", [pk]).fetchone()
        return str(row[0])

    def page(
        self,
        kind: str,
        *,
        account: str,
        where: Mapping[str, object],
        limit: int,
        after: str = "",
        before: str = "",
    ) -> Page:
        """Up to `limit` documents whose fields equal `where`; `after` and `before` are ids."""
        conditions, values = ["kind = ?", "account = ?"], [kind, account]
        for field, value in where.items():
            name, _, comparison = field.partition(" ")
            conditions.append(f"json_extract(doc, '$.{name}') {comparison or '='} ?")
            values.append(value)  # type: ignore[arg-type]
        if after:
            conditions.append("place < (SELECT place FROM objects WHERE id = ?)")
            values.append(after)
        if before:
            conditions.append("place > (SELECT place FROM objects WHERE id = ?)")
            values.append(before)
        rows = self.connection.execute(
            f"SELECT doc FROM objects WHERE {' AND '.join(conditions)}"
            f" ORDER BY place {'ASC' if before else 'DESC'} LIMIT {limit + 1}",
            values,
        ).fetchall()
        docs = [json.loads(row[0]) for row in rows[:limit]]
        return Page(docs[::-1] if before else docs, len(rows) > limit)

    def later(self, due: float, action: str, subject: str) -> None:
        """Rings `action` for `subject` at `due` (seconds since 1970), also after a restart."""
        self.connection.execute(
            "INSERT INTO timers (due, action, subject) VALUES (?, ?, ?)", [due, action, subject]
        )

    def take_due(self, now: float) -> tuple[str, str] | None:
        """The next timer that is due, as (action, subject), and forgets it."""
        row = self.connection.execute(
            "DELETE FROM timers WHERE id = (SELECT id FROM timers WHERE due <= ?"
            " ORDER BY due, id LIMIT 1) RETURNING action, subject",
            [now],
        ).fetchone()
        return (row[0], row[1]) if row else None
