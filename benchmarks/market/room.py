"""Who should leave for whom, in process: the rule alone, without rows.

python -m benchmarks.market.room [--quick]

The books are `synthetic`'s, in which nothing is free: two nodes in five are let to an interruptible
lease each, at its ask and with limits, ages and losses drawn from the seed, and the rest to others. The
market asks for the 300 jobs with the highest limits at most; the last row asks for more.
"""

import time
from dataclasses import replace

import numpy as np

from benchmarks.market.harness import Result, parser
from scheduler.matching.book import Book
from scheduler.matching.displace import Running, displace
from scheduler.matching.synthetic import Plan, make


def let(book: Book, seed: int) -> tuple[Book, Running]:
    """The book with nothing free, and leases on two nodes in five."""
    draw = np.random.default_rng(seed)
    count = book.nodes * 2 // 5
    node = draw.permutation(book.nodes)[:count]
    gpus = book.node_gpus[node].astype(np.int64)
    ask = book.node_ask[node]
    limit = draw.uniform(1.05, 1.6, count) * ask
    running = Running(
        gang=np.arange(count), node=node, gpus=gpus,
        surplus=gpus * (limit - ask),
        lost=draw.exponential(0.2, count) * gpus * limit,
        age_h=draw.uniform(0, 5, count),
        interruptible=np.ones(count, bool),
        price=ask,
    )  # fmt: skip
    return replace(book, node_gpus=np.zeros_like(book.node_gpus)), running


def main(arguments: list[str] | None = None) -> int:
    """Prints the table: what one look after a round takes."""
    given = parser(__doc__).parse_args(arguments)
    sizes = [(50, 200, 20)] if given.quick else [
        (1000, 5000, 300), (10_000, 50_000, 300), (10_000, 50_000, 1000)
    ]  # fmt: skip
    columns = [
        "jobs",
        "nodes",
        "leases",
        "asked for",
        "get room",
        "wall, s",
        "thread, s",
        "goal, s",
    ]
    result = Result("room", columns, [0], given.quick)
    displace(*_asked(*let(make(Plan(jobs=20, nodes=40, seed=0)), 0), 20))
    for jobs, nodes, most in sizes:
        asked = _asked(*let(make(Plan(jobs=jobs, nodes=nodes, seed=0)), 0), most)
        began = time.perf_counter(), time.thread_time()
        found = displace(*asked)
        wall, thread = time.perf_counter() - began[0], time.thread_time() - began[1]
        result.add(jobs, nodes, len(asked[2].gang), most, len(found), wall, thread, 1)
    result.finish(given.out)
    return 0


def _asked(book: Book, running: Running, most: int) -> tuple[Book, np.ndarray, Running]:
    best = np.argsort(-book.job_limit.max(axis=1), kind="stable")
    return book, best[:most], running


if __name__ == "__main__":
    raise SystemExit(main())
