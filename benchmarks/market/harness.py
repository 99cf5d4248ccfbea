"""What all these benchmarks share: the engine's one call, the clocks, the table and the file.

Times are wall seconds, seconds of the calling thread's processor and of all threads': on an idle
machine with two cores a clearing may use both.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scheduler.matching import clear as engine
from scheduler.matching.arrays import Floats
from scheduler.matching.book import Book
from scheduler.matching.matches import Matches
from scheduler.matching.synthetic import Plan, make

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BOUNDS = HERE / "bounds.json"


@dataclass(frozen=True)
class Timed:
    """Matches, what the next round goes on from, and the seconds they took."""

    matches: Matches
    balance: Floats
    wall: float
    thread: float
    all_threads: float


def clear(book: Book, more: Callable[[], bool] | None = None) -> Matches:
    """The one place that calls the engine, beside `timed`."""
    return engine.clear(book, more)


def timed(
    book: Book, seconds: float | None, last: Floats | None = None, finishing: float = 0.0
) -> Timed:
    """Clears in so much time, `finishing` of which is left for prices and proof when the search ends;
    None: so many tries, the same each time. `last` [N, 4]: what balanced each node's cell in the
    round before."""
    began = time.perf_counter(), time.thread_time(), time.process_time()
    until = None if seconds is None else began[0] + seconds - finishing
    more = None if until is None else (lambda: time.perf_counter() < until)
    matches, balance = engine.follow(book, last, more)
    ended = time.perf_counter(), time.thread_time(), time.process_time()
    return Timed(matches, balance, *(e - b for b, e in zip(began, ended, strict=True)))


def compile_engine() -> None:
    """So that no figure holds a compilation."""
    for plan in (Plan(jobs=40, nodes=40, seed=0), Plan(jobs=1200, nodes=600, seed=0)):
        clear(make(plan), lambda: False)
        clear(make(plan))


@dataclass
class Result:
    """One table and what it was made by. `series` are the plot's numbers."""

    name: str
    columns: Sequence[str]
    seeds: Sequence[int]
    quick: bool
    rows: list[list[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    series: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def add(self, *cells: Any) -> None:
        """One row, printed as it comes."""
        assert len(cells) == len(self.columns)
        self.rows.append(list(cells))
        if len(self.rows) == 1:
            print("\t".join(self.columns))
        print("\t".join(shown(cell) for cell in cells), flush=True)

    def finish(self, out: Path | None) -> None:
        """Prints where and by what it was made; keeps it, a quick one only where it is told to."""
        self.made = machine()
        for note in self.notes:
            print(note)
        seeds = ", ".join(str(seed) for seed in self.seeds)
        print(f"{self.made['machine']}; commit {self.made['commit']}; seeds {seeds}"
              f"; load {self.made['load']:.1f}{'; quick' if self.quick else ''}")  # fmt: skip
        if out is None and self.quick:
            return
        path = (out or RESULTS) / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, default=float) + "\n")


def shown(cell: Any) -> str:
    """A cell as people read it."""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return str(cell)


def machine() -> dict[str, Any]:
    """What the figures were made on, and with which code."""
    git = ["git", "-C", str(HERE)]
    commit = _said([*git, "rev-parse", "--short", "HEAD"]) or "unknown"
    changed = _said([*git, "status", "--porcelain", "--untracked-files=no"])
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "commit": commit + ("+changes" if changed else ""),
        "load": os.getloadavg()[0],
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
    }


def parser(doc: str | None, traces: str | None = None) -> argparse.ArgumentParser:
    """The arguments that all scripts have; `traces`: the file that this one reads below --traces."""
    arguments = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--quick", action="store_true", help="a small one, to see that it runs")
    arguments.add_argument("--out", type=Path, metavar="DIR", help="where NAME.json goes")
    if traces:
        arguments.add_argument(
            "--traces", type=Path, required=True, metavar="DIR", help=f"a folder with {traces}"
        )
    return arguments


def bounds() -> dict[str, dict[str, Any]]:
    """The proven bounds by book digest, as `solve` stored them."""
    found: dict[str, dict[str, Any]] = json.loads(BOUNDS.read_text()) if BOUNDS.exists() else {}
    return found


def _said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
