"""A worker to be killed: clears one round, and dies at a given moment of its commit.

`python -m tests.scheduler.committer '<database settings as JSON>' <moment> <now>`

A moment is "statement 7" (after the seventh, COPY counted), "copy 2" (in the midst of the second
COPY), "before commit", "after commit", or "never", which prints how many statements and COPYs there
are.
"""

import json
import os
import signal
import sys
from datetime import datetime
from typing import Any

COUNTED = {"statement": 0, "copy": 0}


def main() -> None:
    database, fatal, now = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django
    from django.conf import settings

    settings.DATABASES["default"].update(database)
    django.setup()
    from django.db import connection

    from scheduler import clearing

    def executed(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        answer = execute(sql, params, many, context)
        if connection.in_atomic_block:
            _count("statement", fatal)
        return answer

    connection.ensure_connection()
    _watch_copies(fatal)
    send = connection._commit

    def commit() -> None:
        # Only the round's own: what is told afterwards is another transaction.
        mine = COUNTED["copy"] > 0
        if mine and fatal == "before commit":
            _die()
        send()
        if mine and fatal == "after commit":
            _die()

    connection._commit = commit
    with connection.execute_wrapper(executed):
        clearing.clear_market(now=datetime.fromisoformat(now))
    print(json.dumps(COUNTED), flush=True)  # noqa: T201 (the test reads it)


def _watch_copies(fatal: str) -> None:
    """Django's wrapper does not see COPY: half of a block goes out, and then the end may come."""
    from psycopg import Copy

    write = Copy.write

    def written(self: Copy, buffer: Any) -> None:
        COUNTED["copy"] += 1
        if fatal == f"copy {COUNTED['copy']}":
            write(self, buffer[: len(buffer) // 2])
            self.connection.pgconn.flush()
            _die()
        write(self, buffer)
        _count("statement", fatal)

    Copy.write = written  # type: ignore[method-assign]


def _count(what: str, fatal: str) -> None:
    COUNTED[what] += 1
    if fatal == f"{what} {COUNTED[what]}":
        _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
