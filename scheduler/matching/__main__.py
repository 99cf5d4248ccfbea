"""python -m scheduler.matching: clears, checks and makes order books kept in files, and verifies
what a round has published.

What checks needs numpy alone: the engine is imported by those commands that run it.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from marketplace.core.errors import Invalid
from scheduler.matching import book as books
from scheduler.matching import matches as results
from scheduler.matching import proofs, verify
from scheduler.matching.check import check
from scheduler.matching.synthetic import Plan, make


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 the check found something, 2 the input is wrong."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except (Invalid, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scheduler.matching", description=__doc__)
    commands = parser.add_subparsers(required=True)
    clearing = commands.add_parser("clear", help="match a book")
    clearing.add_argument("book", type=Path, metavar="BOOK.npz")
    clearing.add_argument("--out", type=Path, metavar="MATCHES.npz", required=True)
    clearing.add_argument(
        "--seconds", type=_seconds, help="how long to look for better; else so many rounds"
    )
    clearing.set_defaults(run=_clear)
    checking = commands.add_parser("check", help="verify matches against their book")
    checking.add_argument("book", type=Path, metavar="BOOK.npz")
    checking.add_argument("matches", type=Path, metavar="MATCHES.npz")
    checking.set_defaults(run=_check)
    verifying = commands.add_parser("verify", help="verify all that a round has published")
    verifying.add_argument("round", type=Path, metavar="ROUND.json")
    verifying.add_argument("book", type=Path, metavar="BOOK.npz")
    verifying.add_argument("matches", type=Path, metavar="MATCHES.npz")
    verifying.set_defaults(run=_verify)
    proving = commands.add_parser("prove", help="verify that a row stood in a round")
    proving.add_argument("proof", type=Path, metavar="PROOF.json")
    proving.add_argument("--root", help="as the round published it; else the proof's own word")
    proving.set_defaults(run=_prove)
    compiling = commands.add_parser("compile", help="compile the loops, once for this machine")
    compiling.set_defaults(run=_compile)
    making = commands.add_parser("make", help="make up a book")
    making.add_argument("--jobs", type=_count, required=True)
    making.add_argument("--nodes", type=_count, required=True)
    making.add_argument("--seed", type=_count, required=True)
    making.add_argument("--alone", type=_share, default=0.3, help="share of one-node sites")
    making.add_argument("--out", type=Path, metavar="BOOK.npz", required=True)
    making.set_defaults(run=_make)
    return parser


def _clear(given: argparse.Namespace) -> int:
    from scheduler.matching.clear import clear  # compiled; see above

    book = books.load(given.book)
    # To load the loops takes a second that the clearing was not given.
    clear(make(Plan(jobs=min(book.jobs, 501), nodes=4, seed=0)), lambda: False)
    started = time.perf_counter()
    until = started + (given.seconds or 0)
    matches = clear(book, None if given.seconds is None else lambda: time.perf_counter() < until)
    matches = replace(matches, seconds=time.perf_counter() - started)
    results.save(matches, given.out)
    print(
        f"{int((matches.level >= 0).sum())} of {book.jobs} jobs on {int(matches.gpus.sum())} of"
        f" {int(book.node_gpus.sum())} GPUs in {matches.seconds:.3f} s; welfare"
        f" {matches.welfare:.2f} USD/h, at most {matches.bound:.2f} is possible"
    )
    return 0


def _compile(_: argparse.Namespace) -> int:
    from scheduler.matching.compiling import compile_all  # compiled; see above

    compile_all()
    return 0


def _check(given: argparse.Namespace) -> int:
    book = books.load(given.book)
    faults = check(book, results.load(given.matches))
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults" if faults else f"right; book {books.digest(book)}")
    return 1 if faults else 0


def _verify(given: argparse.Namespace) -> int:
    published = verify.read_published(_json(given.round))
    faults = verify.verify(published, verify.read_released(given.book, given.matches))
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults" if faults else f"right; root {published.root}")
    return 1 if faults else 0


def _prove(given: argparse.Namespace) -> int:
    proof = proofs.read(_json(given.proof))
    if given.root and given.root.lower() != proof.root:
        print(f"the proof leads to {proof.root}, not to {given.root}")
        return 1
    if not proofs.holds(proof):
        print("the row, its salt and the hashes beside it do not lead to the root")
        return 1
    print(proof.row)
    print(f"right; leaf {proof.index} of {proof.leaves}, root {proof.root}")
    return 0


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise Invalid(f"{path} is not JSON: {error}") from error


def _make(given: argparse.Namespace) -> int:
    plan = Plan(jobs=given.jobs, nodes=given.nodes, seed=given.seed, alone=given.alone)
    books.save(make(plan), given.out)
    return 0


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    return _at_most(3600, text)


def _share(text: str) -> float:
    return _at_most(1, text)


def _at_most(most: float, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= most:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to {most}, not {text!r}")
    return number


if __name__ == "__main__":
    sys.exit(main())
