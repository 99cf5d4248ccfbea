"""The faults, each on real processes of a live site."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import psutil

from benchmarks.faults import disk
from benchmarks.faults.trial import Strike, World
from buyers.sdk.job_shapes import Job

_MARKET = ("beat", "worker", "clearing", "agents", "web")
_WORD_S = 10
"""So long the owner's word may take to the market and back before the notice begins: two seconds on
an idle machine."""
SUPPLIERS = {"aurora": "supplier", "breakwater": "supplier2"}


def job_killed(world: World, job: Job) -> None:
    """kill -9 of the job's own process."""
    _process(world, job).kill()


def keeper_killed(world: World, job: Job) -> None:
    """kill -9 of its keeper."""
    os.kill(_keeper(world, job), signal.SIGKILL)


def agent_killed(world: World, job: Job) -> None:
    """kill -9 of the agent, which is started again."""
    name = job.nodes[0].node
    os.kill(world.site.supervisor.pid(f"node-{name}"), signal.SIGKILL)
    _bring_back(world, name)


def goodbye(world: World, job: Job) -> Callable[[], None]:
    """The machine goes down in order, and its agent says so."""
    name, supervisor = job.nodes[0].node, world.site.supervisor
    service = supervisor.end(f"node-{name}")
    supervisor.start(replace(service, argv=(*service.argv, "--drain")))
    log = world.site.stack.logs / f"node-{name}.log"
    while "connected to" not in log.read_text(errors="replace"):
        time.sleep(0.1)
    supervisor.end(f"node-{name}")
    return lambda: supervisor.start(service)


def machine_lost(world: World, job: Job) -> Callable[[], None]:
    """kill -9 of all of ours on a machine, which stays silent."""
    name, keeper = job.nodes[0].node, _keeper(world, job)
    os.kill(world.site.supervisor.pid(f"node-{name}"), signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    return lambda: _bring_back(world, name)


def job_stopped(seconds: float) -> Strike:
    """SIGSTOP of the job's process."""

    def strike(world: World, job: Job) -> None:
        process = _process(world, job)
        process.suspend()
        time.sleep(seconds)
        process.resume()

    return strike


def agent_stopped(seconds: float) -> Strike:
    """SIGSTOP of the agent."""

    def strike(world: World, job: Job) -> None:
        agent = psutil.Process(world.site.supervisor.pid(f"node-{job.nodes[0].node}"))
        agent.suspend()
        time.sleep(seconds)
        agent.resume()

    return strike


def cable_pulled(seconds: float) -> Strike:
    """The node's network is gone, and comes back."""

    def strike(world: World, job: Job) -> None:
        cable = world.cables[job.nodes[0].node]
        cable.pull()
        time.sleep(seconds)
        cable.plug()

    return strike


def cable_pulled_for_good(world: World, job: Job) -> Callable[[], None]:
    """The node's network is gone; the job there runs on, and nobody hears of it."""
    cable = world.cables[job.nodes[0].node]
    cable.pull()
    return cable.plug


def disk_full(seconds: float) -> Strike:
    """The disk of the nodes is full, and then it isn't."""

    def strike(world: World, job: Job) -> None:
        with disk.filled(world.site.stack.folder / "nodes"):
            time.sleep(seconds)

    return strike


def disk_slow(seconds: float) -> Strike:
    """The disk of the nodes hardly moves, and then it does."""

    def strike(world: World, job: Job) -> None:
        with disk.slowed(world.site.stack.folder / "nodes"):
            time.sleep(seconds)

    return strike


def storage_away(seconds: float) -> Strike:
    """The object store is down."""
    return _away(("s3",), seconds)


def market_away(seconds: float) -> Strike:
    """Every process of the market's own is down."""
    return _away(_MARKET, seconds)


def restarted(service: str) -> Strike:
    """A service is stopped and started again."""

    def strike(world: World, job: Job) -> None:
        world.site.supervisor.restart(service)

    return strike


def reclaimed(notice_s: int) -> Strike:
    """The owner wants the machine back, after having promised so much notice; returned after."""

    def strike(world: World, job: Job) -> Callable[[], None]:
        name = job.nodes[0].node
        keeper = psutil.Process(_keeper(world, job))
        drain = world.site.stack.node_folder(name) / "drain"
        drain.touch(mode=0o600)
        began = time.monotonic()
        try:
            keeper.wait(notice_s + _WORD_S)
        except psutil.TimeoutExpired:
            drain.unlink()  # else whoever comes next has no machine
            waited = time.monotonic() - began
            raise AssertionError(
                f"the owner waited {waited:.1f} s for {notice_s} s of notice"
            ) from None
        return drain.unlink

    return strike


def offer_with_notice(world: World, notice_s: int) -> None:
    """Both suppliers promise their buyers so much notice from now on."""
    for account in world.site.accounts:
        if account["role"] not in SUPPLIERS.values():
            continue
        headers = {"Authorization": f"Bearer {account['key']}"}
        url = f"{world.site.stack.site_url}/api/v1/"
        with httpx.Client(base_url=url, headers=headers, timeout=20) as api:
            for node in api.get("nodes/").json()["results"]:
                if node["offer"] and node["offer"]["notice_s"] != notice_s:
                    terms = {"ask": _dollars(node["offer"]["ask_micros"]), "notice_s": notice_s}
                    api.post(f"offers/{node['offer']['id']}/close/").raise_for_status()
                    api.post(f"nodes/{node['id']}/offers/", json=terms).raise_for_status()


def _dollars(micros: int) -> str:
    return f"{micros / 1e6:.6f}"


def _away(services: tuple[str, ...], seconds: float) -> Strike:
    def strike(world: World, job: Job) -> None:
        ended = [world.site.supervisor.end(name) for name in services]
        time.sleep(seconds)
        for service in reversed(ended):
            world.site.supervisor.start(service)

    return strike


def _bring_back(world: World, name: str) -> None:
    """Whoever watches over the machine starts the agent again."""
    before = world.site.supervisor.pid(f"node-{name}")
    psutil.wait_procs([psutil.Process(before)], timeout=5)
    world.site.supervisor.check()


def _keeper(world: World, job: Job) -> int:
    return int(_status(world, job)["keeper_pid"])


def _status(world: World, job: Job) -> dict[str, object]:
    folder: Path = world.site.stack.node_folder(job.nodes[0].node)
    said = [json.loads(path.read_text()) for path in folder.glob("assignments/*/status.json")]
    (running,) = [one for one in said if one["state"] == "running"]
    return dict(running)


def _process(world: World, job: Job) -> psutil.Process:
    """The buyer's own program, within the sandbox."""
    below = psutil.Process(_keeper(world, job)).children(recursive=True)
    (found,) = [one for one in below if one.cmdline()[1:2] == ["/job/work/main.py"]]
    return found
