"""Waiting well: backoff that spreads, and many things at once of which one may fail."""

import asyncio
import random
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")


class Backoff:
    """Pauses that double from `first` to `most` seconds, each cut short by up to a half, so that
    many who wait for one thing don't come back together."""

    def __init__(self, first: float = 0.25, most: float = 30.0) -> None:
        self._first, self._most = first, most
        self._next = first

    async def pause(self) -> None:
        """Waits for its turn."""
        await asyncio.sleep(spread(self._next / 2, self._next))
        self._next = min(2 * self._next, self._most)

    def reset(self) -> None:
        """Something went well: begin with short pauses again."""
        self._next = self._first


def spread(low: float, high: float) -> float:
    """A random number of seconds in between."""
    return random.uniform(low, high)  # noqa: S311 (no secret hangs on it)


async def all_of(work: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All results, in order; the first failure cancels the others, waits for them, and is raised
    as it is (a TaskGroup would wrap it)."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
