"""Where a round's time goes: wall, this process's processor, and that of its database backend."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Spent:
    """Seconds: on the wall, of our own processor, and of PostgreSQL's."""

    wall: float = 0.0
    own: float = 0.0
    backend: float = 0.0


@dataclass
class Clock:
    """Counts each phase's time for itself: what runs inside another phase is not the other's."""

    backend: int
    """Process id of the database session."""
    phases: dict[str, Spent] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _last: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What the block takes."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """From now on, calls of this function count as this phase."""
        function: Callable[..., Any] = getattr(owner, attribute)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, timed)

    def total(self) -> Spent:
        """Of all phases."""
        every = self.phases.values()
        return Spent(*(sum(getattr(one, of) for one in every) for of in ("wall", "own", "backend")))

    def _turn(self) -> None:
        now = time.perf_counter(), time.process_time(), _processor(self.backend)
        if self._open:
            spent = self.phases.setdefault(self._open[-1], Spent())
            wall, own, backend = (b - a for a, b in zip(self._last, now, strict=True))
            spent.wall, spent.own = spent.wall + wall, spent.own + own
            spent.backend += backend
        self._last = now


def _processor(pid: int) -> float:
    """Processor seconds of another process, in hundredths."""
    told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(told[11]) + int(told[12])) / _TICKS
