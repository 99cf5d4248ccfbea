"""What the workers that tests kill share: they begin alike, and die at a given moment.

A moment is "statement 7" (after the seventh in a transaction), "before commit", "after commit", or
"never".
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

COUNTED = {"statement": 0, "copy": 0}


def begin() -> tuple[str, datetime]:
    """Django on the database that the command line tells; (moment, now)."""
    database, fatal, now = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django
    from django.conf import settings

    settings.DATABASES["default"].update(database)
    django.setup()
    return fatal, datetime.fromisoformat(now)


@contextmanager
def watched(fatal: str, is_mine: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Dies at that moment of what is done within; a COMMIT counts where it `is_mine`."""
    from django.db import connection

    def executed(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        answer = execute(sql, params, many, context)
        if connection.in_atomic_block:
            count("statement", fatal)
        return answer

    connection.ensure_connection()
    send = connection._commit

    def commit() -> None:
        mine = is_mine()
        if mine and fatal == "before commit":
            die()
        send()
        if mine and fatal == "after commit":
            die()

    connection._commit = commit
    try:
        with connection.execute_wrapper(executed):
            yield
    finally:
        connection._commit = send


def count(what: str, fatal: str) -> None:
    """One more of them."""
    COUNTED[what] += 1
    if fatal == f"{what} {COUNTED[what]}":
        die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
