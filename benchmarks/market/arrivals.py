"""A market on its way through real arrivals, round after round: what `replay` and `ceiling` play."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from scheduler.matching.book import JOBS, NODES, Book

ROUND_S: Final = 120.0


class Trace(NamedTuple):
    """Sorted by arrival: seconds from the first, GPUs, seconds of running."""

    arrival: np.ndarray
    gpus: np.ndarray
    seconds: np.ndarray


class Rows(NamedTuple):
    """What begins to run: indexes into a book, GPUs, and of each row what a GPU gains and what is paid
    for it, USD per hour."""

    job: np.ndarray
    node: np.ndarray
    gpus: np.ndarray
    gain: np.ndarray
    price: np.ndarray


class Leases(NamedTuple):
    """What runs, as `Rows` have it, and the second at which it ends."""

    end: np.ndarray
    job: np.ndarray
    node: np.ndarray
    gpus: np.ndarray
    gain: np.ndarray
    price: np.ndarray

    def where(self, these: np.ndarray) -> "Leases":
        """Some rows of it."""
        return Leases(*(column[these] for column in self))


@dataclass
class Run:
    """One market on its way; everything is an array from round to round. Until the last arrival."""

    book: Book
    trace: Trace
    match: Callable[[Book], Rows]

    def __post_init__(self) -> None:
        self.horizon = float(self.trace.arrival[-1])
        self.free = self.book.node_gpus.astype(np.int64)
        self.left = self.trace.seconds.copy()
        self.since = self.trace.arrival.copy()
        """Since when each job waits, if it does."""
        self.waited = np.zeros(self.book.jobs)
        self.started = np.full(self.book.jobs, np.nan)
        self.welfare = self.gpu_hours = self.lost_gpu_hours = 0.0
        self.leaves = 0
        self.running = Leases(*(np.empty(0, kind) for kind in (float, int, int, int, float, float)))

    def play(self) -> None:
        """All rounds until the last arrival."""
        for now in np.arange(0.0, self.horizon, ROUND_S):
            self.turn(now)

    def turn(self, now: float) -> None:
        """One round, with what has come and gone before it."""
        over = self.running.end <= now
        np.add.at(self.free, self.running.node[over], self.running.gpus[over])
        self.running = self.running.where(~over)
        waiting, nodes = self.waiting(now), np.flatnonzero(self.free)
        if len(waiting) and len(nodes):
            rows = self.matched(self.seen(now, waiting, nodes), nodes)
            self.start(now, rows._replace(job=waiting[rows.job], node=nodes[rows.node]))

    def matched(self, book: Book, nodes: np.ndarray) -> Rows:
        """What a round places, of the book of these nodes."""
        return self.match(book)

    def waiting(self, now: float) -> np.ndarray:
        """The jobs that have come and don't run."""
        came = np.searchsorted(self.trace.arrival, now, side="right")
        return np.flatnonzero(np.isnan(self.started[:came]))

    def seen(self, now: float, jobs: np.ndarray, nodes: np.ndarray) -> Book:
        """The book of these jobs, and of what these nodes have free."""
        columns = {name: getattr(self.book, name)[jobs] for name in JOBS}
        columns |= {name: getattr(self.book, name)[nodes] for name in NODES}
        columns["job_age_h"] = ((now - self.since[jobs]) / 3600).astype("<f4")
        columns["node_gpus"] = self.free[nodes].astype("|i1")
        return replace(self.book, **columns)

    def start(self, now: float, rows: Rows) -> None:
        """These begin to run; what they gain until they end is counted at once."""
        self.count(rows.gpus, rows.gain, np.minimum(self.left[rows.job], self.horizon - now) / 3600)
        self.started[rows.job] = now
        np.subtract.at(self.free, rows.node, rows.gpus)
        assert (self.free >= 0).all()
        more = Leases(now + self.left[rows.job], *rows)
        self.running = Leases(
            *(np.concatenate(both) for both in zip(self.running, more, strict=True))
        )

    def count(self, gpus: np.ndarray, gain: np.ndarray, hours: np.ndarray) -> None:
        """So many hours more of each row, or fewer."""
        self.welfare += float((gpus * gain * hours).sum())
        self.gpu_hours += float((gpus * hours).sum())

    def figures(self) -> list[float]:
        """Welfare (USD), placed share (%), mean wait of who was placed and of all (s), used (%); how
        often somebody left for others, and what was lost by it (% of what was used)."""
        placed = ~np.isnan(self.started)
        wait = self.waited + np.where(placed, self.started, self.horizon) - self.since
        there = float(self.book.node_gpus.sum(dtype=np.int64)) * self.horizon / 3600
        return [self.welfare, 100 * float(placed.mean()), float(wait[placed].mean()),
                float(wait.mean()), 100 * self.gpu_hours / there, self.leaves,
                100 * self.lost_gpu_hours / max(self.gpu_hours, 1e-9)]  # fmt: skip
