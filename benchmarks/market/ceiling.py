"""What no way to match could exceed on the real arrivals of `replay`, were it to know all of them.

    python -m benchmarks.market.ceiling --traces DIR [--quick] [--seeds N]

Bounds on the welfare of the same jobs, bids and fleet, for whoever lets each job start once, in a
round, and run on as the replay does. They hold for one who knows beforehand who comes, when and for how long, and
may keep GPUs free for them:

- alone: each job as if it had the fleet for itself, from its first round on;
- together: GPUs have a price for each node and part of the time, on top of the ask. Each job takes
  what leaves it most, where and when that may be; and each node's prices are added for all its GPUs and
  all of the time. Whatever the prices, the sum bounds any matches, for these take of a node no more
  than it has (Lagrange's relaxation). The prices are changed, step by step, towards the least bound.

"Ours with tolls" is a way to match. A toll is what a GPU-hour of a node is taken to bring to those who
are yet to come; ours clears as if each ask were higher by it, owners get no more for it, and a job that
gains less than the toll waits. Tolls are the prices of the bound "together", one for all of the time, of
*other* jobs: the next seed's, of another part of the trace, on the same fleet, as a market might know
them from the days before. Nothing of it is in the engine.

First-come is that of `replay`, and so is ours, if its results are there.
"""

import json
from dataclasses import dataclass, replace
from statistics import mean
from typing import Final

import numpy as np

from benchmarks.market import foresight, greedy
from benchmarks.market.arrivals import ROUND_S, Rows, Run, Trace
from benchmarks.market.foresight import Wanted, Ways, ways
from benchmarks.market.harness import RESULTS, Result, compile_engine, parser
from benchmarks.market.replay import LOADS, OURS, by, market, matched, read
from scheduler.matching.book import NODES, PLACES, Book

first_come = by(greedy.FIRST_COME)

Steps = tuple[tuple[int, int], ...]
"""Into so many parts the time is cut; so many steps that prices take. One after the other."""
STEPS: Final[Steps] = ((1, 60), (4, 80), (16, 100))
LEARNING: Final[Steps] = ((1, 80),)
_QUICK: Final[Steps] = ((1, 4), (2, 4))
_GO_ON: Final = 0.6
"""The share of each step that the next one goes on with."""
_PATIENCE: Final = 8
"""After so many steps in vain they aim nearer."""


def main(arguments: list[str] | None = None) -> int:
    """Prints the table, then the means."""
    arguments_of = parser(__doc__, "philly/philly.csv.gz")
    arguments_of.add_argument("--seeds", type=int, default=5)
    given = arguments_of.parse_args(arguments)
    seeds = range(1 if given.quick else given.seeds)
    columns = ["load", "seed", "first-come at asks, USD", "ours over it, %", "ours with tolls, %",
               "placed with tolls, %", "bound together, %", "bound alone, %",
               "ours, % of the bound"]  # fmt: skip
    result = Result("ceiling", columns, list(seeds), given.quick)
    compile_engine()
    trace = read(given.traces / "philly" / "philly.csv.gz")
    if given.quick:
        trace = Trace(*(column[:4000] for column in trace))
    ours = {} if given.quick else _ours()
    for load, kind in LOADS.items():
        for seed in seeds:
            jobs, book = market(trace, kind, seed)
            toll = _learned(*market(trace, kind, seed + 1), book)
            known = ours.get((load, seed))
            result.add(load, seed, *_row(jobs, book, toll, known, _QUICK if given.quick else STEPS))
        _sum_up(result, load)
    result.finish(given.out)
    return 0


def _ours() -> dict[tuple[str, int], float]:
    """The welfare that `replay` found, by load and seed."""
    path = RESULTS / "replay.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {(row[0], row[1]): row[3] for row in rows if row[2] == OURS}


