"""Runs the market's benchmarks, and makes the README's tables and plots from what they have left in
`results/`.

    python -m benchmarks.market.report [--run --traces DIR] [--only NAME …]

`--run` runs all of RUNS, or those of `--only`, each in a process of its own, and says how long each
took. A section stands between `<!-- NAME -->` and `<!-- end -->`; what has no result stays as it is.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from benchmarks.market.harness import HERE, RESULTS, shown

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Found = dict[str, Any]

RUNS: Final = (
    "small",
    "middle",
    "large",
    "quote",
    "quotepage",
    "room",
    "baselines",
    "mechanism",
    "costs",
    "replay",
    "ceiling",
)
NEED_TRACES: Final = {"costs", "replay", "ceiling"}


def main(
    arguments: Sequence[str] | None = None, folder: Path = HERE, results: Path = RESULTS
) -> int:
    """Rewrites `folder`/README.md and its PNG files; 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", action="store_true", help="run them first")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS, metavar="NAME")
    parser.add_argument("--traces", type=Path, metavar="DIR")
    given = parser.parse_args(arguments)
    if given.run and given.traces is None and NEED_TRACES & set(given.only):
        parser.error(f"{', '.join(sorted(NEED_TRACES))} need --traces")
    failed = [name for name in given.only if not _run(name, given.traces)] if given.run else []
    _write(folder, results)
    print(f"failed: {', '.join(failed)}" if failed else "done")
    return 1 if failed else 0


def _run(name: str, traces: Path | None) -> bool:
    """Whether it ended well."""
    command = [sys.executable, "-m", f"benchmarks.market.{name}"]
    if name in NEED_TRACES:
        command += ["--traces", str(traces)]
    print(f"== {name}", flush=True)
    wall, before = time.perf_counter(), os.times()
    code = subprocess.run(command, check=False).returncode
    after = os.times()
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    print(f"== {name}: exit {code}, {spent:.0f} s of processors,"
          f" {time.perf_counter() - wall:.0f} s of wall", flush=True)  # fmt: skip
    return code == 0


def _write(folder: Path, results: Path) -> None:
    readme = folder / "README.md"
    text = readme.read_text()
    for path in sorted(results.glob("*.json")):
        found = json.loads(path.read_text())
        name = found["name"]
        body = table(found)
        if name in PLOTS:
            _draw(PLOTS[name], found, folder / f"{name}.png")
            body = f"![{CAPTIONS[name]}]({name}.png)\n\n*{CAPTIONS[name]}*\n\n{body}"
        block = f"<!-- {name} -->\n{body}\n<!-- end -->"
        text = re.sub(
            rf"<!-- {name} -->.*?<!-- end -->", lambda _, b=block: b, text, flags=re.DOTALL
        )
    readme.write_text(text)


def table(found: Found) -> str:
    """Markdown, and below it the notes and what it was made by."""
    made = found["made"]
    lines = ["| " + " | ".join(found["columns"]) + " |", "|" + "---|" * len(found["columns"])]
    lines += ["| " + " | ".join(shown(cell) for cell in row) + " |" for row in found["rows"]]
    seeds = ", ".join(str(seed) for seed in found["seeds"])
    lines += ["", *(f"- {note}" for note in found["notes"])]
    lines.append(f"- {made['machine']}; commit {made['commit']}; {made['date']}; seeds {seeds};"
                 f" load {made['load']:.1f}{'; quick' if found['quick'] else ''}")  # fmt: skip
    return "\n".join(lines)


def _draw(plot: Callable[[Axes, Found], None], found: Found, path: Path) -> None:
    """On white, so that it reads in a dark page too."""
    rows = max(3.4, 0.24 * len(found["rows"])) if plot in TALL else 3.6
    figure, axes = plt.subplots(figsize=(7.5, rows), layout="constrained", facecolor="white")
    plot(axes, found)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _small(axes: Axes, found: Found) -> None:
    for given, shares in found["series"].items():
        axes.plot(range(len(shares)), sorted(shares), "o-", label=f"given {given}")
    axes.axhline(99.9, color="grey", linestyle="--", label="goal, mean")
    axes.axhline(99.5, color="grey", linestyle=":", label="goal, worst")
    axes.set(xlabel="books, worst first", ylabel="% of the optimum")
    axes.legend(frameon=False)


def _middle(axes: Axes, found: Found) -> None:
    proven = [row for row in found["rows"] if row[7] != "no bound"]
    for seed in dict.fromkeys(row[0] for row in proven):
        mine = sorted((row[2], row[7]) for row in proven if row[0] == seed)
        axes.plot(*zip(*mine, strict=True), "o-", label=f"seed {seed}")
    axes.plot([0.25], [99.8], "k*", label="goal")
    axes.set(xlabel="wall seconds", ylabel="% of the proven bound")
    axes.legend(frameon=False)


