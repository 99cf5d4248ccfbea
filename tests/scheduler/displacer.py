"""A worker to be killed: clears one round, displaces, and dies at a given statement of it.

`python -m tests.scheduler.displacer '<database settings as JSON>' <statement> <now>`

Statements are those of the transaction that drains and holds; "before" and "after" are its commit.
"never" prints how many there are.
"""

import json
import os
import signal
import sys
from datetime import datetime
from typing import Any

SEEN = {"statements": 0}


def main() -> None:
    database, fatal, now = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django
    from django.conf import settings

    settings.DATABASES["default"].update(database)
    django.setup()
    from django.db import connection

    from scheduler import clearing, displacing

    def executed(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        answer = execute(sql, params, many, context)
        if connection.in_atomic_block:
            SEEN["statements"] += 1
            if fatal == str(SEEN["statements"]):
                _die()
        return answer

    connection.ensure_connection()
    displace, send = displacing.displace_market, connection._commit

    def commit() -> None:
        if fatal == "before":
            _die()
        send()
        if fatal == "after":
            _die()

    def watched(*args: Any, **kwargs: Any) -> int:
        connection._commit = commit
        with connection.execute_wrapper(executed):
            try:
                return displace(*args, **kwargs)
            finally:
                connection._commit = send

    displacing.displace_market = watched
    clearing.clear_market(now=datetime.fromisoformat(now))
    print(json.dumps(SEEN), flush=True)  # noqa: T201 (the test reads it)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
