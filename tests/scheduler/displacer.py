"""A worker to be killed: clears one round, displaces, and dies at a given moment of that.

`python -m tests.scheduler.displacer '<database settings as JSON>' <moment> <now>`

The moments (see `dying`) are those of the transaction that drains and holds.
"""

from typing import Any

from tests.scheduler import dying


def main() -> None:
    fatal, now = dying.begin()
    from scheduler import clearing, displacing

    displace = displacing.displace_market

    def watched(*args: Any, **kwargs: Any) -> int:
        with dying.watched(fatal):
            return displace(*args, **kwargs)

    displacing.displace_market = watched
    clearing.clear_market(now=now)


if __name__ == "__main__":
    main()
