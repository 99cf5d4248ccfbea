"""100 jobs and 100 nodes against the true optimum, which HiGHS proves.

    python -m benchmarks.market.small [--quick]

Ours has 20 ms. Both know the same rules; the optimum (`optimum`) needs no prices.
"""

import time
from statistics import mean, median

from benchmarks.market.harness import Result, compile_engine, parser, timed
from benchmarks.market.optimum import optimum
from scheduler.matching.synthetic import Plan, make

SECONDS = 0.02
FINISHING = 0.004
"""Of them, for prices and proof."""


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    given = parser(__doc__).parse_args(arguments)
    seeds = range(2) if given.quick else range(20)
    size = 40 if given.quick else 100
    columns = ["seed", "optimum, USD/h", "ours, USD/h", "% of optimum", "HiGHS, s", "ours: wall, ms",
               "thread, ms", "certified gap, %"]  # fmt: skip
    result = Result("small", columns, list(seeds), given.quick)
    compile_engine()
    shares = []
    for seed in seeds:
        book = make(Plan(jobs=size, nodes=size, seed=seed))
        began = time.perf_counter()
        best = optimum(book)
        spent, ours = time.perf_counter() - began, timed(book, SECONDS, finishing=FINISHING)
        welfare, bound = ours.matches.welfare, ours.matches.bound
        shares.append(100 * welfare / best)
        result.add(seed, best, welfare, shares[-1], spent, 1e3 * ours.wall, 1e3 * ours.thread,
                   100 * (bound / welfare - 1))  # fmt: skip
    walls = median(row[5] for row in result.rows)
    result.notes.append(f"{size} × {size}, {1e3 * SECONDS:.0f} ms: mean {mean(shares):.3f} % of the"
                        f" optimum, worst {min(shares):.3f} %; wall, median {walls:.1f} ms"
                        " (goal 99.9 %, 99.5 %)")  # fmt: skip
    result.series = {"share": shares}
    result.finish(given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
