"""Quoted against actual time and cost, over 30 varied jobs, as a table and a plot.

    .venv/bin/python benchmarks/quotes.py [--jobs 30] [--plot docs/quotes.svg]

A whole market of real processes is started on ports of its own, with two nodes; SmolLM2-135M is
fine-tuned with parameters drawn from a seed, one job after another, each by taking the cheapest
quote. The market learns as it goes: the last third is quoted with what the first ones taught.
Errors are |actual / quoted − 1|; "inside" counts jobs whose time lay in the range they were shown.
"""

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from buyers.sdk import Client
from marketplace.devstack import base_model, corpus, demo
from marketplace.devstack.live import LiveSite, live_site

SEED = 3


@dataclass(frozen=True)
class Run:
    """One job: seconds and micros, as quoted and as they came."""

    recipe: str
    quoted: float
    low: float
    high: float
    seconds: float
    quoted_micros: int
    micros: int

    @property
    def time_error(self) -> float:
        return abs(self.seconds / self.quoted - 1)

    @property
    def cost_error(self) -> float:
        return abs(self.micros / self.quoted_micros - 1)

    @property
    def is_inside(self) -> bool:
        return self.low <= self.seconds <= self.high


def drawn(chance: random.Random) -> tuple[str, dict[str, object]]:
    """A recipe and its parameters."""
    recipe = chance.choice(["lora", "lora", "lora", "full"])
    return recipe, {
        "steps": chance.choice([3, 6, 10, 16]),
        "batch_size": chance.choice([1, 2, 4]),
        "max_length": chance.choice([96, 128]),
        "evaluate_samples": chance.choice([0, 8, 16]),
        "answers": chance.choice([0, 1]),
        "answer_tokens": 16,
    }


def run(client: Client, data: str, recipe: str, parameters: dict[str, object]) -> Run:
    """Quotes a job, takes the best offer and waits for the end."""
    quote = client.quote(
        recipe=recipe, base=base_model.NAME, dataset=data, budget="1", parameters=parameters
    )
    best = quote.best
    assert best is not None, [option.why for option in quote.options]
    job = client.wait(client.take(quote, best.index), every_s=0.5)
    assert job.state == "succeeded", job.words
    receipt = client.receipt(job)
    return Run(
        recipe=recipe,
        quoted=best.seconds,
        low=best.seconds_low,
        high=best.seconds_high,
        seconds=float(receipt.gpu_seconds),
        quoted_micros=best.total,
        micros=receipt.total_micros,
    )


def runs_of(site: LiveSite, count: int) -> list[Run]:
    """All jobs, one after another."""
    buyer = next(account for account in site.accounts if account["role"] == "buyer")
    client = Client(site.stack.site_url, buyer["key"])
    cache = site.stack.folder / "cache"
    base = base_model.ensure(cache)
    site.start_nodes(print)
    demo.pay(client, "50.00")
    named = ("--name", base_model.NAME, "--licence", base_model.LICENSE)
    site.supervisor.run(site.stack.command("publish_base", str(base), *named))
    corpus.write(cache / "docstrings")
    data = str(client.upload(cache / "docstrings", "docstrings").id)
    chance = random.Random(SEED)
    runs = []
    for number in range(count):
        recipe, parameters = drawn(chance)
        runs.append(run(client, data, recipe, parameters))
        one = runs[-1]
        print(
            f"{number + 1:3} {recipe:5} quoted {one.quoted:6.1f} s ({one.low:.1f} to "
            f"{one.high:.1f}), ran {one.seconds:6.1f} s; ${one.quoted_micros / 1e6:.6f}, "
            f"${one.micros / 1e6:.6f}",
            flush=True,
        )
    return runs


def told(name: str, runs: list[Run]) -> str:
    """One line of the result."""
    return (
        f"{name:12} n {len(runs):2}   time error, median {median(r.time_error for r in runs):.0%}"
        f"   cost error, median {median(r.cost_error for r in runs):.0%}"
        f"   inside {sum(r.is_inside for r in runs)} of {len(runs)}"
    )


def svg(runs: list[Run]) -> str:
    """Actual over quoted seconds; a bar is the range that was shown, later jobs are darker."""
    most = 1.05 * max(max(one.seconds, one.quoted) for one in runs)
    size, edge = 420, 44

    def x(value: float) -> float:
        return edge + min(value, most) / most * (size - edge - 12)

    def y(value: float) -> float:
        return size - edge - min(value, most) / most * (size - edge - 12)

    space, font = "http://www.w3.org/2000/svg", 'font-family="sans-serif" font-size="12"'
    words = [
        f'<svg xmlns="{space}" viewBox="0 0 {size} {size}" {font}>',
        "<title>Quoted against actual running time</title>",
        f'<rect width="{size}" height="{size}" fill="white"/>',
        f'<path d="M{x(0)} {y(0)}L{x(most)} {y(most)}" stroke="#999" stroke-dasharray="4 4"/>',
        f'<path d="M{x(0)} {y(most)}V{y(0)}H{x(most)}" stroke="#333" fill="none"/>',
    ]
    for index, one in enumerate(runs):
        shade = 0.25 + 0.7 * index / max(1, len(runs) - 1)
        colour = "#1d4ed8" if one.recipe == "lora" else "#b45309"
        look = f'stroke="{colour}" opacity="{shade / 2:.2f}"'
        words.append(f'<path d="M{x(one.low):.1f} {y(one.seconds):.1f}H{x(one.high):.1f}" {look}/>')
        look = f'r="4" fill="{colour}" opacity="{shade:.2f}"'
        words.append(f'<circle cx="{x(one.quoted):.1f}" cy="{y(one.seconds):.1f}" {look}/>')
    step = 10 ** (len(str(int(most))) - 1)
    for tick in range(0, int(most) + 1, step):
        words += [
            f'<text x="{x(tick):.1f}" y="{size - edge + 16}" text-anchor="middle">{tick}</text>',
            f'<text x="{edge - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>',
        ]
    words += [
        f'<text x="{size / 2}" y="{size - 8}" text-anchor="middle">quoted, s (bar: the range)</text>',
        f'<text transform="translate(12 {size / 2}) rotate(-90)" text-anchor="middle">ran, s</text>',
        f'<text x="{edge + 12}" y="24" fill="#1d4ed8">lora</text>',
        f'<text x="{edge + 48}" y="24" fill="#b45309">full</text>',
        "</svg>",
    ]
    return "\n".join(words) + "\n"


def main() -> int:
    """Prints the figures, and draws them if a path is given."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=30)
    arguments.add_argument("--plot", type=Path)
    given = arguments.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        live_site(Path(folder) / "data", print, anywhere=True) as site,
    ):
        runs = runs_of(site, given.jobs)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"{platform.machine()}, {os.cpu_count()} cores, commit {commit}")
    third = max(1, len(runs) // 3)
    print(told("all", runs), told("first third", runs[:third]), sep="\n")
    print(told("last third", runs[-third:]))
    if given.plot:
        given.plot.write_text(svg(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
