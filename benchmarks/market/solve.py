"""Proves bounds of books, finds the best matches, and keeps of each the best in bounds.json; runs for
long.

    python -m benchmarks.market.solve middle 0 1 [--seconds 300] [--sweeps 1000] [--ours 60]
    python -m benchmarks.market.solve large 0 [--sweeps 600]

Of middle books: HiGHS on `program`, which is a bound on any matches, first its linear relaxation,
then with wholeness until the time is up, each branch and cut of which proves more; our own dual
bound, climbed for long; and what our own search finds in so many seconds of processors, by which a
busy machine loses nothing. What HiGHS finds does not count: its program is looser than the rules. Of
large ones our dual bound only. 0 leaves a step out.
"""

import argparse
import json
import time

from benchmarks.market.books import LARGE, large
from benchmarks.market.harness import BOUNDS, bounds, clear, machine
from benchmarks.market.program import prove
from scheduler.matching.ascent import Ascent
from scheduler.matching.book import Book, digest
from scheduler.matching.bound import bound
from scheduler.matching.cells import cells
from scheduler.matching.check import check
from scheduler.matching.synthetic import Plan, make
from scheduler.matching.tables import tables


def main(arguments: list[str] | None = None) -> int:
    """Prints each bound as it is proven."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=["middle", "large"])
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--seconds", type=float, default=300.0, help="of HiGHS for each book")
    parser.add_argument("--sweeps", type=int, default=600, help="of our dual ascent")
    parser.add_argument("--ours", type=float, default=60.0, help="processor seconds of our search")
    given = parser.parse_args(arguments)
    for seed in given.seeds:
        if given.size == "middle":
            book = make(Plan(jobs=1000, nodes=5000, seed=seed))
            name = f"1,000 × 5,000, seed {seed}"
            _solve(name, book, given.sweeps, given.seconds)
            if given.ours:
                _keep_found(name, book, given.ours)
        else:
            for kind in LARGE:
                _solve(f"10,000 × 50,000, {kind}, seed {seed}", large(kind, seed), given.sweeps, 0)
    return 0


def _solve(name: str, book: Book, sweeps: int, seconds: float) -> None:
    began = time.perf_counter()
    if sweeps:
        _keep(name, book, climbed(book, sweeps), f"dual ascent, {sweeps} sweeps", began)
    if not seconds:
        return
    for how, relaxed in (("linear relaxation", True), ("branch and cut", False)):
        began = time.perf_counter()
        proof = prove(book, seconds, relaxed)
        said = f"HiGHS, {how}, {seconds:.0f} s: {proof.status}, found {proof.found:.4f}"
        _keep(name, book, proof.bound, said, began)


def climbed(book: Book, sweeps: int) -> float:
    """The least bound that the engine's own prices prove on their way."""
    of = tables(book, cells(book))
    climbing, best = Ascent(of), float("inf")
    for part in range(0, sweeps, 50):
        climbing.climb(min(50, sweeps - part))
        best = min(best, bound(of, climbing.best))
    return best


def _keep(name: str, book: Book, value: float, how: str, began: float) -> None:
    """Stores it if it is the least so far."""
    print(f"{name}: {value:.4f} by {how}; {time.perf_counter() - began:.0f} s", flush=True)
    stored, key = bounds(), digest(book)
    if value < stored.get(key, {}).get("bound", float("inf")):
        made = {"book": name, "bound": value, "how": how, "commit": machine()["commit"]}
        stored[key] = stored.get(key, {}) | made
        BOUNDS.write_text(json.dumps(stored, indent=1) + "\n")


def _keep_found(name: str, book: Book, seconds: float) -> None:
    """Stores the welfare of matches if it is the most so far. Raises if they are not legal."""
    began = time.process_time()
    matches = clear(book, lambda: time.process_time() - began < seconds)
    if faults := check(book, matches):
        raise AssertionError(f"{name}: {faults[0]}")
    welfare, how = matches.welfare, f"ours, {seconds:.0f} s of processors"
    print(f"{name}: {welfare:.4f} found by {how}", flush=True)
    stored, key = bounds(), digest(book)
    if welfare > stored[key].get("found", 0.0):
        stored[key] |= {"found": welfare, "found_how": how, "found_commit": machine()["commit"]}
        BOUNDS.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
