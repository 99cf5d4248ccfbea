"""Makes the README's tables and plots from what the benchmarks have left in `results/`.

    python -m benchmarks.market.report

A table stands between `<!-- NAME -->` and `<!-- end -->`; what no result is there for stays.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.market.harness import HERE, RESULTS, shown

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Found = dict[str, Any]


def main(folder: Path = HERE, results: Path = RESULTS) -> int:
    """Rewrites `folder`/README.md and its PNG files."""
    readme = folder / "README.md"
    text = readme.read_text()
    for path in sorted(results.glob("*.json")):
        found = json.loads(path.read_text())
        name = found["name"]
        block = f"<!-- {name} -->\n{table(found)}\n<!-- end -->"
        text = re.sub(
            rf"<!-- {name} -->.*?<!-- end -->", lambda _, b=block: b, text, flags=re.DOTALL
        )
        if name in PLOTS:
            _draw(PLOTS[name], found, folder / f"{name}.png")
    readme.write_text(text)
    return 0


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
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    plot(axes, found)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _small(axes: Axes, found: Found) -> None:
    axes.plot(range(len(found["series"]["share"])), sorted(found["series"]["share"]), "o-")
    axes.axhline(99.9, color="grey", linestyle="--", label="goal, mean")
    axes.set(xlabel="books, worst first", ylabel="% of the optimum, 20 ms")
    axes.legend(frameon=False)


def _large(axes: Axes, found: Found) -> None:
    rows = [row for row in found["rows"] if row[3] == "cold"]
    for kind in dict.fromkeys(row[0] for row in rows):
        mine = sorted((row[5], row[9]) for row in rows if row[0] == kind)
        axes.plot(*zip(*mine, strict=True), "o-", label=kind)
    axes.axhline(4, color="grey", linestyle="--")
    axes.set(xlabel="wall seconds", ylabel="certified gap, %", ylim=(0, None))
    axes.legend(frameon=False)


def _baselines(axes: Axes, found: Found) -> None:
    kinds = list(dict.fromkeys(row[0] for row in found["rows"]))
    for offset, at in enumerate((4, 6, 8)):
        mean = [_mean(row[at] for row in found["rows"] if row[0] == kind) for kind in kinds]
        where = [number + 0.25 * (offset - 1) for number in range(len(kinds))]
        axes.barh(where, mean, 0.24, label=found["columns"][at].split(",")[0])
    axes.axvline(100, color="grey", linestyle="--")
    axes.set(yticks=range(len(kinds)), yticklabels=kinds, xlabel="welfare, % of ours")
    axes.legend(frameon=False, fontsize=8)


def _replay(axes: Axes, found: Found) -> None:
    names = list(found["series"])
    axes.barh(names, [_mean(found["series"][name]) for name in names], color="tab:blue")
    for at, name in enumerate(names):
        axes.plot(found["series"][name], [at] * len(found["series"][name]), "k|")
    axes.set(xlabel="welfare of ours over theirs, % (bars: mean; ticks: seeds)")


def _misreports(axes: Axes, found: Found) -> None:
    rows = [row for row in found["rows"] if row[2] != "the truth again"]
    axes.barh([f"{row[0]} {row[1]} {row[2]}" for row in rows], [row[5] for row in rows])
    axes.axvline(0, color="grey")
    axes.tick_params(labelsize=6)
    axes.set(xlabel="mean gain of a lie less noise, % of utility")


def _costs(axes: Axes, found: Found) -> None:
    rows = found["rows"]
    axes.barh([f"{row[0]}, {row[1]}" for row in rows], [row[10] for row in rows])
    axes.axvline(1, color="grey", linestyle="--")
    axes.tick_params(labelsize=7)
    axes.set(xlabel="a finished job here, over the cheapest listed cloud")


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


PLOTS: dict[str, Callable[[Axes, Found], None]] = {
    "small": _small, "large": _large, "baselines": _baselines, "replay": _replay,
    "misreports": _misreports, "costs": _costs,
}  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main())
