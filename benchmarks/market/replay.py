"""The real arrivals of a cluster, cleared each minute by ours and by three simpler ways.

    python -m benchmarks.market.replay --traces DIR [--quick] [--seeds N]

Real: when jobs arrive, how many GPUs they want and how long they run (philly/philly.csv.gz: Jeon et
al., USENIX ATC 2019, as pkusys/ElasticFlow keeps it; Apache-2.0, the original CC-BY-4.0). Drawn
from the seed: the fleet, asks, bids, levels, regions, trust. Each seed has other jobs of the trace:

- slack: each tenth job, 80 times as fast (109 days in 33 hours), on some 2,500 GPUs;
- congested: each fifth, 400 times as fast (6.5 hours), on some 2,000 GPUs.

Running times are as they were. Jobs that even the empty fleet would not run are left out.
A round each two minutes; ours looks for better matches so many times, not so long, so that a run
can be repeated. The replay ends at the last arrival; welfare is each lease's gain an hour times the
hours it ran until then. Nothing is interrupted and leases don't end after a day: the four differ in
matching alone. None of them knows how long a job will run.
"""

import csv
import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Final, NamedTuple

import numpy as np

from benchmarks.market import greedy
from benchmarks.market.books import resized
from benchmarks.market.harness import Result, clear, compile_engine, parser
from benchmarks.market.worth import worth
from scheduler.matching.book import JOBS, NODES, Book, reordered
from scheduler.matching.synthetic import Plan, make

ROUND_S: Final = 120.0
LOOKS: Final = 2
"""How often the engine is told that there is more time."""


class Load(NamedTuple):
    """How many times as fast jobs arrive; each so manieth of them; the fleet."""

    pace: float
    each: int
    nodes: int


LOADS: Final = {"slack": Load(80, 10, 788), "congested": Load(400, 5, 630)}
OURS: Final = "ours"


class Trace(NamedTuple):
    """Sorted by arrival: seconds from the first, GPUs, seconds of running."""

    arrival: np.ndarray
    gpus: np.ndarray
    seconds: np.ndarray


class Rows(NamedTuple):
    """What a round placed: indexes into its book, GPUs, and a GPU's gain, USD per hour."""

    job: np.ndarray
    node: np.ndarray
    gpus: np.ndarray
    gain: np.ndarray


@dataclass
class Run:
    """One market on its way; everything is an array from round to round."""

    book: Book
    trace: Trace
    match: Callable[[Book], Rows]

    def __post_init__(self) -> None:
        self.free = self.book.node_gpus.astype(np.int64)
        self.started = np.full(self.book.jobs, np.nan)
        self.welfare = self.gpu_hours = 0.0
        # end, node, GPUs of each part of a lease
        self.running = np.empty((0, 3))

    def play(self) -> None:
        """All rounds until the last arrival."""
        horizon = float(self.trace.arrival[-1])
        for now in np.arange(0.0, horizon, ROUND_S):
            self._release(now)
            came = np.searchsorted(self.trace.arrival, now, side="right")
            waiting = np.flatnonzero(np.isnan(self.started[:came]))
            nodes = np.flatnonzero(self.free)
            if len(waiting) and len(nodes):
                self._round(now, horizon, waiting, nodes)

    def figures(self) -> list[float]:
        """Welfare (USD), placed share (%), mean wait of who was placed and of all (s), used (%)."""
        horizon = float(self.trace.arrival[-1])
        until = np.where(np.isnan(self.started), horizon, self.started)
        wait, placed = until - self.trace.arrival, ~np.isnan(self.started)
        there = float(self.book.node_gpus.sum(dtype=np.int64)) * horizon / 3600
        return [self.welfare, 100 * float(placed.mean()), float(wait[placed].mean()),
                float(wait.mean()), 100 * self.gpu_hours / there]  # fmt: skip

    def _release(self, now: float) -> None:
        over = self.running[:, 0] <= now
        np.add.at(self.free, self.running[over, 1].astype(int), self.running[over, 2].astype(int))
        self.running = self.running[~over]

    def _round(self, now: float, horizon: float, jobs: np.ndarray, nodes: np.ndarray) -> None:
        columns = {name: getattr(self.book, name)[jobs] for name in JOBS}
        columns |= {name: getattr(self.book, name)[nodes] for name in NODES}
        columns["job_age_h"] = ((now - self.trace.arrival[jobs]) / 3600).astype("<f4")
        columns["node_gpus"] = self.free[nodes].astype("|i1")
        rows = self.match(replace(self.book, **columns))
        job, node = jobs[rows.job], nodes[rows.node]
        hours = np.minimum(self.trace.seconds[job], horizon - now) / 3600
        self.welfare += float((rows.gpus * rows.gain * hours).sum())
        self.gpu_hours += float((rows.gpus * hours).sum())
        self.started[job] = now
        np.subtract.at(self.free, node, rows.gpus)
        assert (self.free >= 0).all()
        lines = np.stack([now + self.trace.seconds[job], node, rows.gpus], axis=1)
        self.running = np.concatenate([self.running, lines])


