"""`python -m benchmarks.faults --minutes 5 --seed 1`: faults drawn by a seed, until time is over.

The market keeps its real times (a node is lost after 40 s of silence), but for a heartbeat each
two seconds. A job without a fault runs first, as the measure. Exits 1 if a promise is broken.
"""

import argparse
import contextlib
import itertools
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.faults import cable, disk, strikes
from benchmarks.faults.script import PACE_S
from benchmarks.faults.trial import Outcome, Strike, World, complaints, run
from buyers.sdk import Client
from marketplace.devstack import demo
from marketplace.devstack.live import live_site

_STEPS = 400
"""Forty seconds: a fault in each such stretch of training."""
_SILENT = "≤ 60 s"


@dataclass(frozen=True)
class Fault:
    """A fault with its name, how long it lasts, and what GOALS says of the recovery."""

    name: str
    strike: Strike
    lasts_s: float = 0.0
    goal: str = ""
    notice_s: int = 30
    needs: Callable[[], bool] = lambda: True
    """Whether this host can do it."""


FAULTS = (
    Fault("kill -9 of the job", strikes.job_killed),
    Fault("kill -9 of its keeper", strikes.keeper_killed),
    Fault("kill -9 of the agent", strikes.agent_killed, goal="goes on"),
    Fault("machine goes down in order", strikes.goodbye, goal="≤ 15 s"),
    Fault("machine silent for good", strikes.machine_lost, 40, goal=_SILENT),
    Fault(
        "cable pulled, 15 s", strikes.cable_pulled(15), 15, goal="goes on", needs=cable.is_possible
    ),
    Fault(
        "cable pulled for good",
        strikes.cable_pulled_for_good,
        45,
        goal=_SILENT,
        needs=cable.is_possible,
    ),
    Fault("SIGSTOP of the job, 5 s", strikes.job_stopped(5), 5),
    Fault("SIGSTOP of the agent, 10 s", strikes.agent_stopped(10), 10, goal="goes on"),
    Fault("disk full, 15 s", strikes.disk_full(15), 15, goal="goes on", needs=disk.is_possible),
    Fault("disk slow, 15 s", strikes.disk_slow(15), 15, goal="goes on", needs=disk.is_throttled),
    Fault("storage away, 30 s", strikes.storage_away(30), 30, goal="goes on"),
    Fault("market away, 60 s", strikes.market_away(60), 60, goal="goes on"),
    Fault("Valkey restarted", strikes.restarted("valkey"), goal="goes on"),
    Fault("PostgreSQL restarted", strikes.restarted("postgres"), goal="goes on"),
    Fault("reclaimed, 0 s of notice", strikes.reclaimed(0), notice_s=0),
    Fault("reclaimed, 10 s of notice", strikes.reclaimed(10), notice_s=10),
    Fault("reclaimed, 120 s of notice", strikes.reclaimed(120), notice_s=120),
)


def main() -> int:
    """Prints a line for each job; 1 if any promise was broken."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=5)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--only", default="", help="faults whose name has this in it")
    asked = arguments.parse_args()
    os.environ.setdefault("POLICY_HEARTBEAT_S", "2")
    chance = random.Random(asked.seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        _disk(Path(folder) / "data" / "nodes"),
        live_site(Path(folder) / "data", print, anywhere=True) as site,
    ):
        site.start_nodes(print)
        key = next(each["key"] for each in site.accounts if each["role"] == "buyer")
        buyer = Client(site.stack.site_url, key)
        demo.pay(buyer, "20.00")
        world = World.of(site, buyer, Path(folder))
        if not cable.is_possible():
            return _campaign(world, asked, chance)
        with cable.laid(site, list(strikes.SUPPLIERS)) as cables:
            return _campaign(replace(world, cables=cables), asked, chance)


def _disk(nodes: Path) -> contextlib.AbstractContextManager[None]:
    if disk.is_possible():
        return disk.mounted(nodes)
    return contextlib.nullcontext()


def _campaign(world: World, asked: argparse.Namespace, chance: random.Random) -> int:
    _print_head(asked)
    faults = [fault for fault in FAULTS if fault.needs() and asked.only in fault.name]
    longest = _STEPS + int(max(fault.lasts_s for fault in faults) / PACE_S)
    alone = run(world, None, steps=longest)
    wrong = complaints(alone, alone, steps=longest)
    _print_line("undisturbed", alone, wrong, "", alone.seconds)
    began, broken, useful, spent = time.monotonic(), 0, 0.0, 0.0
    for fault in _drawn(chance, faults):
        if time.monotonic() - began > asked.minutes * 60:
            break
        steps = _STEPS + int(fault.lasts_s / PACE_S)
        strikes.offer_with_notice(world, fault.notice_s)
        at_step = chance.randrange(40, 240)
        outcome = run(world, fault.strike, steps=steps, at_step=at_step)
        wrong = complaints(outcome, alone, steps=steps)
        undisturbed_s = alone.seconds * steps / longest
        _print_line(fault.name, outcome, wrong, fault.goal, undisturbed_s)
        broken += bool(wrong)
        useful, spent = useful + undisturbed_s, spent + outcome.seconds
    print(f"throughput under faults: {useful / spent:.0%} of undisturbed (goal ≥ 85 %)")
    return 1 if broken or useful / spent < 0.85 else 0


def _drawn(chance: random.Random, faults: Sequence[Fault]) -> Iterator[Fault]:
    """All of them in a random order, again and again."""
    for _ in itertools.count():
        yield from chance.sample(faults, len(faults))


def _print_head(asked: argparse.Namespace) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
          f"commit {commit}, {asked.minutes:g} minutes, seed {asked.seed}")  # fmt: skip
    if left := ", ".join(fault.name for fault in FAULTS if not fault.needs()):
        print(f"not on this host: {left}")
    print(f"{'fault':28}{'stood still':>12}{'lost':>10}{'attempts':>10}{'paid':>9}{'speed':>8}"
          f"  goal")  # fmt: skip


def _print_line(
    name: str, outcome: Outcome, wrong: list[str], goal: str, undisturbed_s: float
) -> None:
    speed = undisturbed_s / outcome.seconds if outcome.seconds else 0.0
    print(
        f"{name:28}{outcome.gap_s:10.1f} s{outcome.lost_steps:4} steps{outcome.attempts:10}"
        f"{outcome.paid_s:7.1f} s{speed:8.0%}  {goal}{'  ' if goal else ''}"
        f"{', '.join(outcome.ends)}{'  BROKEN: ' + '; '.join(wrong) if wrong else ''}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
