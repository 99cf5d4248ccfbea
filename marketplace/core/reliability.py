"""How far a node can be relied on, from what its leases came to.

A Beta posterior over "a lease ended without the supplier breaking it", with older leases
counting less. Source of the method: Beta reputation (Jøsang and Ismail, 2002), with the decay
applied by age instead of by event.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from marketplace.core.hardware import Tier

HALF_LIFE_DAYS: Final = 30.0
# A new node starts like one that kept two leases of three: neither trusted nor branded.
PRIOR_KEPT: Final = 2.0
PRIOR_BROKEN: Final = 1.0


@dataclass(frozen=True)
class Outcome:
    """One ended lease on this node: did the supplier's side break it, how long ago, how long."""

    broken: bool
    age_days: float
    hours: float


@dataclass(frozen=True)
class Reliability:
    """`kept` is the expected share of leases kept; `low` its lower 95 % bound."""

    kept: float
    low: float
    leases: int
    failures_per_hour: float
    tier: Tier


@dataclass(frozen=True)
class Record:
    """What a node's leases came to: sums of their weights by age, and how many they are."""

    kept: float = 0.0
    broken: float = 0.0
    hours: float = 0.0
    leases: int = 0


def assess(outcomes: Iterable[Outcome], *, mtbf_h: float = 24.0) -> Reliability:
    """`judge` from single outcomes."""
    kept, broken, hours, leases = 0.0, 0.0, 0.0, 0
    for outcome in outcomes:
        weight = 0.5 ** (outcome.age_days / HALF_LIFE_DAYS)
        kept += 0.0 if outcome.broken else weight
        broken += weight if outcome.broken else 0.0
        hours += weight * outcome.hours
        leases += 1
    return judge(Record(kept, broken, hours, leases), mtbf_h=mtbf_h)


def judge(record: Record, *, mtbf_h: float = 24.0) -> Reliability:
    """The node's figure, bound, sample size and service tier.

    The bound is the normal approximation of the Beta posterior; with few leases it is wide, and
    a new node is UNPROVEN until its record is long enough, whatever it is. Failures an hour start
    from one in `mtbf_h`, as unknown machines were measured to fail, and follow the record from
    there.
    """
    kept, total = PRIOR_KEPT + record.kept, PRIOR_KEPT + PRIOR_BROKEN + record.kept + record.broken
    mean = kept / total
    spread = math.sqrt(mean * (1 - mean) / (total + 1))
    low = max(0.0, mean - 1.96 * spread)
    rate = (record.broken + 1.0) / (record.hours + mtbf_h)
    return Reliability(mean, low, record.leases, rate, _tier(low, record.leases))


def _tier(low: float, leases: int) -> Tier:
    if leases >= 20 and low >= 0.9:
        return Tier.STEADY
    if leases >= 5 and low >= 0.6:
        return Tier.NORMAL
    return Tier.UNPROVEN
