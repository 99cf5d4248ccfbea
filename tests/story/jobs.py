"""Small jobs that behave, or don't."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from buyers.sdk import Client
from buyers.sdk.job_shapes import Job, Quote
from marketplace.devstack.live import LiveSite

PATIENCE_S: Final = 120
QUOTE_EVERY_S: Final = 2
"""Sixty a minute may be asked for."""

# Counts to `steps`, `pace` seconds each, saves every fifth, goes on from what it saved, and leaves
# in order when asked to. All by the directory convention: it knows nothing of the market.
COUNTER: Final = """\
import json, os, pathlib, shutil, signal, sys, time

steps, pace = int(sys.argv[1]), float(sys.argv[2])
output = pathlib.Path(os.environ["GRIDLOOM_OUTPUT"])
before = os.environ.get("GRIDLOOM_RESUME_FROM")
step = int((pathlib.Path(before) / "step").read_text()) if before else 0
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))

def save():
    draft = output / f".checkpoint-{step}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    (draft / "step").write_text(str(step))
    if not (output / f"checkpoint-{step}").exists():
        draft.rename(output / f"checkpoint-{step}")

with open(os.environ["GRIDLOOM_METRICS"], "a") as metrics:
    while step < steps:
        time.sleep(pace)
        step += 1
        metrics.write(json.dumps({"step": step, "total_steps": steps, "loss": 1 / step}) + "\\n")
        metrics.flush()
        if asked or step % 5 == 0:
            save()
        if asked:
            sys.exit(75)
(output / "artifact").mkdir(exist_ok=True)
(output / "artifact" / "count.txt").write_text(str(step))
"""


def script(client: Client, folder: Path, text: str) -> str:
    """A project of one file, uploaded."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text(text)
    return str(client.upload(folder, folder.name).id)


def counting(client: Client, project: str, *, steps: int, pace: float, **changes: object) -> Job:
    """The counter, bid for."""
    wanted = {
        "recipe": "script", "script": project, "budget": "0.50", "limit": "2.00",
        "memory_gib": 0.5, "disk_gib": 0.5, "hours": 0.02,
        "parameters": {"entry": "main.py", "args": [str(steps), str(pace)]}, **changes,
    }  # fmt: skip
    return client.bid(**wanted)


def until(client: Client, job: Job, true: Callable[[Job], bool]) -> Job:
    """The job, as soon as it is as wished; fails if it comes to rest otherwise, or takes long."""
    deadline = time.monotonic() + PATIENCE_S
    while not true(now := client.job(job)):
        assert not now.rests, f"it came to rest: {now.words}\n{client.log(job)}"
        assert time.monotonic() < deadline, f"it is still: {now.words}\n{client.log(job)}"
        time.sleep(0.1)
    return now


def offered(client: Client, node: str, **wanted: object) -> tuple[Quote, int]:
    """A quote in which this node fits, and its option: one that was just started again takes some
    seconds to attack its sandbox before it is back."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        quote = client.quote(**wanted)
        for option in quote.options:
            if option.node == node and option.fits:
                return quote, option.index
        assert time.monotonic() < deadline, [(one.node, one.why) for one in quote.options]
        time.sleep(QUOTE_EVERY_S)


def kill_node(site: LiveSite, name: str) -> None:
    """kill -9 of the agent, its keepers, and all that they run: the machine is gone."""
    kill_agent(site, name)
    for status in site.stack.node_folder(name).glob("assignments/*/status.json"):
        said = json.loads(status.read_text())
        if said["state"] != "gone":
            os.kill(said["keeper_pid"], signal.SIGKILL)


def kill_agent(site: LiveSite, name: str) -> None:
    """kill -9 of the agent alone. Nobody starts it again before `bring_back`."""
    os.kill(site.supervisor.pid(f"node-{name}"), signal.SIGKILL)


def bring_back(site: LiveSite, name: str) -> None:
    """Whoever watches over the machine starts the agent again."""
    before = site.supervisor.pid(f"node-{name}")
    psutil.wait_procs([psutil.Process(before)], timeout=5)
    site.supervisor.check()
    assert site.supervisor.pid(f"node-{name}") != before


def books_balance(site: LiveSite) -> bool:
    """Whether all balances sum to 0 and every account equals its transfers."""
    (printed,) = site.supervisor.run(site.stack.command("audit"))
    return printed.strip() == "0"
