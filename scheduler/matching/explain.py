"""Why a job waits, and the changes each of which, alone, would place it.

All of it argues from what is public: what the round left free, and the prices that it published.
A place costs max(ask, the cell's price), as whoever takes it at once would pay.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Final

import numpy as np

from scheduler.matching.arrays import Bools, Ints
from scheduler.matching.book import Book
from scheduler.matching.matches import Matches
from scheduler.matching.placing import NODE, SITE
from scheduler.matching.reaching import Asked, Stock, Way, most_together, stock, ways

WORST_TRUST: Final = 3
WORST_TIER: Final = 2


class Why(StrEnum):
    """Why a job waits; the first that holds."""

    UNFIT = "unfit"  # no node on offer fits its terms
    APART = "apart"  # nowhere are so many GPUs together, not even with nobody else there
    DEAR = "dear"  # its limits lie below the prices
    REJECTED = "rejected"  # in the money, and yet there is no place for all of it


class Term(StrEnum):
    """What a job could change."""

    LIMIT = "limit"  # to USD per GPU-hour, of the change's class
    GPUS = "gpus"  # to so many
    LEVEL = "level"  # to one site
    REGION = "region"  # to accept this one, by its number, too
    TRUST = "trust"  # to accept sites of this trust
    TIER = "tier"  # to accept nodes of this tier
    WINDOW = "window"  # to do without a long one (to 0)


@dataclass(frozen=True)
class Change:
    """One change, which alone would place the job, and the place it would have."""

    term: Term
    to: float
    gpu_class: int
    level: int
    gpus: int
    hourly: float
    """What the place costs, USD per hour."""
    cost: float
    """The same for as much work as the job does in an hour with all its GPUs, at full speed, on the
    class for which its limit is the highest: limits tell what an hour of each class is worth to it.
    Changes are ranked by this."""
    nodes: tuple[int, ...]
    """Where, by their indexes in the book."""


@dataclass(frozen=True)
class Waiting:
    """Why a job waits."""

    job: int
    why: Why
    gpus: int
    """How many it needs, at the least."""
    level: int
    """How close together, at the loosest: one node or one site; looser is one site here."""
    fit: int
    """How many its terms admit, whatever their price, let or not."""
    left: int
    """Of these still free, at a cost within its limits."""
    together: int
    """Of these at most in one node, or on one site if it accepts that; of APART with nobody else
    there."""
    gpu_class: int
    """Where it lacks the least for the price, or is in the money; -1: nowhere."""
    price: float
    """What a GPU-hour costs there; 0: nowhere."""
    limit: float
    """The job's limit there."""
    changes: tuple[Change, ...]
    """The cheapest first."""


def waiting(book: Book, matches: Matches, jobs: Iterable[int]) -> list[Waiting]:
    """Why each of these waits, as the round's matches stand. Jobs that were placed don't."""
    let = np.bincount(matches.node, matches.gpus, book.nodes).astype(np.int64)
    free = book.node_gpus.astype(np.int64)
    whole = stock(book, free, matches.cell_price)
    left = stock(book, free - let, matches.cell_price)
    return [_explained(_Job(book, job), whole, left) for job in jobs]


def changed(book: Book, job: int, change: Change) -> Book:
    """The book with this one change made to the job."""
    name, at = _COLUMNS[change.term], (job, change.gpu_class)
    column, to = getattr(book, name).copy(), change.to
    if change.term is Term.REGION:
        to = int(column[job]) | 1 << int(to)
    column[at if change.term is Term.LIMIT else job] = to
    return replace(book, **{name: column})


_COLUMNS: Final = {
    Term.LIMIT: "job_limit",
    Term.GPUS: "job_gpus_min",
    Term.LEVEL: "job_level",
    Term.REGION: "job_regions",
    Term.TRUST: "job_trust",
    Term.TIER: "job_tier",
    Term.WINDOW: "job_long",
}


@dataclass(frozen=True)
class _Job:
    """A job's terms against a stock."""

    book: Book
    number: int

    @cached_property
    def asked(self) -> Asked:
        book, job = self.book, self.number
        return Asked(
            int(book.job_gpus_min[job]), int(book.job_level[job]), float(book.job_kappa[job]),
            float(book.job_hours_lost[job]),
        )  # fmt: skip

    @cached_property
    def limits(self) -> list[float]:
        found: list[float] = self.book.job_limit[self.number].tolist()
        return found

    def term(self, name: Term, of: Stock) -> Bools:
        """[N] whether each node meets this one of its terms."""
        book, job = self.book, self.number
        found: Bools
        if name is Term.LIMIT:
            found = (book.job_limit[job] > 0)[of.gpu_class]
        elif name is Term.REGION:
            found = (book.job_regions[job] >> of.region & np.uint64(1)).astype(bool)
        elif name is Term.TRUST:
            found = of.trust <= book.job_trust[job]
        elif name is Term.TIER:
            found = of.tier <= book.job_tier[job]
        else:
            found = of.long >= book.job_long[job]
        return found

    def within(self, found: dict[int, Way]) -> list[Way]:
        """Those that its limits are enough for, the cheapest first."""
        good = [way for way in found.values() if way.limit <= self.limits[way.gpu_class]]
        return sorted(good, key=lambda way: (self.cost(way), way.gpu_class))

    def cost(self, way: Way) -> float:
        """For as much work as on the class of its highest limit, together with all its GPUs."""
        best = max(self.limits) / self.limits[way.gpu_class]
        return way.hourly / way.keeps * best * self.asked.gpus / way.gpus


