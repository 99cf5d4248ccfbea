"""How long from an order to its process running, on warm nodes: 20 taken offers, 20 bids.

    .venv/bin/python benchmarks/submit_to_running.py [--jobs 20]

A whole market of real processes is started on ports of its own. Timed is from the call that
orders to the moment at which the market knows that the process runs; beside it, the same script
started by hand. Goals: a taken offer p50 ≤ 2 s and p95 ≤ 5 s, a bid p95 ≤ 10 s.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from buyers.sdk import Client
from buyers.sdk.job_shapes import Job
from marketplace.devstack import demo
from marketplace.devstack.live import live_site

SCRIPT = 'print("hello")\n'


def main() -> int:
    """Prints the figures; 1 if a goal is missed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=20)
    count = arguments.parse_args().jobs
    with tempfile.TemporaryDirectory() as folder:
        with live_site(Path(folder) / "data", print, anywhere=True) as site:
            site.start_nodes(print)
            key = next(each["key"] for each in site.accounts if each["role"] == "buyer")
            client = Client(site.stack.site_url, key)
            demo.pay(client, "50.00")
            project = Path(folder) / "hello"
            project.mkdir()
            (project / "main.py").write_text(SCRIPT)
            wanted = {
                "recipe": "script", "script": str(client.upload(project, "hello").id),
                "parameters": {"entry": "main.py"}, "budget": "0.10", "memory_gib": 0.5,
                "disk_gib": 0.5, "hours": 0.01,
            }  # fmt: skip
            takes = _timed(client, count, lambda: _take(client, wanted))
            bids = _timed(client, count, lambda: client.bid(**wanted, limit="2.00"))
        by_hand = [_by_hand(project / "main.py") for _ in range(count)]
    return _print(takes, bids, by_hand)


def _take(client: Client, wanted: dict[str, object]) -> Job:
    quote = client.quote(**wanted)
    assert quote.best is not None, "both nodes are idle, one must fit"
    return client.take(quote, quote.best.index)


def _timed(client: Client, count: int, order: Callable[[], Job]) -> list[float]:
    """Seconds from each order to running; the next is ordered when the one before has ended."""
    seconds = []
    for _ in range(count):
        began = time.time()
        done = client.wait(order(), every_s=0.2)
        assert done.state == "succeeded", done.words
        assert done.lease is not None
        assert done.lease.running_at is not None
        seconds.append(done.lease.running_at.timestamp() - began)
    return seconds


def _by_hand(script: Path) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, str(script)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def _print(takes: list[float], bids: list[float], by_hand: list[float]) -> int:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, commit {commit}")
    base = statistics.median(by_hand)
    for name, seconds in (("taken offer", takes), ("bid", bids), ("by hand", by_hand)):
        p50, p95 = statistics.median(seconds), _p95(seconds)
        print(
            f"{name:12} p50 {p50:6.3f} s   p95 {p95:6.3f} s   {p50 / base:6.1f} × by hand   "
            f"n {len(seconds)}"
        )
    met = statistics.median(takes) <= 2 and _p95(takes) <= 5 and _p95(bids) <= 10
    print("goals met" if met else "GOALS MISSED")
    return 0 if met else 1


def _p95(seconds: list[float]) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]


if __name__ == "__main__":
    sys.exit(main())
