"""The real arrivals of a cluster, cleared each two minutes by ours and by three simpler ways.

    python -m benchmarks.market.replay --traces DIR [--quick] [--seeds N]

Real: when jobs arrive, how many GPUs they want and how long they run (philly/philly.csv.gz: Jeon et
al., USENIX ATC 2019, as pkusys/ElasticFlow keeps it; Apache-2.0, the original CC-BY-4.0). Drawn
from the seed: the fleet, asks, bids, levels, regions, trust. Each seed has other jobs of the trace:

- slack: each tenth job, 80 times as fast (109 days in 33 hours), on some 2,500 GPUs;
- congested: each fifth, 400 times as fast (6.5 hours), on some 2,000 GPUs.

Running times are as they were. Jobs that even the empty fleet would not run are left out.
Ours looks for better matches so many times, not so long: another run differs by a thousandth or so, for
its two threads take turns by the clock. The replay ends at the last arrival; welfare is each lease's
gain an hour times the hours it ran until then. Leases don't end after a day, and no way knows how long a
job will run.

"Ours" lets jobs run on, as the simpler ways do, so that these four differ in matching alone. In the
market a buyer chooses whether a job is protected or interruptible, and for who gains more by them
interruptible ones are displaced: so do the last two of ours (`leaving` says how, and what it costs), with
each second job interruptible, drawn from the seed, or all.
"""

import csv
import gzip
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Final, NamedTuple

import numpy as np

from benchmarks.market import greedy
from benchmarks.market.arrivals import Rows, Run, Trace
from benchmarks.market.books import resized
from benchmarks.market.harness import Result, clear, compile_engine, parser
from benchmarks.market.leaving import Leaving
from benchmarks.market.worth import worth
from scheduler.matching.book import Book, reordered
from scheduler.matching.synthetic import Plan, make

LOOKS: Final = 2
"""How often the engine is told that there is more time."""


class Load(NamedTuple):
    """How many times as fast jobs arrive; each so manieth of them; the fleet."""

    pace: float
    each: int
    nodes: int


LOADS: Final = {"slack": Load(80, 10, 788), "congested": Load(400, 5, 630)}
OURS: Final = "ours"
MAY_LEAVE: Final = {"ours, half interruptible": 0.5, "ours, all interruptible": 1.0}


def main(arguments: list[str] | None = None) -> int:
    """Prints the table, then ours over each of the others."""
    arguments_of = parser(__doc__, "philly/philly.csv.gz")
    arguments_of.add_argument("--seeds", type=int, default=5)
    given = arguments_of.parse_args(arguments)
    seeds = range(1 if given.quick else given.seeds)
    columns = ["load", "seed", "way", "welfare, USD", "placed, %", "wait of the placed, s",
               "wait of all, s", "GPUs used, %", "displaced", "lost by it, % of GPU-hours"]  # fmt: skip
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
    return Rows(matches.job, matches.node, matches.gpus.astype(np.int64), gain, matches.price)


def by(rule: str) -> Callable[[Book], Rows]:
    """By one of the simpler ways."""

    def match(book: Book) -> Rows:
        placed = greedy.place(book, rule)
        return Rows(placed.job, placed.node, placed.gpus, placed.gain, placed.ask)

    return match


def _replay(result: Result, load: str, seed: int, trace: Trace, book: Book) -> None:
    for way, run in _runs(seed, trace, book).items():
        run.play()
        result.add(load, seed, way, *run.figures())


def _runs(seed: int, trace: Trace, book: Book) -> dict[str, Run]:
    """Each way on its way."""
    drawn = np.random.Generator(np.random.PCG64([seed, 5])).random(book.jobs)
    ours: dict[str, Run] = {OURS: Run(book, trace, matched)}
    leaving = {
        way: Leaving(book, trace, matched, drawn < share) for way, share in MAY_LEAVE.items()
    }
    return ours | leaving | {rule: Run(book, trace, by(rule)) for rule in greedy.RULES}


def _sum_up(result: Result, load: str) -> None:
    found = {(row[1], row[2]): row for row in result.rows if row[0] == load}
    seeds = sorted({seed for seed, _ in found})
    for way in (OURS, *MAY_LEAVE):
        for rule in greedy.RULES:
            more = [100 * (found[seed, way][3] / found[seed, rule][3] - 1) for seed in seeds]
            result.notes.append(f"{load}: {way} over {rule}: welfare {mean(more):+.1f} % (seeds"
                                f" {min(more):+.1f} to {max(more):+.1f})")  # fmt: skip
            if way == OURS or rule == greedy.FIRST_COME:
                result.series[f"{load}: {way} over {rule}"] = more
        losses = [(result.columns[at], rule) for at, sign in ((4, 1), (5, -1), (6, -1))
                  for rule in greedy.RULES
                  if sign * mean(found[s, way][at] - found[s, rule][at] for s in seeds) < 0]  # fmt: skip
        said = "; ".join(f"{what} (to {rule})" for what, rule in losses) or "nowhere"
        result.notes.append(f"{load}: where {way} loses: {said}")


if __name__ == "__main__":
    raise SystemExit(main())
