"""One at a time: PostgreSQL advisory locks, so that two bells rung at once clear once, and what rang
while somebody was at it is done once more."""

import hashlib
from collections.abc import Callable
from typing import Any

from django.db import connection


def ring(name: str) -> bool:
    """Notes that the named bell rang; whether it is the first time since it was last answered.

    Outside of any transaction, or nobody sees it before the commit.
    """
    sql = "INSERT INTO marketplace_bell (name) VALUES (%s) ON CONFLICT DO NOTHING"
    return _changed(sql, name) > 0


def answer(name: str) -> bool:
    """Takes the note back; whether there was one."""
    return _changed("DELETE FROM marketplace_bell WHERE name = %s", name) > 0


def single_flight(name: str, work: Callable[[], object], *, rung: bool = False) -> int:
    """Does the work unless somebody is at it, and again for as long as the bell rang meanwhile.

    With `rung` only if the bell still waits for an answer: a flight that began after it rang has
    done what it was rung for. Returns how often the work was done. Whoever rings notes it first and
    comes here then; whoever flies looks at the note after letting go: so one of them sees it.

    The lock is the session's, freed by PostgreSQL itself if the process dies; a note then waits for
    the next timer. Not for use inside a transaction that may have failed.
    """
    flights, due = 0, not rung
    while (due or _rings(name)) and _asked("pg_try_advisory_lock", name):
        try:
            if answer(name) or due:
                work()
                flights += 1
        finally:
            _asked("pg_advisory_unlock", name)
        due = False
    return flights


def hold(name: str) -> None:
    """Waits for the named lock and keeps it to the end of the current transaction."""
    _asked("pg_advisory_xact_lock", name)


def _rings(name: str) -> bool:
    return bool(_changed("SELECT FROM marketplace_bell WHERE name = %s", name))


def _changed(sql: str, name: str) -> int:
    """How many rows the statement changed or found."""
    with connection.cursor() as cursor:
        cursor.execute(sql, [name])
        return int(cursor.rowcount)


def _asked(function: str, name: str) -> Any:
    """What one of PostgreSQL's lock functions says."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {function}(%s)", [key])
        return cursor.fetchone()[0]
