"""How fast jobs of a kind really train, learnt from those that have finished.

A device's benchmark says what its arithmetic could do; training reaches a share of it. Beside the
arithmetic a job starts, reads, answers and writes: its overhead, which takes some factor of what is
reckoned for it. What is believed of either, before any job of the kind has run, is a log-normal
around the default; each finished job narrows it (conjugate normal of the logarithms: Gelman et al., *Bayesian Data
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
_SHARES: Final = (0.001, 2.0)
_OVERHEADS: Final = (0.05, 20.0)
"""The least and the most that is believed."""


@dataclass(frozen=True)
class Pace:
    """Share of the benchmark that training reaches, and factor of the reckoned overhead that jobs
    take. The spreads are factors either way, within which four jobs in five stay; `jobs` have been
    seen."""

    share: float
    spread: float
    overhead: float
    overhead_spread: float
    jobs: int


_Seen = Mapping[object, Sequence[float]]
"""Supplier → what its jobs have shown."""


def believed(default: float, shares: _Seen, overheads: _Seen) -> Pace:
    """What to expect of the next job; `default` is the share where none is known."""
    share, spread = _expected(default, shares, _SHARES)
    overhead, overhead_spread = _expected(1.0, overheads, _OVERHEADS)
    jobs = sum(len(of_supplier) for of_supplier in shares.values())
    return Pace(share, spread, overhead, overhead_spread, jobs)


def _expected(default: float, seen: _Seen, bounds: tuple[float, float]) -> tuple[float, float]:
    """The middle of what to expect, and its spread."""
    least, most = bounds
    known = [
        [math.log(value) for value in values if least <= value <= most] for values in seen.values()
    ]
    voices = [median(values) for values in known if values]
    if not voices:
        return default, math.exp(_EIGHTY_PERCENT * math.hypot(_PRIOR, _SCATTER))
    # 1. How much jobs of one kind differ: the default, and what was seen.
    middle = fmean(voices)
    every = [value for values in known for value in values]
    squares = sum((value - middle) ** 2 for value in every)
    scatter = (_SCATTER_COUNTS * _SCATTER**2 + squares) / (_SCATTER_COUNTS + len(every))
    # 2. The mean, between what was thought and what was seen.
    weight = len(voices) / scatter
    precision = 1 / _PRIOR**2 + weight
    mean = (math.log(default) / _PRIOR**2 + weight * middle) / precision
    # 3. The next job: unsure of the mean, and scattered around it.
    return math.exp(mean), math.exp(_EIGHTY_PERCENT * math.sqrt(1 / precision + scatter))


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
