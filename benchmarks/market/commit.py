"""A round from the book to its durable commit, on a real PostgreSQL, while others write.

    python -m benchmarks.market.commit [--leases 1000] [--nodes 5000] [--writers 8] [--quick]

The rows are made of a synthetic book with generous limits. One round: read anew as a worker does that
has just started, read what has moved since (`scheduler.following`), clear, read its seats, draft (leases and
specs), look again under the market's lock, fund, write, COMMIT, ring the doorbells (a real Valkey),
explain. What is written is spelled in a thread beside it while the database takes in rows: so its own
processor's seconds are in the phase that they fell into. Four runs, each in a new cluster: a commit that
survives a power cut (fsync) and one that doesn't, alone and beside writers (heartbeats of 500 nodes at a time, offers that change their price,
offers taken by quote). Times are wall seconds, our own processor's and the database backend's.

The last column is the same round's transaction (look again to COMMIT) as a multiple of a bare COPY of
the same rows into tables without indexes or keys, in one transaction, beside it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.market import database, harness

_PHASES = (
    "read anew",
    "read",
    "clear",
    "seat",
    "draft",
    "look again",
    "fund",
    "write",
    "commit",
    "push",
    "explain",
)
_INSIDE = ("look again", "fund", "write", "commit")
"""What happens under the lock."""
_ONLY = {"alone": (False, False), "durable": (False, True), "beside": (True, True)}
"""A run's name: whether others write beside it, and whether it is durable."""
_SEED = 1


def main(argv: list[str] | None = None) -> int:
    """Runs all four and prints the table."""
    arguments = harness.parser(__doc__)
    arguments.add_argument("--leases", type=int, default=1000, help="queued jobs")
    arguments.add_argument("--nodes", type=int, default=5000)
    arguments.add_argument("--writers", type=int, default=8)
    arguments.add_argument("--profile", type=Path, help="of our own process, for pstats")
    arguments.add_argument("--only", choices=_ONLY, help="one run, not four")
    given = arguments.parse_args(argv)
    if given.quick:
        given.leases, given.nodes, given.writers = 30, 100, 3
    columns = ("durable", "writers", "leases", "of", *_PHASES, "round, s", "under lock, s",
               "own, s", "backend, s", "of COPY")  # fmt: skip
    result = harness.Result("commit", columns, [_SEED], given.quick)
    for durable in (False, True):
        for writers in (0, given.writers):
            if given.only and (bool(writers), durable) != _ONLY[given.only]:
                continue
            if given.quick and (durable or not writers):
                continue
            found = _run(given, durable=durable, writers=writers)
            result.add(*_row(found, durable=durable, writers=writers))
            result.notes += _notes(found, durable=durable, writers=writers)
    result.finish(given.out)
    return 0


def _run(given: Any, *, durable: bool, writers: int) -> dict[str, Any]:
    told = {"leases": given.leases, "nodes": given.nodes, "writers": writers, "seed": _SEED}
    if given.profile:
        told["profile"] = str(given.profile)
    with database.services(durable=durable) as env:
        return database.told_by("benchmarks.market.rounds", json.dumps(told), env=env)


def _row(found: dict[str, Any], *, durable: bool, writers: int) -> list[Any]:
    phases = found["phases"]
    walls = [phases[name]["wall"] if name in phases else 0.0 for name in _PHASES]
    locked = sum(wall for name, wall in zip(_PHASES, walls, strict=True) if name in _INSIDE)
    own, backend = (sum(spent[of] for spent in phases.values()) for of in ("own", "backend"))
    ratio = locked / found["bare_s"]
    return ["yes" if durable else "no", writers, found["leases"], found["jobs"], *walls,
            found["wall_s"], locked, own, backend, ratio]  # fmt: skip


def _notes(found: dict[str, Any], *, durable: bool, writers: int) -> list[str]:
    kept = "durable" if durable else "not durable"
    did: dict[str, int] = {}
    for one in found["others"]:
        did[one["kind"]] = did.get(one["kind"], 0) + one["done"]
    others = ", ".join(f"{count} × {kind}" for kind, count in did.items()) or "nobody"
    processors = "; ".join(
        f"{name} {spent['own']:.2f} + {spent['backend']:.2f}"
        for name, spent in found["phases"].items()
    )
    ran = f"{kept}, {writers} writers ({others})"
    return [
        f"{ran}: processor seconds, ours + PostgreSQL's: {processors}",
        (
            f"{ran}: the same {found['rows']:,} rows ({found['bytes'] / 1e6:.1f} MB): bare COPY"
            f" {found['bare_s']:.2f} s, with indexes and checks {found['indexed_s']:.2f} s, with"
            f" foreign keys too {found['keyed_s']:.2f} s; one transaction a match"
            f" {found['one_by_one_s'] * 1e3:.1f} ms; GPUs let twice {found['let_twice']}, ledger"
            f" off by {found['ledger_off']}"
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
