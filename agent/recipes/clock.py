"""How long each part of a run takes, told while it goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Times the phases, and says so in the log."""

    tell: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the run."""
        self.tell(f"{name} …")
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
        self.tell(f"{name}: {self.seconds[name]:.1f} s")

    def rounded(self) -> dict[str, float]:
        """For the evaluation's file."""
        return {name: round(value, 2) for name, value in self.seconds.items()}
