"""A worker to be killed: clears one round, and stops at the n-th statement of its commit.

`python -m tests.scheduler.committer '<database settings as JSON>' <statement> <now>`
"""

import json
import os
import signal
import sys
from datetime import datetime
from typing import Any


def main() -> None:
    database, fatal, now = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django
    from django.conf import settings

    settings.DATABASES["default"].update(database)
    django.setup()
    from django.db import connection

    from scheduler import clearing

    seen = 0

    def die(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal seen
        answer = execute(sql, params, many, context)
        seen += connection.in_atomic_block
        if seen >= fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    with connection.execute_wrapper(die):
        clearing.clear_market(now=datetime.fromisoformat(now))
    print(seen, flush=True)  # noqa: T201 (the test reads it)


if __name__ == "__main__":
    main()