def _row(
    jobs: Trace, book: Book, toll: np.ndarray, ours: float | None, steps: Steps
) -> list[float | str]:
    plain = Run(book, jobs, first_come)
    plain.play()
    tolled = Tolled(book, jobs, matched, toll)
    tolled.play()
    proven, alone = bounds(jobs, book, steps)
    base, with_tolls, placed = plain.welfare, tolled.welfare, tolled.figures()[1]

    def over(welfare: float) -> float:
        return 100 * (welfare / base - 1)

    return [base, "none" if ours is None else over(ours), over(with_tolls), placed,
            over(proven.bound), over(alone),
            "none" if ours is None else 100 * ours / proven.bound]  # fmt: skip


def _learned(jobs: Trace, other: Book, book: Book) -> np.ndarray:
    """[N] tolls of a book's nodes by the jobs of another."""
    fleet = {name: getattr(book, name) for name in (*NODES, *PLACES)}
    return bounds(jobs, replace(other, **fleet), LEARNING)[0].price[:, 0]


@dataclass
class Tolled(Run):
    """Cleared as if each node asked its toll more; gains are by the asks that they have."""

    toll: np.ndarray

    def matched(self, book: Book, nodes: np.ndarray) -> Rows:
        """As `Run` has it."""
        toll = self.toll[nodes]
        rows = self.match(replace(book, node_ask=book.node_ask + toll))
        return rows._replace(gain=rows.gain + toll[rows.node])


@dataclass
class Proven:
    """Prices [N, parts of the time], USD per GPU-hour, and the bound that follows from them."""

    price: np.ndarray
    bound: float = np.inf


def bounds(jobs: Trace, book: Book, steps: Steps) -> tuple[Proven, float]:
    """Together, and alone: USD."""
    horizon = float(jobs.arrival[-1]) / 3600
    begin = np.ceil(jobs.arrival / ROUND_S) * ROUND_S / 3600
    wanted = Wanted(jobs.gpus.astype(np.int64), begin, jobs.seconds / 3600,
                    book.node_gpus.astype(np.int64), horizon)  # fmt: skip
    how, least = ways(book), Proven(np.zeros((book.nodes, 1)))
    alone = foresight.best(how, wanted, least.price, np.zeros_like(least.price))
    for parts, count in steps:
        least.price = np.repeat(least.price, parts // least.price.shape[1], axis=1)
        _lower(how, wanted, least, count)
    return least, float(alone)


def _lower(how: Ways, wanted: Wanted, least: Proven, steps: int) -> None:
    """Polyak's steps along the subgradient, GPU-hours that are wanted beyond what there is, aiming
    below the least bound by a share that shrinks."""
    price, used = least.price.copy(), np.zeros_like(least.price)
    there = wanted.free[:, None] * wanted.until / price.shape[1]
    along, aim, vain = np.zeros_like(price), 0.1, 0
    for _ in range(steps):
        found = foresight.best(how, wanted, price, used)
        if found < least.bound:
            least.price, least.bound, vain = price.copy(), float(found), 0
        else:
            vain += 1
        if vain == _PATIENCE:
            price, along, aim, vain = least.price.copy(), np.zeros_like(price), 0.7 * aim, 0
            continue
        # Of what each node has, so that large ones don't go further than small ones.
        beyond = (used - there) / np.sqrt(there)
        beyond[(price <= 0) & (beyond < 0)] = 0
        along = beyond + _GO_ON * along
        length = (found - (1 - aim) * least.bound) / max(float((along**2).sum()), 1e-12)
        price = np.maximum(price + length * along / np.sqrt(there), 0)


def _sum_up(result: Result, load: str) -> None:
    rows = [row for row in result.rows if row[0] == load and row[3] != "none"]
    for at, what in (
        (3, "ours"),
        (4, "ours with tolls"),
        (6, "bound together"),
        (7, "bound alone"),
    ):
        found = [row[at] for row in rows]
        if found:
            result.notes.append(f"{load}: {what} {mean(found):+.1f} % over first-come at asks (seeds"
                                f" {min(found):+.1f} to {max(found):+.1f})")  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
