"""What a waiting job could wait for: offers that open soon, and that it could then have.

Of an offer that is still closed nothing is told but what everybody sees once it has opened: what it
is, where, from when; of its ask only that the job's limit is enough for it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from marketplace.core.fit import Wants, suits
from scheduler.lots import Lot

WAIT: Final = "wait"
"""Beside the engine's terms: nothing of the job is changed."""


class Openings:
    """The offers that open, the soonest first, for so many questions."""

    def __init__(self, rows: Sequence[tuple[datetime, Lot]], *, pairs: int) -> None:
        self._rows, self._pairs = rows, pairs

    def first(self, wanted: Wants) -> tuple[datetime, Lot] | None:
        """The first that alone would do for the job, at its limit; None too once `pairs` of a job
        and an offer have been looked at."""
        for at, row in self._rows:
            if self._pairs <= 0:
                break
            self._pairs -= 1
            if _would_do(wanted, row):
                return at, row
        return None


def words(at: datetime, row: Lot, wanted: Wants) -> str:
    """As a buyer reads it, in a sentence without its stop."""
    site = row.site
    return (
        f"wait until {at:%A %H:%M} UTC: an offer of {row.stands.gpu_class} at {site.name}"
        f" ({site.region}) opens then, and its limit is enough for {wanted.gpus} ×"
        f" {row.stands.gpu_class} there"
    )


def _would_do(wanted: Wants, row: Lot) -> bool:
    stands = row.stands
    return (
        stands.gpus >= wanted.gpus
        and stands.ask <= wanted.limits.get(stands.gpu_class, 0)
        and suits(wanted, stands)
    )
