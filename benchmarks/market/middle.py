"""1,000 jobs and 5,000 nodes against stored proven bounds.

    python -m benchmarks.market.middle [--quick]

No matches exceed the bound; the optimum may lie below it, and not below the best known, which is the most
that any run of ours reached, however long. So between the two shares lies the one of the optimum. `solve`
made both; a book whose digest has none is set against its own run's certificate only.
"""

from statistics import mean

from benchmarks.market.harness import Result, bounds, compile_engine, parser, timed
from scheduler.matching.book import digest
from scheduler.matching.synthetic import Plan, make

SECONDS = (0.1, 0.25, 1.0)
FINISHING = 0.015
"""Of them, for prices and proof."""


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    given = parser(__doc__).parse_args(arguments)
    seeds = range(1) if given.quick else range(10)
    jobs, nodes = (100, 500) if given.quick else (1000, 5000)
    columns = ["seed", "given, s", "wall, s", "thread, s", "all threads, s", "welfare, USD/h",
               "proven bound", "% of it", "own certificate, % of it", "best known", "% of best known"]  # fmt: skip
    result = Result("middle", columns, list(seeds), given.quick)
    proven = bounds()
    compile_engine()
    for seed in seeds:
        book = make(Plan(jobs=jobs, nodes=nodes, seed=seed))
        stored = proven.get(digest(book), {})
        known, found = stored.get("bound"), stored.get("found")
        for seconds in SECONDS:
            ours = timed(book, seconds, finishing=FINISHING)
            welfare = ours.matches.welfare
            share = 100 * welfare / known if known else "no bound"
            result.add(seed, seconds, ours.wall, ours.thread, ours.all_threads, welfare,
                       known or "none", share, 100 * welfare / ours.matches.bound,
                       found or "none", 100 * welfare / found if found else "none")  # fmt: skip
    for seconds in SECONDS:
        shares = [row[7] for row in result.rows if row[1] == seconds and row[6] != "none"]
        if shares:
            result.notes.append(f"{seconds} s: mean {mean(shares):.2f} %, worst {min(shares):.2f} %"
                                f" of the proven bound, {len(shares)} seeds (goal 99.8 % in 0.25 s)")  # fmt: skip
            result.series[str(seconds)] = shares
        of_known = [row[10] for row in result.rows if row[1] == seconds and row[10] != "none"]
        if of_known:
            result.notes.append(f"{seconds} s: mean {mean(of_known):.2f} %, worst {min(of_known):.2f} % of"
                                f" the best known, {len(of_known)} seeds")  # fmt: skip
    result.finish(given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
