"""A job on two nodes of one site, through the whole market."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil
import pytest

from agent.protocol import FIRST_PORT
from buyers.sdk import Client
from buyers.sdk.job_shapes import Job
from marketplace.devstack import provision
from marketplace.devstack.live import LiveSite
from tests.story import jobs
from tests.story.conftest import BASE

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.getuid() != 0, reason="making a lease's network takes root"),
]

# The first rank counts, and each step waits for an echo from all others: a training in small. It
# finds them as torch.distributed would, saves each step, and leaves when somebody is lost.
TOGETHER: Final = """\
import json, os, pathlib, socket, sys, time

steps, pace = int(sys.argv[1]), float(sys.argv[2])
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
meeting = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if rank:
    while True:
        try:
            first = socket.create_connection(meeting, timeout=60)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    while said := first.recv(1):
        first.sendall(said)
        if said == b"e":
            sys.exit(0)
    sys.exit(69)

output = pathlib.Path(os.environ["GRIDLOOM_OUTPUT"])
before = os.environ.get("GRIDLOOM_RESUME_FROM")
step = int((pathlib.Path(before) / "step").read_text()) if before else 0
server = socket.create_server(meeting)
others = [server.accept()[0] for _ in range(world - 1)]

def echoed(word):
    for other in others:
        other.sendall(word)
    return all(other.recv(1) == word for other in others)

with open(os.environ["GRIDLOOM_METRICS"], "a", buffering=1) as metrics:
    while step < steps:
        time.sleep(pace)
        try:
            if not echoed(b"s"):
                sys.exit(69)
        except ConnectionError:
            sys.exit(69)
        step += 1
        draft = output / f".checkpoint-{step}"
        draft.mkdir()
        (draft / "step").write_text(str(step))
        draft.rename(output / f"checkpoint-{step}")
        metrics.write(json.dumps({"step": step, "total_steps": steps, "loss": 1 / step}) + "\\n")
(output / "artifact").mkdir()
(output / "artifact" / "count.txt").write_text(f"{step} by {world}")
echoed(b"e")
"""


@pytest.fixture(scope="module")
def rack(site: LiveSite) -> Iterator[tuple[str, str]]:
    """A second node in the first supplier's site, and both of them with a place in its network."""
    first = provision.MACHINES[0]
    second = replace(first, name="aurora-2")
    config = site.stack.node_folder(first.name) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lan_address": "127.0.0.1"}))
    site.supervisor.restart(f"node-{first.name}")
    provision.nodes(site.stack, site.supervisor, site.accounts, say=print, machines=[second])
    config = site.stack.node_folder(second.name) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lan_address": "127.0.0.1"}))
    site.supervisor.restart(f"node-{second.name}")
    yield first.name, second.name
    # Other modules count on the first node alone, and nobody is to start the second again.
    site.supervisor.end(f"node-{second.name}")
    site.supervisor.restart(f"node-{first.name}")


@pytest.fixture(scope="module")
def together(buyer: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    return jobs.script(buyer, tmp_path_factory.mktemp("projects") / "together", TOGETHER)


def gang(buyer: Client, project: str, *, steps: int, pace: float) -> Job:
    return jobs.counting(buyer, project, steps=steps, pace=pace, gpus=2, level="site")


def tunnels() -> int:
    """What a gang's network leaves outside of its sandboxes."""
    lines = Path("/proc/net/udp").read_text().splitlines()
    return sum(f":{FIRST_PORT + rank:04X} " in line for line in lines for rank in range(2))


def test_two_nodes_of_a_site_work_as_one_and_both_are_paid(
    site: LiveSite, buyer: Client, rack: tuple[str, str], together: str, tmp_path: Path
) -> None:
    job = gang(buyer, together, steps=3, pace=0.1)
    done = jobs.until(buyer, job, lambda now: now.state == "succeeded")
    assert {share.node for share in done.nodes} == set(rack)
    assert len(buyer.receipt(done).lines) == 2
    assert jobs.books_balance(site)


def test_a_gang_that_loses_a_node_is_queued_again_from_its_last_step_and_leaves_nothing(
    site: LiveSite, buyer: Client, rack: tuple[str, str], together: str
) -> None:
    links = psutil.net_if_addrs().keys()
    job = gang(buyer, together, steps=500, pace=0.2)
    running = jobs.until(buyer, job, lambda now: now.step >= 3)
    assert tunnels() == 2
    victim = running.nodes[1].node
    jobs.kill_node(site, victim)
    jobs.bring_back(site, victim)
    waiting = jobs.until(buyer, job, lambda now: now.state == "queued")
    lost, kept = sorted(buyer.receipt(job).lines, key=lambda line: line.node != victim)
    assert {lost.end_reason, kept.end_reason} == {"node_lost"}
    assert buyer.checkpoints(job)[0].step == waiting.step >= 3
    # A namespace goes a moment after the last process that was in it.
    gone = jobs.until(
        buyer, job, lambda now: not any(_left(site, name) for name in rack) and not tunnels()
    )
    assert gone.state == "queued"
    assert psutil.net_if_addrs().keys() == links
    buyer.cancel(job)
    assert buyer.wait(job).state == "cancelled"
    assert jobs.books_balance(site)


def test_an_elastic_gang_grows_onto_the_node_that_falls_idle_beside_it(
    site: LiveSite, buyer: Client, rack: tuple[str, str], dataset: str, tmp_path: Path
) -> None:
    beside = jobs.script(buyer, tmp_path / "beside", jobs.COUNTER)
    other = jobs.counting(buyer, beside, steps=5000, pace=0.1)
    taken = jobs.until(buyer, other, lambda now: now.step >= 1).nodes[0].node
    (free,) = set(rack) - {taken}
    wanted: dict[str, object] = {
        "recipe": "lora", "base": BASE, "dataset": dataset, "budget": "1.00", "level": "site",
        "gpus": 1, "gpus_max": 2,
        "parameters": {"steps": 20_000, "checkpoint_every": 50, "max_length": 64},
    }  # fmt: skip
    jobs.offered(buyer, free, **wanted)
    job = buyer.bid(limit="2.00", **wanted)
    alone = jobs.until(buyer, job, lambda now: now.step > 5)
    assert [share.node for share in alone.nodes] == [free]
    buyer.cancel(other)
    together = jobs.until(buyer, job, lambda now: len(now.nodes) == 2 and now.state == "running")
    assert {share.node for share in together.nodes} == set(rack)
    assert buyer.checkpoints(job)[0].step >= alone.step
    assert buyer.receipt(job).lines[0].end_reason == "grown"
    buyer.cancel(job)
    assert buyer.wait(job).state == "cancelled"
    assert jobs.books_balance(site)


def _left(site: LiveSite, name: str) -> list[Path]:
    return list((site.stack.node_folder(name) / "assignments").iterdir())
