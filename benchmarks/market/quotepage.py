"""The quote page's server time with so many open offers in a real PostgreSQL, request by request.

    python -m benchmarks.market.quotepage [--nodes 10000] [--times 200] [--quick]

Each time the page is asked to look again, as its button does: the job is read and planned, quoted
against all that stands open by now, the quote written down, and the page made. Scripts and LoRA
tunings on one to 16 GPUs by turns, on machines each measured at a speed of its own. Between requests
`--moved` nodes' offers change, as they do in a market. Milliseconds of a processor are ours,
PostgreSQL's not among them; wall counts both.
"""

import sys

from benchmarks.market import database, harness

_GOAL_MS = 300


def main(argv: list[str] | None = None) -> int:
    """Prints the table: what a buyer waits for."""
    arguments = harness.parser(__doc__)
    arguments.add_argument("--nodes", type=int, default=10_000)
    arguments.add_argument("--times", type=int, default=200)
    arguments.add_argument("--moved", type=int, default=20)
    given = arguments.parse_args(argv)
    if given.quick:
        given.nodes, given.times = 100, 10
    columns = ["nodes", "times", "first, ms", "p50, ms", "p95, ms", "own p50, ms", "own p95, ms",
               "queries", "shown", "more fit", "goal p95, ms"]  # fmt: skip
    result = harness.Result("quotepage", columns, [0], given.quick)
    told = map(str, (given.nodes, given.times, given.moved))
    with database.services(durable=True) as env:
        found = database.told_by("benchmarks.market.asker", *told, env=env)
    result.add(
        given.nodes, given.times, found["first"], *found["wall"], *found["own"], found["queries"],
        found["shown"], found["more"], _GOAL_MS,
    )  # fmt: skip
    result.finish(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
