"""When a job saves, what a save costs, and which of its saves are kept. Pure arithmetic.

The interval between checkpoints is Young's (J. W. Young, "A first order approximation to the
optimum checkpoint interval", CACM 17(9), 1974; Daly, "A higher order estimate…", FGCS 22(3),
2006, gives the same where a save is short beside the time between failures), from what a save
really costs the job and how often machines like its own fail.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

LEAST_S: Final = 60.0
"""However cheap a save is: a minute, or a run turns into nothing but saving."""
MOST_SHARE: Final = 0.02
"""Of a run that may go into saving."""


def save_seconds(measured: float | None, assumed: float) -> float:
    """Seconds that a checkpoint takes the job: as measured, else as assumed."""
    return assumed if measured is None else measured


def reserve_seconds(save_s: float) -> int:
    """Seconds held back, in time and money, for a last checkpoint: twice what one takes."""
    return math.ceil(2 * save_s)


def interval(save_s: float, *, failures_per_hour: float) -> float:
    """Seconds of training between two checkpoints: √(2 · save · time between failures), but never
    so short that saving takes more than MOST_SHARE of the run."""
    between = 3600 / failures_per_hour if failures_per_hour > 0 else math.inf
    best = math.sqrt(2 * save_s * between) if save_s > 0 else 0.0
    return max(LEAST_S, min(best, 24 * 3600), save_s * (1 - MOST_SHARE) / MOST_SHARE)


def overhead(save_s: float, every_s: float) -> float:
    """Share of a run that goes into saving, every so many seconds of training."""
    return save_s / (every_s + save_s)


def hours_lost(save_s: float, every_s: float) -> float:
    """What an interruption costs, in hours: half an interval on average, and the save."""
    return (every_s / 2 + save_s) / 3600


@dataclass(frozen=True)
class Kept:
    """One committed checkpoint that still has its files and can be gone on from."""

    id: UUID
    epoch: int
    proven: bool
    """Whether a job has gone on from it."""


def retired(found: Sequence[Kept], *, most: int, unproven: int) -> list[UUID]:
    """Ids whose files are removed. `found`: newest first.

    The newest `most` stay; and, until the newest attempt has left `unproven` of its own, the last
    one that is known to be good because something went on from it, and the last of the attempt
    before: nobody has yet read what the newest attempt has written.
    """
    kept = {one.id for one in found[:most]}
    ours = [one for one in found if one.epoch == found[0].epoch] if found else []
    if len(ours) < unproven:
        kept |= {one.id for one in [one for one in found if one.epoch != found[0].epoch][:1]}
        kept |= {one.id for one in [one for one in found if one.proven][:1]}
    return [one.id for one in found if one.id not in kept]
