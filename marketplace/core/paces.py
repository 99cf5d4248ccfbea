"""How fast jobs of a kind really train, learnt from those that have finished.

A device's benchmark says what its arithmetic could do; training reaches a share of it. What is
believed of that share, before any job of the kind has run, is a log-normal around the default;
each finished job narrows it (conjugate normal of the logarithms: Gelman et al., *Bayesian Data
Analysis*, 3rd ed., section 2.5). Nodes report the speeds, so shares that no device reaches are
not believed, and each supplier's jobs count as one voice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final

_EIGHTY_PERCENT: Final = 1.2816
"""Standard deviations that the middle 80 % of a normal lie within."""
_PRIOR: Final = math.log(2.0) / _EIGHTY_PERCENT
"""Unseen kinds are within a factor of two, four times in five."""
_SCATTER: Final = 0.15
"""Standard deviation of the logarithm among jobs of one kind, until there are enough to tell."""
_SCATTER_COUNTS: Final = 3
"""As many observations is the default scatter worth."""
_LEAST, _MOST = 0.001, 2.0


@dataclass(frozen=True)
class Pace:
    """Share of the benchmark that training reaches; `spread` is a factor either way, within
    which four jobs in five stay; `jobs` have been seen."""

    share: float
    spread: float
    jobs: int


def believed(default: float, seen: Mapping[object, Sequence[float]]) -> Pace:
    """What to expect of the next job; `seen` is supplier → the shares that its jobs reached."""
    voices = [
        median(math.log(share) for share in shares)
        for raw in seen.values()
        if (shares := [share for share in raw if _LEAST <= share <= _MOST])
    ]
    jobs = sum(len(shares) for shares in seen.values())
    if not voices:
        return Pace(default, math.exp(_EIGHTY_PERCENT * math.hypot(_PRIOR, _SCATTER)), 0)
    # 1. How much jobs of one kind differ: the default, and what was seen.
    middle = fmean(voices)
    every = [math.log(s) for shares in seen.values() for s in shares if _LEAST <= s <= _MOST]
    squares = sum((value - middle) ** 2 for value in every)
    scatter = (_SCATTER_COUNTS * _SCATTER**2 + squares) / (_SCATTER_COUNTS + len(every))
    # 2. The mean, between what was thought and what was seen.
    weight = len(voices) / scatter
    precision = 1 / _PRIOR**2 + weight
    mean = (math.log(default) / _PRIOR**2 + weight * middle) / precision
    # 3. The next job: unsure of the mean, and scattered around it.
    return Pace(
        math.exp(mean), math.exp(_EIGHTY_PERCENT * math.sqrt(1 / precision + scatter)), jobs
    )


@dataclass(frozen=True)
class Accuracy:
    """How well quotes foretold what jobs came to. Errors are shares of the quoted figure."""

    jobs: int
    time_error: float
    """The median of |actual / quoted − 1|."""
    cost_error: float
    within: float
    """Share of jobs whose time lay inside the range that was quoted."""


def accuracy(runs: Sequence["Foretold"]) -> Accuracy | None:
    """Over finished runs; None if there are none."""
    if not runs:
        return None
    return Accuracy(
        jobs=len(runs),
        time_error=median(abs(run.seconds / run.quoted_seconds - 1) for run in runs),
        cost_error=median(abs(run.micros / run.quoted_micros - 1) for run in runs),
        within=fmean(run.low <= run.seconds <= run.high for run in runs),
    )


@dataclass(frozen=True)
class Foretold:
    """A finished run beside its quote; the quoted figures are above 0."""

    quoted_seconds: float
    low: float
    high: float
    seconds: float
    quoted_micros: int
    micros: int
