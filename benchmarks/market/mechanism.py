"""What the mechanism promises: nothing illegal, sellers made whole by little, lies that don't pay.

    python -m benchmarks.market.mechanism [--quick]

Misreports: one agent at a time bids 5, 10 or 20 % less (buyers), or asks as much more (sellers);
all else stays. Utility is by the true limits and asks: a buyer's Σ GPUs · (limit · η − risk −
price), a seller's Σ GPUs · (what they get − ask). The engine makes so many rounds rather than so
much time, so each clearing can be repeated; but it is a search, and whatever changes may turn it
elsewhere. So that this is no bias:

- agents are drawn from those who trade in one honest clearing, and measured in others, under other
  seeds for ties: those who trade by chance are not the ones that are then seen to lose;
- truth and lie are cleared under the same seeds, and differ in the one number only;
- the row "a millionth" is a lie too small to bring anything: what it shows is the search.

Means are Σ gains / Σ utilities of all agents, ± one standard error over agents.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from benchmarks.market.books import LARGE, large
from benchmarks.market.harness import Result, clear, compile_engine, parser
from benchmarks.market.worth import utilities, worth
from scheduler.matching.book import Book
from scheduler.matching.cells import cells
from scheduler.matching.check import check
from scheduler.matching.matches import Matches
from scheduler.matching.synthetic import Plan, make

NOISE: Final = 1e-6
SIZES: Final = {(100, 100): (NOISE, 0.05, 0.10, 0.20), (300, 1500): (NOISE, 0.05),
                (1000, 5000): (NOISE, 0.05)}  # fmt: skip
"""Jobs and nodes → lies."""
AGENTS: Final = 20
"""Of each side and book."""
LARGE_SHARE: Final = 0.1
"""Of a cell's GPUs: who takes more may move its price."""
_SIDES: Final = ("buyers", "sellers")


class Market(NamedTuple):
    """A book and its honest matches, under a seed for ties that no agent was drawn by."""

    book: Book
    matches: Matches
    honest: dict[str, np.ndarray]


