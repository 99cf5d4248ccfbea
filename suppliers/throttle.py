"""How fast one peer may speak: a token bucket. Pure; the caller brings the clock."""

from dataclasses import dataclass


@dataclass
class Bucket:
    """Up to `burst` at once, `rate` a second in the long run."""

    rate: float
    burst: float
    _level: float | None = None
    _at: float = 0.0

    def take(self, now: float, amount: float = 1.0) -> float:
        """Takes `amount`; returns the seconds to wait before going on, 0 if there was enough.

        Whoever waits as told never gets more than burst + rate × time. `now` is in seconds of
        a clock that never goes back.
        """
        level = self.burst if self._level is None else self._level
        self._level = min(self.burst, level + (now - self._at) * self.rate) - amount
        self._at = now
        return max(0.0, -self._level / self.rate)

    def allows(self, now: float, amount: float = 1.0) -> bool:
        """Takes `amount` if it is there now; else takes nothing and says no."""
        wait = self.take(now, amount)
        if wait and self._level is not None:
            self._level += amount
        return not wait
