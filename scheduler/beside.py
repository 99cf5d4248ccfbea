"""What a round reckons in a thread beside its own: while the database takes in its rows, the
interpreter has nothing to do."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

_Found = TypeVar("_Found")


class Aside(Generic[_Found]):
    """Work whose result is asked for later, and which asks the database nothing. It is begun when the
    interpreter is idle, or else by whoever wants its result."""

    def __init__(self, beside: Executor, work: Callable[[], _Found]) -> None:
        self._beside, self._work = beside, work
        self._begun: Future[_Found] | None = None

    def begin(self) -> None:
        """Once, however often it is called."""
        if self._begun is None:
            self._begun = self._beside.submit(self._work)

    def result(self) -> _Found:
        """What came of it; waits until it is there."""
        self.begin()
        assert self._begun is not None
        return self._begun.result()
