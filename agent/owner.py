"""When the owner needs the machine: their weekly hours, their own programs, their word.

Pure: `__main__` and the loop read the clock, the load and the drain file. The schedule is the one
place where the agent looks at the wall clock; nothing that is paid depends on it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

ASKED: Final = "owner asked to drain"

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS: Final[tuple[Day, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK: Final = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"


class Window(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hours of the week, in the machine's local time, that belong to the owner.

    One that ends before it starts goes on into the next day.
    """

    days: Annotated[list[Day], Meta(min_length=1)]
    start: Annotated[str, Meta(pattern=_CLOCK)]
    end: Annotated[str, Meta(pattern=_CLOCK)]

    def holds(self, now: datetime) -> bool:
        """Whether `now` (local) lies in it."""
        clock = f"{now:%H:%M}"
        today = _DAYS[now.weekday()] in self.days
        if self.start < self.end:
            return today and self.start <= clock < self.end
        yesterday = _DAYS[(now - timedelta(days=1)).weekday()] in self.days
        return (today and clock >= self.start) or (yesterday and clock < self.end)


class Rules(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`owner` in config.json: what counts as needing the machine."""

    windows: list[Window] = []
    busy_share: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Share of the let cores that other processes may use; above it the owner is at work.
    Another program on a let GPU counts as well. None: load does not matter."""
    busy_s: Annotated[float, Meta(ge=0, le=3600)] = 20.0
    """How long the load must last before it counts."""
    calm_s: Annotated[float, Meta(ge=0, le=86_400)] = 300.0
    """How long it must have ended before the machine is let again."""


@dataclass(frozen=True)
class Load:
    """What programs other than jobs do here now."""

    share: float = 0.0
    """Of the let cores, 0 to 1."""
    gpu_program: str = ""
    """Another program on one of the GPUs; "" if there is none."""


@dataclass(frozen=True)
class Mood:
    """Whether load counts as the owner's; `since_s`: how long readings have said otherwise."""

    busy: bool = False
    since_s: float = 0.0


def follow(mood: Mood, load: Load, elapsed_s: float, rules: Rules) -> Mood:
    """The mood after one more reading: it turns slowly, and turns back more slowly."""
    if rules.busy_share is None:
        return Mood()
    loaded = load.share > rules.busy_share or bool(load.gpu_program)
    if loaded == mood.busy:
        return Mood(mood.busy)
    since = mood.since_s + elapsed_s
    turned = since >= (rules.calm_s if mood.busy else rules.busy_s)
    return Mood(loaded) if turned else Mood(mood.busy, since)


def why_busy(rules: Rules, now: datetime, mood: Mood, *, drain_asked: bool) -> str:
    """Why the owner needs the machine now, in words for the buyer too; "" if they don't."""
    if drain_asked:
        return ASKED
    for window in rules.windows:
        if window.holds(now):
            return f"the owner's hours, {window.start} to {window.end}"
    return "the owner's own programs need it" if mood.busy else ""
