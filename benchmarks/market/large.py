"""10,000 jobs and 50,000 nodes, four kinds of book, cold and from the last round's prices.

    python -m benchmarks.market.large [--quick]

"certified" is what the run's own prices prove, (bound - welfare) / bound as a round publishes it; the
stored bound is that of a long run (`solve`).
Warm: the book after 2 % of jobs and asks have changed, from the prices of the round before. Next:
the book after all who were placed have left with their GPUs, and 2 % of jobs and nodes are new. Given
"a round": no time, but as many tries as a round of the market makes.
"""

import numpy as np

from benchmarks.market.books import LARGE, churned, following, large
from benchmarks.market.harness import Result, Timed, bounds, compile_engine, parser, timed
from scheduler.matching.book import Book, digest

CHURN = 0.02
COLD, WARM = (0.5, 1.0, 3.0, None), (0.05, 0.37, None)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    given = parser(__doc__).parse_args(arguments)
    seeds, scale = range(1), 50 if given.quick else 1
    columns = ["book", "seed", "GPUs", "start", "given, s", "wall, s", "thread, s",
               "all threads, s", "welfare, USD/h", "certified gap, %", "% of stored bound",
               "make-whole, % of turnover"]  # fmt: skip
    result = Result("large", columns, list(seeds), given.quick)
    compile_engine()
    for seed in seeds:
        for kind in LARGE:
            _one(result, kind, seed, large(kind, seed, scale))
    result.finish(given.out)
    return 0


def _one(result: Result, kind: str, seed: int, book: Book) -> None:
    known = bounds().get(digest(book), {}).get("bound")
    for seconds in COLD:
        ours = timed(book, seconds)
        _add(result, (kind, seed, _gpus(book), "cold", seconds or "a round"), ours, known)
    rounds = {
        "warm": (churned(book, CHURN, seed), ours.balance),
        "next": following(book, ours.matches, CHURN, seed, ours.balance),
    }
    for start, (after, last) in rounds.items():
        for seconds in WARM:
            _add(
                result,
                (kind, seed, _gpus(after), start, seconds or "a round"),
                timed(after, seconds, last),
                None,
            )


def _add(result: Result, what: tuple, ours: Timed, known: float | None) -> None:
    matches = ours.matches
    turnover = float((matches.gpus * matches.price).sum())
    result.add(*what, ours.wall, ours.thread, ours.all_threads, matches.welfare,
               100 * (1 - matches.welfare / max(matches.bound, 1e-9)),
               100 * matches.welfare / known if known else "none",
               100 * matches.make_whole / max(turnover, 1e-9))  # fmt: skip


def _gpus(book: Book) -> int:
    return int(np.sum(book.node_gpus, dtype=np.int64))


if __name__ == "__main__":
    raise SystemExit(main())
