"""A worker to be killed: clears one round, and dies at a given moment of its commit.

`python -m tests.scheduler.committer '<database settings as JSON>' <moment> <now>`

A moment is one of `dying` (COPYs count as statements, too), or "copy 2" (in the midst of the second
COPY); "never" prints how many statements and COPYs there are.
"""

import json
from typing import Any

from tests.scheduler import dying


def main() -> None:
    fatal, now = dying.begin()
    from scheduler import clearing

    _watch_copies(fatal)
    # Only the round's own: what is told afterwards is another transaction.
    with dying.watched(fatal, is_mine=lambda: dying.COUNTED["copy"] > 0):
        clearing.clear_market(now=now)
    print(json.dumps(dying.COUNTED), flush=True)  # noqa: T201 (the test reads it)


def _watch_copies(fatal: str) -> None:
    """Django's wrapper does not see COPY: half of a block goes out, and then the end may come."""
    from psycopg import Copy

    write = Copy.write

    def written(self: Copy, buffer: Any) -> None:
        dying.COUNTED["copy"] += 1
        if fatal == f"copy {dying.COUNTED['copy']}":
            write(self, buffer[: len(buffer) // 2])
            self.connection.pgconn.flush()
            dying.die()
        write(self, buffer)
        dying.count("statement", fatal)

    Copy.write = written  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
