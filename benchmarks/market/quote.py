"""One quote against the whole book, in process, at the prices of its last round.

python -m benchmarks.market.quote [--quick]
"""

import time

import numpy as np

from benchmarks.market.harness import Result, clear, parser
from scheduler.matching.book import Book, Order
from scheduler.matching.quote import Quotes
from scheduler.matching.synthetic import CLASSES, Plan, make


def orders(book: Book) -> list[Order]:
    """A book's jobs as new orders."""
    columns = {
        name: getattr(book, f"job_{name}").tolist()
        for name in ("gpus_min", "gpus_max", "level", "kappa", "hours_lost", "regions", "trust",
                     "tier", "long", "sync_mb", "sync_s", "site_gpus_min", "sites_max")
    }  # fmt: skip
    limits = [
        {name: limit for name, limit in zip(CLASSES, row, strict=True) if limit > 0}
        for row in book.job_limit.tolist()
    ]
    return [
        Order(number, limits[number], **{name: column[number] for name, column in columns.items()})
        for number in range(book.jobs)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Prints the table: what is prepared once a round, and what a buyer waits for."""
    given = parser(__doc__).parse_args(arguments)
    sizes = [(50, 200)] if given.quick else [(1000, 5000), (2000, 10_000), (10_000, 50_000)]
    columns = ["jobs", "nodes", "prepared in, ms", "quotes", "p50, µs", "p99, µs", "goal p99, µs"]
    result = Result("quote", columns, [0], given.quick)
    for jobs, nodes in sizes:
        book = make(Plan(jobs=jobs, nodes=nodes, seed=0))
        last = clear(book, lambda: False).cell_price
        Quotes(book, CLASSES, last).warm_up()
        began = time.perf_counter()
        quotes = Quotes(book, CLASSES, last)
        prepared = time.perf_counter() - began
        spent = []
        for order in orders(book):
            began = time.perf_counter()
            quotes.best(order)
            spent.append(time.perf_counter() - began)
        p50, p99 = 1e6 * np.percentile(spent, [50, 99])
        result.add(jobs, nodes, 1e3 * prepared, len(spent), float(p50), float(p99), 50)
    result.finish(given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
