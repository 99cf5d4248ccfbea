"""What a round reckons in a thread beside its own: while the database takes in its rows, the
interpreter has nothing to do."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from threading import Lock
from typing import Generic, TypeVar

_Found = TypeVar("_Found")


class Aside(Generic[_Found]):
    """Work whose result is asked for later, and which asks the database nothing. It is begun when the
    interpreter is idle, or else by whoever wants its result."""

    def __init__(self, beside: Executor, work: Callable[[], _Found]) -> None:
        self._beside, self._work = beside, work
        self._one = Lock()
        self._begun: Future[_Found] | None = None

    def begin(self) -> Future[_Found]:
        """Once, however often it is called, and from whatever thread."""
        with self._one:
            if self._begun is None:
                self._begun = self._beside.submit(self._work)
            return self._begun

    def result(self) -> _Found:
        """What came of it; waits until it is there."""
        return self.begin().result()
