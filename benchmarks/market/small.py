"""100 jobs and 100 nodes against the true optimum, which HiGHS proves.

    python -m benchmarks.market.small [--quick]

Ours has 20 ms, and then as many tries as a round of the market makes. Both know the same rules; the optimum (`optimum`) needs no prices.
"""

import time
from statistics import mean, median

from benchmarks.market.harness import Result, compile_engine, parser, timed
from benchmarks.market.optimum import optimum
from scheduler.matching.synthetic import Plan, make

SECONDS = 0.02
FINISHING = 0.0025
"""Of them, for prices and proof."""


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    given = parser(__doc__).parse_args(arguments)
    seeds = range(2) if given.quick else range(20)
    size = 40 if given.quick else 100
    columns = ["seed", "optimum, USD/h", "HiGHS, s", "given, s", "ours, USD/h", "% of optimum",
               "wall, ms", "thread, ms", "certified gap, %"]  # fmt: skip
    result = Result("small", columns, list(seeds), given.quick)
    compile_engine()
    for seed in seeds:
        book = make(Plan(jobs=size, nodes=size, seed=seed))
        began = time.perf_counter()
        best = optimum(book)
        spent = time.perf_counter() - began
        for seconds in (SECONDS, None):
            ours = timed(book, seconds, finishing=FINISHING)
            welfare, bound = ours.matches.welfare, ours.matches.bound
            result.add(seed, best, spent, seconds or "a round", welfare, 100 * welfare / best,
                       1e3 * ours.wall, 1e3 * ours.thread, 100 * (1 - welfare / bound))  # fmt: skip
    for seconds in (SECONDS, "a round"):
        rows = [row for row in result.rows if row[3] == seconds]
        shares, walls = [row[5] for row in rows], [row[6] for row in rows]
        result.notes.append(f"{size} × {size}, given {seconds}: mean {mean(shares):.3f} % of the"
                            f" optimum, worst {min(shares):.3f} %; wall, median {median(walls):.1f}"
                            " ms (goal 99.9 %, 99.5 %, 20 ms)")  # fmt: skip
        result.series[str(seconds)] = shares
    result.finish(given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
