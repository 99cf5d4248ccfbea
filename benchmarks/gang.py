"""A node of a gang dies: how long until training goes on, beside Ray Train alone with its defaults.

    python benchmarks/gang.py [rounds]

Two nodes of this machine, each a keeper and a sandbox, train the tiny Llama together by gloo. One
is killed (SIGKILL to its keeper, as if the machine had lost its power). Ours, of two nodes and no
fewer: the other saves what both have learnt and leaves; the market would then start the job on
other nodes, which is done here at once, from that checkpoint. Ours, elastic: the other goes on from
there alone. Ray's: in the same sandboxes, an elastic TorchTrainer as its manual shows it, which
goes on with the node that is left; it has no checkpoint to read.
"""

import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from agent import keeper
from agent.recipes.catalog import Exit
from tests import tiny_base
from tests.agent.gang.ranks import Ranks

PARAMETERS = {
    "steps": 100_000, "batch_size": 4, "max_length": 64, "answers": 0, "evaluate_samples": 8,
    "precision": "fp32",
}  # fmt: skip
RAY_ALONE = """
import json, os, socket, subprocess, sys, time
address = os.environ["MASTER_ADDR"]
own = address if os.environ["RANK"] == "0" else socket.gethostbyname(socket.gethostname())
head = ["--head", "--port=6379"] if os.environ["RANK"] == "0" else [f"--address={address}:6379"]
command = ["ray", "start", *head, f"--node-ip-address={own}", "--num-cpus=1",
           "--object-store-memory=100000000", "--disable-usage-stats"]
while subprocess.run(command).returncode:
    time.sleep(1)
if os.environ["RANK"] != "0":
    while True:
        time.sleep(60)
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def work():
    import torch, torch.distributed as dist
    with open(os.environ["GRIDLOOM_METRICS"], "a", buffering=1) as metrics:
        for step in range(1, 100000):
            time.sleep(0.05)
            dist.all_reduce(torch.ones(100000))
            line = {"step": step, "loss": 1.0, "world": dist.get_world_size()}
            metrics.write(json.dumps(line) + chr(10))

ray.init(f"{address}:6379", _node_ip_address=own)
while len([node for node in ray.nodes() if node["Alive"]]) < 2:
    time.sleep(0.2)
TorchTrainer(
    work,
    scaling_config=ScalingConfig(num_workers=(1, 2)),
    run_config=RunConfig(storage_path="/tmp/ray-results",
                         failure_config=FailureConfig(max_failures=-1)),
).fit()
"""
BEFORE, WITHIN_S, POLL_S = 20, 300.0, 0.02


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    found = [fixed() | elastic() | ray_alone() for _ in range(rounds)]
    for name in found[0]:
        values = [one[name] for one in found]
        print(f"{name}: median {statistics.median(values):.1f}, {values}")


def fixed() -> dict[str, float]:
    """A gang that can't do without, from its start over a node's death to the next gang's step."""
    with a_place() as (place, inputs), ExitStack() as stack:
        begun = time.monotonic()
        first = started(stack, Ranks(place / "first", 2, inputs, parameters=PARAMETERS))
        steps = await_step(first, BEFORE)
        ready = time.monotonic()
        killed = kill_second(first)
        survivor = keeper.wait(first.folders[0], WITHIN_S)
        assert survivor is not None, first.said()
        assert survivor.exit_code == Exit.PEER_LOST, first.said()
        saved = max(first.output().glob("checkpoint-*"), key=step_of)
        left = time.monotonic()
        resumed = {**inputs, "resume": saved}
        second = started(stack, Ranks(place / "second", 2, resumed, parameters=PARAMETERS))
        went_on = await_step(second, step_of(saved) + 1)
        return {
            "start to first steps, s": ready - begun,
            "fixed: killed to saved and left, s": left - killed,
            "fixed: killed to going on, s": time.monotonic() - killed,
            "fixed: steps lost": max(0, last_step(first) - step_of(saved)),
            "fixed: steps repeated": max(0, steps - went_on + 1),
        }


def elastic() -> dict[str, float]:
    """A gang that goes on with one node."""
    with a_place() as (place, inputs), ExitStack() as stack:
        gang = started(stack, Ranks(place / "gang", 2, inputs, gpus_min=1, parameters=PARAMETERS))
        await_step(gang, BEFORE)
        killed = kill_second(gang)
        while not list(gang.output().glob("checkpoint-*")):
            assert time.monotonic() < killed + WITHIN_S, gang.said()
            time.sleep(POLL_S)
        saved = step_of(max(gang.output().glob("checkpoint-*"), key=step_of))
        lost = max(0, last_step(gang) - saved)
        await_step(gang, saved + 1)
        return {
            "elastic: killed to going on, s": time.monotonic() - killed,
            "elastic: steps lost": lost,
        }


def ray_alone() -> dict[str, float]:
    """The same death under Ray's defaults."""
    with a_place() as (place, _), ExitStack() as stack:
        (place / "script").mkdir()
        (place / "script" / "main.py").write_text(RAY_ALONE)
        gang = Ranks(
            place / "gang", 2, {"script": place / "script"},
            recipe="script", parameters={"entry": "main.py"},
        )  # fmt: skip
        started(stack, gang)
        await_step(gang, BEFORE, world=2)
        killed = kill_second(gang)
        await_step(gang, 1, world=1)
        return {"Ray alone: killed to going on, s": time.monotonic() - killed}


@contextmanager
def a_place() -> Iterator[tuple[Path, dict[str, Path]]]:
    """A folder that sandboxes may enter, with a base and rows."""
    with tempfile.TemporaryDirectory(prefix="gl-bench-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        place.chmod(0o755)
        base, dataset = tiny_base.write(place / "base"), tiny_base.write_dataset(place / "dataset")
        yield place, {"base": base, "dataset": dataset}


def started(stack: ExitStack, gang: Ranks) -> Ranks:
    stack.callback(gang.destroy)
    gang.start()
    return gang


def kill_second(gang: Ranks) -> float:
    """When its second node died."""
    status = keeper.read_status(gang.folders[1])
    assert status is not None
    os.kill(status.keeper_pid, signal.SIGKILL)
    return time.monotonic()


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def await_step(gang: Ranks, wanted: int, world: int = 0) -> int:
    deadline = time.monotonic() + WITHIN_S
    while (step := last_step(gang, world)) < wanted:
        assert time.monotonic() < deadline, gang.said()
        time.sleep(POLL_S)
    return step


def last_step(gang: Ranks, world: int = 0) -> int:
    """The furthest step that was told, if `world` is given of those that so many took."""
    path = gang.folders[0] / "job" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    told = [json.loads(line) for line in lines if '"loss"' in line]
    return max((one["step"] for one in told if one.get("world", 0) == world), default=0)


if __name__ == "__main__":
    main()
