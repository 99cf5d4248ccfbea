"""One quote against the whole book, in process, at the prices of its last round.

python -m benchmarks.market.quote [--quick]
"""

import time
from collections.abc import Callable

import numpy as np

from benchmarks.market.harness import Result, clear, parser
from scheduler.matching.book import Book
from scheduler.matching.cells import Names, cells, labels
from scheduler.matching.quote import Candidate, quote
from scheduler.matching.synthetic import CLASSES, Plan, make


def quoter(book: Book) -> Callable[[int], list[Candidate]]:
    """What may be prepared once a round; the call is what a buyer waits for."""
    kinds = cells(book)
    names = Names(CLASSES, [str(site) for site in range(len(book.site_region))])
    matches = clear(book, lambda: False)
    ladder = np.zeros((len(kinds), 4))
    ladder[kinds.of_node] = matches.cell_price
    last = dict(zip(labels(kinds, names), ladder.tolist(), strict=True))
    return lambda order: quote(book, order, last, names)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    given = parser(__doc__).parse_args(arguments)
    sizes = [(50, 200)] if given.quick else [(1000, 5000), (10_000, 50_000)]
    columns = ["jobs", "nodes", "quotes", "p50, µs", "p99, µs", "goal p99, µs"]
    result = Result("quote", columns, [0], given.quick)
    for jobs, nodes in sizes:
        ask = quoter(make(Plan(jobs=jobs, nodes=nodes, seed=0)))
        ask(0)
        spent: list[float] = []
        until = time.perf_counter() + (1 if given.quick else 20)
        while len(spent) < jobs and time.perf_counter() < until:
            began = time.perf_counter()
            ask(len(spent))
            spent.append(time.perf_counter() - began)
        p50, p99 = 1e6 * np.percentile(spent, [50, 99])
        result.add(jobs, nodes, len(spent), float(p50), float(p99), 50)
    result.finish(given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