class Agents(NamedTuple):
    """One row each: number of the market, row in its book, honest utility, and what it is."""

    market: np.ndarray
    row: np.ndarray
    truth: np.ndarray
    takes_much: np.ndarray
    pays_all: np.ndarray


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
    for jobs, nodes in ((40, 60),) if quick else SIZES:
        count = 2 if quick else len(seeds) * max(1, 1000 // jobs)
        made = (make(Plan(jobs=jobs, nodes=nodes, seed=seed)) for seed in range(count))
        _add_books(result, f"{jobs:,} × {nodes:,}", made)
    for kind in LARGE:
        made = (large(kind, seed, 100 if quick else 10) for seed in seeds[:2])
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
    columns = ["book", "who", "says", "agents", "mean gain, % of utility", "± (one s. e.)",
               "median, %", "95th percentile, %", "who gain over 2 %, %"]  # fmt: skip
    result = Result("misreports", columns, list(seeds), quick)
    sizes = {(40, 60): (NOISE, 0.05)} if quick else SIZES
    for (jobs, nodes), lies in sizes.items():
        made = [make(Plan(jobs=jobs, nodes=nodes, seed=seed)) for seed in seeds]
        markets = [_honest(book) for book in made]
        for side in _SIDES:
            agents = _drawn(made, markets, side, 4 if quick else AGENTS)
            for lie in lies:
                lied = [_lied(markets[at], side, row, lie)
                        for at, row in zip(agents.market, agents.row, strict=True)]  # fmt: skip
                _add_lie(result, (f"{jobs:,} × {nodes:,}", side, lie), agents, np.array(lied))
    result.finish(out)


def _honest(book: Book) -> Market:
    params = replace(book.params, seed=book.params.seed + 7_919)
    book = replace(book, params=params)
    matches = clear(book)
    return Market(book, matches, utilities(book, matches))


def _drawn(made: list[Book], markets: list[Market], side: str, count: int) -> Agents:
    """So many of each book's that trade under the book's own seed."""
    rows = []
    for at, (book, market) in enumerate(zip(made, markets, strict=True)):
        trading = np.flatnonzero(utilities(book, clear(book))[side] > 1e-9)
        random = np.random.Generator(np.random.PCG64([at, 4]))
        picked = random.permutation(trading)[:count]
        much, full = _standing(market) if side == "buyers" else np.zeros((2, book.nodes), bool)
        rows += [(at, row, market.honest[side][row], much[row], full[row]) for row in picked]
    market_of, row, truth, much, full = zip(*rows, strict=True)
    return Agents(np.array(market_of), np.array(row), np.array(truth), np.array(much), np.array(full))  # fmt: skip


def _standing(market: Market) -> tuple[np.ndarray, np.ndarray]:
    """[J] who takes over a tenth of a cell's GPUs; who pays all that it is worth to them."""
    book, matches = market.book, market.matches
    of_node = cells(book).of_node
    there = np.bincount(of_node, book.node_gpus)
    much = np.zeros(book.jobs, bool)
    taken: dict[tuple[int, int], int] = {}
    for job, cell, gpus in zip(matches.job, of_node[matches.node], matches.gpus, strict=True):
        taken[job, cell] = taken.get((job, cell), 0) + int(gpus)
        much[job] |= taken[job, cell] > LARGE_SHARE * there[cell]
    of_value = np.bincount(matches.job, matches.gpus * worth(book, matches), book.jobs)
    return much, (of_value > 0) & (market.honest["buyers"] < 1e-6 * of_value)


def _lied(market: Market, side: str, agent: int, lie: float) -> float:
    """What one agent has, by the truth, when it alone misreports by the share `lie`."""
    book = market.book
    if side == "buyers":
        limits = book.job_limit.copy()
        limits[agent] *= 1 - lie
        matches = clear(replace(book, job_limit=limits))
        return float(utilities(book, matches)["buyers"][agent])
    asks = book.node_ask.copy()
    asks[agent] *= 1 + lie
    matches = clear(replace(book, node_ask=asks))
    here = matches.node == agent
    received = np.maximum(matches.price[here], asks[agent])
    return float((matches.gpus[here] * (received - book.node_ask[agent])).sum())


def _add_lie(
    result: Result, what: tuple[str, str, float], agents: Agents, lied: np.ndarray
) -> None:
    """A row for all; of buyers one for each part of them too."""
    name, side, lie = what
    says = "a millionth" if lie == NOISE else f"{100 * lie:.0f} %"
    says += " less" if side == "buyers" else " more"
    parts = [(side, np.ones(len(lied), bool))]
    if side == "buyers":
        parts += [("buyers over a tenth of a cell", agents.takes_much),
                  ("buyers of less", ~agents.takes_much),
                  ("buyers who pay all it is worth", agents.pays_all)]  # fmt: skip
    for who, part in parts:
        if part.any():
            result.add(name, who, says, *_gains(agents.truth[part], lied[part]))


def _gains(truth: np.ndarray, lied: np.ndarray) -> tuple[float, ...]:
    """How many, then in %: mean and its error, over Σ utilities; median, 95th and who gain over 2,
    each over its own utility, of those that have a hundredth of the mean."""
    gain, total = lied - truth, max(float(truth.sum()), 1e-9)
    mean = float(gain.sum()) / total
    error = float(np.sqrt(((gain - mean * truth) ** 2).sum())) / total
    own = 100 * gain / np.maximum(truth, 1e-9)
    own = own[truth > 0.01 * truth.mean()]
    low, high = np.percentile(own, [50, 95]) if len(own) else (0.0, 0.0)
    over = 100 * float((own > 2).mean()) if len(own) else 0.0
    return len(gain), 100 * mean, 100 * error, float(low), float(high), over


if __name__ == "__main__":
    raise SystemExit(main())
