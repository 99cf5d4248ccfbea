"""What the mechanism promises: nothing illegal, sellers made whole by little, lies that don't pay.

    python -m benchmarks.market.mechanism [--quick]

Misreports: one agent at a time bids 5, 10 or 20 % less (buyers), or asks as much more (sellers);
all else, the seed too, stays. Utility is by the true limits and asks: a buyer's Σ GPUs · (limit · η
− risk − price), a seller's Σ GPUs · (what they get − ask). Agents are drawn from those who trade
when all are honest. The engine makes so many rounds rather than so much time, so each clearing can
be repeated. It is a search: anything that changes may turn it elsewhere. So the same agents are
also cleared honestly under another seed for ties; that row is noise, and what a lie brings is its
gain less the noise's.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.market.books import LARGE, large
from benchmarks.market.harness import Result, clear, compile_engine, parser
from benchmarks.market.worth import utilities
from scheduler.matching.book import Book
from scheduler.matching.check import check
from scheduler.matching.synthetic import Plan, make

SHARES = (0.05, 0.10, 0.20)
SIZES = ((100, 100), (300, 1500), (1000, 5000))
_SIDES = ("buyers", "sellers")


class Honest(NamedTuple):
    """A book in which all say the truth, and what came of it."""

    book: Book
    utilities: dict[str, np.ndarray]


def main(arguments: list[str] | None = None) -> int:
    """Prints both tables: the books' own figures, then misreports."""
    given = parser(__doc__).parse_args(arguments)
    compile_engine()
    seeds = range(1) if given.quick else range(5)
    _check_books(seeds, given.quick, given.out)
    _misreport(seeds, given.quick, given.out)
    return 0


def _check_books(seeds: range, quick: bool, out: Path | None) -> None:
    columns = ["book", "books", "violations", "double lets", "make-whole, % of turnover, mean",
               "most", "trades"]  # fmt: skip
    result = Result("mechanism", columns, list(seeds), quick)
    sizes = ((40, 60),) if quick else SIZES
    for jobs, nodes in sizes:
        count = len(seeds) * max(1, 2000 // jobs) if not quick else 2
        made = (make(Plan(jobs=jobs, nodes=nodes, seed=seed)) for seed in range(count))
        _add_books(result, f"{jobs:,} × {nodes:,}", made)
    for kind in LARGE:
        made = (large(kind, seed, 100 if quick else 10) for seed in seeds)
        _add_books(result, f"1,000 × 5,000, {kind}", made)
    result.finish(out)


def _add_books(result: Result, name: str, books: Iterable[Book]) -> None:
    count = faults = double = trades = 0
    shares = []
    for book in books:
        matches = clear(book)
        found = check(book, matches)
        count, faults, trades = count + 1, faults + len(found), trades + len(matches.job)
        let = np.bincount(matches.node, matches.gpus, book.nodes)
        double += int((let > book.node_gpus).sum())
        turnover = float((matches.gpus * matches.price).sum())
        shares.append(100 * matches.make_whole / max(turnover, 1e-9))
    result.add(name, count, faults, double, float(np.mean(shares)), max(shares), trades)


def _misreport(seeds: range, quick: bool, out: Path | None) -> None:
    columns = ["book", "who", "says", "agents", "mean gain, % of utility", "less noise, %",
               "median, %", "95th percentile, %", "who gain over 2 %, %", "utility changed, %"]  # fmt: skip
    result = Result("misreports", columns, list(seeds), quick)
    for jobs, nodes in ((40, 60),) if quick else SIZES:
        agents = 4 if quick else 40
        honest = [_honest(make(Plan(jobs=jobs, nodes=nodes, seed=seed))) for seed in seeds]
        for side in _SIDES:
            picked = [_picked(one.utilities[side], agents, seed)
                      for one, seed in zip(honest, seeds, strict=True)]  # fmt: skip
            _compare(result, f"{jobs:,} × {nodes:,}", side, honest, picked)
    result.notes.append("noise: honest, with another seed for ties")
    result.finish(out)


def _compare(
    result: Result, name: str, side: str, honest: list[Honest], picked: list[np.ndarray]
) -> None:
    """A row for the noise and one for each lie: of all seeds' agents together."""
    truth = _gathered(honest, picked, lambda one, agent: one.utilities[side][agent])
    # One honest clearing under another seed serves all agents of its book.
    again = {id(one): _honest(_other_seed(one.book)).utilities[side] for one in honest}
    noise = _gathered(honest, picked, lambda one, agent: again[id(one)][agent]) - truth
    _add_gains(result, (name, side, "the truth again"), noise, truth, 0.0)
    for share in SHARES:
        lied = _gathered(honest, picked, lambda one, a, s=share: _utility_of_lie(one, side, a, s))
        words = f"{100 * share:.0f} % {'less' if side == 'buyers' else 'more'}"
        _add_gains(result, (name, side, words), lied - truth, truth, float(noise.sum()))


def _gathered(
    honest: list[Honest], picked: list[np.ndarray], value: Callable[[Honest, int], float]
) -> np.ndarray:
    return np.array([value(one, int(agent)) for one, agents in zip(honest, picked, strict=True)
                     for agent in agents])  # fmt: skip


def _add_gains(
    result: Result, what: tuple[str, str, str], gain: np.ndarray, truth: np.ndarray, noise: float
) -> None:
    """Means are over utility: Σ gains / Σ utilities; percentiles over each agent's own."""
    total = max(float(truth.sum()), 1e-9)
    own = 100 * gain / np.maximum(truth, 1e-9)
    worth = truth > 0.01 * truth.mean()  # who had nothing to begin with has no percentage
    own = own[worth]
    mean = 100 * float(gain.sum()) / total
    low, high = np.percentile(own, [50, 95])
    result.add(*what, len(gain), mean, mean - 100 * noise / total, float(low), float(high),
               100 * float((own > 2).mean()), 100 * float((np.abs(own) > 0.01).mean()))  # fmt: skip


def _honest(book: Book) -> Honest:
    return Honest(book, utilities(book, clear(book)))


def _utility_of_lie(one: Honest, side: str, agent: int, share: float) -> float:
    """What one agent has, by the truth, when it alone misreports by `share`."""
    book = one.book
    if side == "buyers":
        limits = book.job_limit.copy()
        limits[agent] *= 1 - share
        matches = clear(replace(book, job_limit=limits))
        return float(utilities(book, matches)["buyers"][agent])
    asks = book.node_ask.copy()
    asks[agent] *= 1 + share
    matches = clear(replace(book, node_ask=asks))
    here = matches.node == agent
    received = np.maximum(matches.price[here], asks[agent])
    return float((matches.gpus[here] * (received - book.node_ask[agent])).sum())


def _other_seed(book: Book) -> Book:
    return replace(book, params=replace(book.params, seed=book.params.seed + 7_919))


def _picked(utility: np.ndarray, count: int, seed: int) -> np.ndarray:
    trading = np.flatnonzero(utility > 1e-9)
    random = np.random.Generator(np.random.PCG64([seed, 4]))
    return random.permutation(trading)[:count]


if __name__ == "__main__":
    raise SystemExit(main())