def _large(axes: Axes, found: Found) -> None:
    rows = [row for row in found["rows"] if row[3] == "cold"]
    for kind in dict.fromkeys(row[0] for row in rows):
        mine = sorted((row[5], row[9]) for row in rows if row[0] == kind)
        axes.plot(*zip(*mine, strict=True), "o-", label=kind)
    axes.axhline(4, color="grey", linestyle="--", label="goal")
    axes.set(xlabel="wall seconds", ylabel="certified gap, %", ylim=(0, None))
    axes.legend(frameon=False)


def _baselines(axes: Axes, found: Found) -> None:
    kinds = list(dict.fromkeys(row[0] for row in found["rows"]))[::-1]
    for offset, at in enumerate((8, 6, 4)):
        mean = [_mean(row[at] for row in found["rows"] if row[0] == kind) for kind in kinds]
        where = [number + 0.25 * (offset - 1) for number in range(len(kinds))]
        axes.barh(where, mean, 0.24, label=found["columns"][at].split(",")[0])
    axes.axvline(100, color="grey", linestyle="--")
    axes.set(yticks=range(len(kinds)), yticklabels=kinds, xlabel="welfare, % of ours")
    _legend_below(axes)


def _replay(axes: Axes, found: Found) -> None:
    names = list(found["series"])[::-1]
    axes.barh(names, [_mean(found["series"][name]) for name in names])
    for at, name in enumerate(names):
        axes.plot(found["series"][name], [at] * len(found["series"][name]), "k|", markersize=9)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.tick_params(labelsize=8)
    axes.set(xlabel="welfare of ours over theirs, %")


def _misreports(axes: Axes, found: Found) -> None:
    rows = [row for row in found["rows"] if not row[1].startswith("of it")][::-1]
    names = [f"{row[0]}: {row[1]}, {row[2]}" for row in rows]
    axes.barh(names, [row[4] for row in rows], xerr=[2 * row[5] for row in rows], capsize=2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.tick_params(labelsize=7)
    axes.set(xlabel="mean gain, % of utility")


def _costs(axes: Axes, found: Found) -> None:
    rows = [row for row in found["rows"] if row[2] == "a third"][::-1]
    names = [f"{row[0]}, asks {row[1]}" for row in rows]
    for offset, (at, label) in enumerate(((8, "the cheapest cloud"), (11, "a hyperscaler"))):
        shown_rows = [(n, row[at]) for n, row in enumerate(rows) if row[at] != "none"]
        where, values = zip(*shown_rows, strict=True) if shown_rows else ((), ())
        axes.barh([n + 0.2 - 0.4 * offset for n in where], values, 0.38, label=f"over {label}")
    axes.axvline(0.9, color="tab:blue", linestyle="--", linewidth=1)
    axes.axvline(0.5, color="tab:orange", linestyle="--", linewidth=1)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="finished job, ours over theirs")
    axes.tick_params(labelsize=8)
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.4, -0.14))


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


PLOTS: Final[dict[str, Callable[[Axes, Found], None]]] = {
    "small": _small, "middle": _middle, "large": _large, "baselines": _baselines,
    "replay": _replay, "misreports": _misreports, "costs": _costs,
}  # fmt: skip
CAPTIONS: Final = {
    "small": "Welfare of each of the small books in 0.02 s, and as a round searches, % of the optimum"
    " that HiGHS proves.",
    "middle": "Welfare of books of 1,000 jobs and 5,000 nodes, % of their proven bounds, by the time it"
    " took; the optimum lies below the bound by an unknown part.",
    "large": "Books of 10,000 jobs and 50,000 nodes, started cold: how far the welfare may lie below the"
    " best, as the run's own prices prove it, by the time it took.",
    "baselines": "Welfare of three simpler ways to match on the same books, % of ours; mean of the"
    " seeds.",
    "replay": "Real arrivals: how much more welfare ours gave than each simpler way. Bars: mean; ticks:"
    " each seed. Left of zero ours loses.",
    "misreports": "What one agent gains who misreports while all others tell the truth, % of the utility"
    " of all of its side; lines: two standard errors.",
    "costs": "A finished job's cost here over that at the cheapest cloud on demand and at a hyperscaler's"
    " list price, four weeks of 2025, a third of the GPUs wanted; dashed: the goals. Right of 1 ours is"
    " dearer.",
}
TALL: Final = {_misreports, _costs}

if __name__ == "__main__":
    raise SystemExit(main())
