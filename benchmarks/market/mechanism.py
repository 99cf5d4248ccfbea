"""What the mechanism promises: nothing illegal, sellers made whole by little, lies that don't pay.

    python -m benchmarks.market.mechanism [--quick]

Misreports: one agent at a time bids 5 or 20 % less (buyers), or asks as much more (sellers);
all else stays. Utility is by the true limits and asks: a buyer's Σ GPUs · (limit · η − risk −
price), a seller's Σ GPUs · (what they get − ask). The engine makes so many rounds rather than so
much time, so each clearing can be repeated; but it is a search, and whatever changes may turn it
elsewhere. So that this is no bias:

- agents are drawn from those who trade in one honest clearing, and measured in others, under other
  seeds for ties: those who trade by chance are not the ones that are then seen to lose;
- truth and lie are cleared under the same seeds, and differ in the one number only;
- the row "a millionth" is a lie too small to bring anything: what it shows is the search.

A few gangs of many GPUs have most of what buyers gain or lose. So of each book as many buyers of more
than 8 GPUs are drawn as of fewer, and of one, where there are so many; each then counts for those of its
kind who trade and were not drawn. Means are Σ gains / Σ utilities, so weighted, ± one standard error over
agents. The sizes differ in how many take part: 100 × 500, 300 × 1,500 and 1,000 × 5,000 have as many nodes
for each job.
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
from scheduler.matching.check import check
from scheduler.matching.matches import Matches
from scheduler.matching.synthetic import Plan, make

NOISE: Final = 1e-6
LIE: Final = 0.05
OTHERS: Final = (NOISE, 0.20)
"""The lies that are told in a few small books besides."""
FEW: Final = 5


class Sample(NamedTuple):
    """How many books, and agents of each side in each."""

    books: int
    agents: int


SIZES: Final = {(100, 100): Sample(20, 40), (100, 500): Sample(10, 40), (300, 1500): Sample(5, 60),
                (1000, 5000): Sample(5, 18)}  # fmt: skip
"""Jobs and nodes → who is drawn."""
PARTS: Final = ("one GPU", "2 to 8", "more", "at its limit")
"""Of the buyers: by size; those whose payment is all that it is worth stand apart."""
_SIDES: Final = ("buyers", "sellers")


class Market(NamedTuple):
    """A book and its honest matches, under a seed for ties that no agent was drawn by."""

    book: Book
    matches: Matches
    honest: dict[str, np.ndarray]


class Agents(NamedTuple):
    """One row each: number of the market, row in its book, honest utility, what it is, and for how
    many it stands."""

    market: np.ndarray
    row: np.ndarray
    truth: np.ndarray
    part: np.ndarray
    weight: np.ndarray


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
    columns = ["book", "who", "says", "agents", "mean gain, % of all's utility", "± (one s. e.)",
               "median, %", "95th percentile, %", "who gain over 2 %, %"]  # fmt: skip
    result = Result("misreports", columns, list(seeds), quick)
    for (jobs, nodes), sample in ({(40, 60): Sample(1, 4)} if quick else SIZES).items():
        made = [make(Plan(jobs=jobs, nodes=nodes, seed=seed)) for seed in range(sample.books)]
        markets = [_honest(book) for book in made]
        for side in _SIDES:
            drawn = _drawn(made, markets, side, sample.agents)
            for lie in (LIE, *OTHERS) if (jobs, nodes) == min(SIZES) or quick else (LIE,):
                few = drawn.market < (sample.books if lie == LIE else FEW)
                agents = Agents(*(column[few] for column in drawn))
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
    """So many of each book's that trade under the book's own seed, of each size of job alike."""
    rows = []
    for at, (book, market) in enumerate(zip(made, markets, strict=True)):
        trading = np.flatnonzero(utilities(book, clear(book))[side] > 1e-9)
        random = np.random.Generator(np.random.PCG64([at, 4]))
        trading, left = random.permutation(trading), count
        part, size = np.zeros((2, book.nodes), int)
        if side == "buyers":
            part, size = _parts(market), np.digitize(book.job_gpus_min, [2, 9])
        kinds = np.unique(size[trading])
        for number, kind in enumerate(kinds[::-1]):
            there = trading[size[trading] == kind]
            picked = there[: left // (len(kinds) - number)]
            left -= len(picked)
            rows += [(at, row, market.honest[side][row], part[row], len(there) / len(picked))
                     for row in picked]  # fmt: skip
    return Agents(*(np.array(column) for column in zip(*rows, strict=True)))


def _parts(market: Market) -> np.ndarray:
    """[J] indexes of PARTS."""
    book, matches = market.book, market.matches
    value = np.bincount(matches.job, matches.gpus * worth(book, matches), book.jobs)
    at_limit = (value > 0) & (market.honest["buyers"] < 1e-6 * value)
    return np.where(at_limit, 3, np.digitize(book.job_gpus_min, [2, 9]))


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
    """A row for all; below that of the buyers who bid 5 % less, what of it falls to each part."""
    name, side, lie = what
    says = "a millionth" if lie == NOISE else f"{100 * lie:.0f} %"
    says += " less" if side == "buyers" else " more"
    result.add(name, side, says, *_gains(agents, lied, np.ones(len(lied), bool)))
    if side == "buyers" and lie == LIE:
        for number, part in enumerate(PARTS):
            result.add(name, f"of it {part}", says, *_gains(agents, lied, agents.part == number))


def _gains(agents: Agents, lied: np.ndarray, among: np.ndarray) -> tuple[int | float, ...]:
    """How many; mean and its error, % of the utility of all; median, 95th and who gain over 2 %,
    each over its own utility, of those drawn that have a hundredth of the mean."""
    truth, weight = agents.truth, agents.weight
    gain, total = np.where(among, lied - truth, 0.0), max(float((weight * truth).sum()), 1e-9)
    mean = float((weight * gain).sum()) / total
    error = float(np.sqrt(((weight * (gain - mean * truth)) ** 2).sum())) / total
    some = among & (truth > 0.01 * truth.mean())
    own = 100 * gain[some] / truth[some]
    low, high = np.percentile(own, [50, 95]) if len(own) else (0.0, 0.0)
    over = 100 * float((own > 2).mean()) if len(own) else 0.0
    return int(among.sum()), 100 * mean, 100 * error, float(low), float(high), over


if __name__ == "__main__":
    raise SystemExit(main())