def main(arguments: list[str] | None = None) -> int:
    """Prints the table, then ours over each of the others."""
    arguments_of = parser(__doc__, "philly/philly.csv.gz")
    arguments_of.add_argument("--seeds", type=int, default=5)
    given = arguments_of.parse_args(arguments)
    seeds = range(1 if given.quick else given.seeds)
    columns = ["load", "seed", "way", "welfare, USD", "placed, %", "wait of the placed, s",
               "wait of all, s", "GPUs used, %"]  # fmt: skip
    result = Result("replay", columns, list(seeds), given.quick)
    compile_engine()
    trace = read(given.traces / "philly" / "philly.csv.gz")
    if given.quick:
        trace = Trace(*(column[:4000] for column in trace))
    for name, load in LOADS.items():
        for seed in seeds:
            _replay(result, name, seed, *market(trace, load, seed))
        _sum_up(result, name)
    result.finish(given.out)
    return 0


def read(path: Path) -> Trace:
    """The trace as it was."""
    with gzip.open(path, "rt") as file:
        rows = [row for row in csv.DictReader(file) if float(row["duration"]) > 0]
    when = np.array([row["timestamp"] for row in rows], "datetime64[s]").astype(np.int64)
    order = np.argsort(when, kind="stable")
    gpus = np.array([int(float(row["num_gpus"])) for row in rows])
    seconds = np.array([float(row["duration"]) for row in rows])
    return Trace((when - when.min()).astype(float)[order], gpus[order], seconds[order])


def part(trace: Trace, load: Load, seed: int) -> Trace:
    """A seed's part of the trace, so many times as fast."""
    some = slice(seed % load.each, None, load.each)
    arrival = trace.arrival[some] - trace.arrival[some][0]
    return Trace(arrival / load.pace, trace.gpus[some], trace.seconds[some])


def market(trace: Trace, load: Load, seed: int) -> tuple[Trace, Book]:
    """A part of the trace's jobs with bids, and a fleet: all but times and sizes from the seed."""
    jobs = part(trace, load, seed)
    nodes = load.nodes if len(jobs.gpus) > 1000 else load.nodes // 10
    made = make(Plan(jobs=len(jobs.gpus), nodes=nodes, seed=seed))
    book = resized(made, jobs.gpus, seed)
    can = np.flatnonzero(greedy.possible(book))
    return Trace(*(each[can] for each in jobs)), reordered(book, can, np.arange(book.nodes))


def matched(book: Book) -> Rows:
    """By the engine."""
    looks = iter(range(LOOKS))
    matches = clear(book, lambda: next(looks, None) is not None)
    gain = worth(book, matches) - book.node_ask[matches.node]
    return Rows(matches.job, matches.node, matches.gpus.astype(np.int64), gain)


def _by(rule: str) -> Callable[[Book], Rows]:
    def match(book: Book) -> Rows:
        placed = greedy.place(book, rule)
        return Rows(placed.job, placed.node, placed.gpus, placed.gain)

    return match


def _replay(result: Result, load: str, seed: int, trace: Trace, book: Book) -> None:
    for way, match in [(OURS, matched), *((rule, _by(rule)) for rule in greedy.RULES)]:
        run = Run(book, trace, match)
        run.play()
        result.add(load, seed, way, *run.figures())


def _sum_up(result: Result, load: str) -> None:
    found = {(row[1], row[2]): row for row in result.rows if row[0] == load}
    seeds = sorted({seed for seed, _ in found})
    for rule in greedy.RULES:
        more = [100 * (found[seed, OURS][3] / found[seed, rule][3] - 1) for seed in seeds]
        result.notes.append(f"{load}: ours over {rule}: welfare {mean(more):+.1f} % (seeds"
                            f" {min(more):+.1f} to {max(more):+.1f})")  # fmt: skip
        result.series[f"{load}: {rule}"] = more
    losses = [(result.columns[at], rule) for at, sign in ((4, 1), (5, -1), (6, -1))
              for rule in greedy.RULES
              if sign * mean(found[s, OURS][at] - found[s, rule][at] for s in seeds) < 0]  # fmt: skip
    said = "; ".join(f"{what} (to {rule})" for what, rule in losses) or "nowhere"
    result.notes.append(f"{load}: where ours loses: {said}")


if __name__ == "__main__":
    raise SystemExit(main())