TERMS: Final = (Term.LIMIT, Term.REGION, Term.TRUST, Term.TIER, Term.WINDOW)
"""What a node must meet, in the order in which reasons are given; of LIMIT only that there is one."""


def _explained(job: _Job, whole: Stock, left: Stock) -> Waiting:
    fits = np.logical_and.reduce([job.term(name, whole) for name in TERMS])
    places = ways(whole, job.asked, fits)
    within = job.within(places)
    nearest = within[0] if within else _nearest(job, places)
    terms = {name: job.term(name, left) for name in TERMS}
    fits_left = np.logical_and.reduce(list(terms.values()))
    cheap = fits_left & (left.price[:, 0] <= np.array(job.limits)[left.gpu_class])
    if not fits.any():
        why = Why.UNFIT
    elif nearest is None:
        why = Why.APART
    else:
        why = Why.REJECTED if within else Why.DEAR
    together = (whole, fits) if why is Why.APART else (left, cheap)
    return Waiting(
        job=job.number,
        why=why,
        gpus=job.asked.gpus,
        level=min(job.asked.level, SITE),
        fit=int(whole.free[fits].sum()),
        left=int(left.free[cheap].sum()),
        together=most_together(*together, job.asked.level),
        gpu_class=nearest.gpu_class if nearest else -1,
        price=nearest.hourly / nearest.gpus if nearest else 0.0,
        limit=job.limits[nearest.gpu_class] if nearest else 0.0,
        changes=_changes(job, left, terms),
    )


def _nearest(job: _Job, found: dict[int, Way]) -> Way | None:
    """The one of which the limit lacks the smallest share."""
    return min(found.values(), key=lambda way: way.limit / job.limits[way.gpu_class], default=None)


def _changes(job: _Job, left: Stock, terms: dict[Term, Bools]) -> tuple[Change, ...]:
    if not len(left.free):
        return ()
    fits = np.logical_and.reduce(list(terms.values()))
    found = [
        *_raised(job, left, fits),
        *_elsewhere(job, left, terms),
        *_looser(job, left, fits),
        *_fewer(job, left, fits),
    ]
    return tuple(sorted(found, key=lambda change: (change.cost, change.term, change.gpu_class)))


def _change(job: _Job, term: Term, to: float, way: Way) -> Change:
    return Change(
        term, to, way.gpu_class, way.level, way.gpus, way.hourly, job.cost(way), way.nodes
    )


def _raised(job: _Job, left: Stock, fits: Bools) -> list[Change]:
    return [
        _change(job, Term.LIMIT, way.limit, way) for way in ways(left, job.asked, fits).values()
    ]


def _elsewhere(job: _Job, left: Stock, terms: dict[Term, Bools]) -> list[Change]:
    """Other regions, worse trust, a worse tier, a short window; each as little as will do."""
    book, number, found = job.book, job.number, []

    def without(term: Term) -> Bools:
        others: Bools = np.logical_and.reduce(
            [meets for name, meets in terms.items() if name is not term]
        )
        return others

    beside = without(Term.REGION)
    for region in np.unique(left.region[beside & ~terms[Term.REGION]]).tolist():
        allowed = terms[Term.REGION] | (left.region == region)
        found += _best(job, left, beside & allowed, (Term.REGION, region))
    scales: Sequence[tuple[Term, Ints, int, int]] = (
        (Term.TRUST, left.trust, int(book.job_trust[number]), WORST_TRUST),
        (Term.TIER, left.tier, int(book.job_tier[number]), WORST_TIER),
    )
    for term, scale, now, worst in scales:
        beside = without(term)
        for to in range(now + 1, worst + 1):
            better = _best(job, left, beside & (scale <= to), (term, to))
            found += better
            if better:
                break
    if book.job_long[number]:
        found += _best(job, left, without(Term.WINDOW), (Term.WINDOW, 0))
    return found


def _looser(job: _Job, left: Stock, fits: Bools) -> list[Change]:
    if job.asked.level != NODE or job.asked.gpus == 1:
        return []
    return _best(job, left, fits, (Term.LEVEL, SITE), job.asked._replace(level=SITE))


def _fewer(job: _Job, left: Stock, fits: Bools) -> list[Change]:
    """As many as have a place: with fewer GPUs it is never harder to find one."""
    none, most, best = 0, job.asked.gpus, list[Change]()
    most = min(most, most_together(left, fits, job.asked.level) + 1)
    while most - none > 1:
        gpus = (none + most) // 2
        smaller = _best(job, left, fits, (Term.GPUS, gpus), job.asked._replace(gpus=gpus))
        none, most, best = (gpus, most, smaller) if smaller else (none, gpus, best)
    return best


def _best(
    job: _Job, left: Stock, fits: Bools, change: tuple[Term, float], asked: Asked | None = None
) -> list[Change]:
    """The cheapest place within the job's limits, if there is one."""
    if not fits.any():
        return []
    within = job.within(ways(left, asked or job.asked, fits))
    return [_change(job, *change, within[0])] if within else []
