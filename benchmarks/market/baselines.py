"""The engine beside first-come, price priority and price-blind FIFO, on the same books.

    python -m benchmarks.market.baselines [--quick] [--large]

What the three do is written in `greedy`. Ours has a quarter of a second for middle books and 20 ms for
small ones, three seeds of each; `--large` adds one of each large kind, for which ours has a second and
the others, which look at every node for every job, many minutes. A ratio above 100 % would be a book
that the simpler way matches better.
"""

from collections.abc import Iterator

from benchmarks.market import greedy
from benchmarks.market.books import LARGE, large
from benchmarks.market.harness import Result, compile_engine, parser, timed
from scheduler.matching.book import Book
from scheduler.matching.synthetic import Plan, make


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    options = parser(__doc__)
    options.add_argument("--large", action="store_true")
    given = options.parse_args(arguments)
    seeds = range(1) if given.quick else range(3)
    columns = ["book", "seed", "ours, USD/h", "ours, s"]
    columns += [text for rule in greedy.RULES for text in (f"{rule}, % of ours", f"{rule}, s")]
    result = Result("baselines", columns, list(seeds), given.quick)
    compile_engine()
    for rule in greedy.RULES:
        greedy.place(make(Plan(jobs=20, nodes=20, seed=0)), rule)
    for seed in seeds:
        for name, book, seconds in _books(seed, given.quick, given.large):
            result.add(name, seed, *_row(book, seconds))
    result.finish(given.out)
    return 0


def _books(seed: int, quick: bool, with_large: bool) -> Iterator[tuple[str, Book, float]]:
    if not quick:
        yield "100 × 100", make(Plan(jobs=100, nodes=100, seed=seed)), 0.02
        yield "1,000 × 5,000", make(Plan(jobs=1000, nodes=5000, seed=seed)), 0.25
    for kind in LARGE if seed == 0 and (quick or with_large) else ():
        yield f"10,000 × 50,000, {kind}", large(kind, seed, 50 if quick else 1), 1.0


def _row(book: Book, seconds: float) -> list[float]:
    ours = timed(book, seconds)
    cells = [ours.matches.welfare, ours.wall]
    for rule in greedy.RULES:
        placed, spent = greedy.timed(book, rule)
        cells += [100 * placed.welfare / ours.matches.welfare, spent]
    return cells


if __name__ == "__main__":
    raise SystemExit(main())
