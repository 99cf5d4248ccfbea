"""A node of a gang dies: how long until training goes on, beside Ray Train alone with its defaults.

    python benchmarks/gang.py [rounds]

Two nodes of this machine, each a keeper and a sandbox, train the tiny Llama together by gloo. One
is killed (SIGKILL to its keeper, as if the machine had lost its power). Ours: the other saves what
both have learnt and leaves; the market would then start the job on other nodes, which is done here
at once, from that checkpoint. Ray's: in the same sandboxes, an elastic TorchTrainer as its manual
shows it, which goes on with the node that is left; it has no checkpoint to read.
"""

import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from agent import keeper
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
    found = [one_round() | ray_alone() for _ in range(rounds)]
    for name in found[0]:
        values = [one[name] for one in found]
        print(f"{name}: median {statistics.median(values):.1f}, {values}")


def one_round() -> dict[str, float]:
    """One gang from its start over a node's death to its next step, seconds and steps."""
    place = Path(tempfile.mkdtemp(prefix="gl-bench-"))
    place.chmod(0o755)
    gangs = []
    try:
        inputs = {
            "base": tiny_base.write(place / "base"),
            "dataset": tiny_base.write_dataset(place / "dataset"),
        }
        begun = time.monotonic()
        first = Ranks(place / "first", 2, inputs, parameters=PARAMETERS)
        gangs.append(first)
        first.start()
        steps = await_step(first, BEFORE)
        started = time.monotonic()
        status = keeper.read_status(first.folders[1])
        assert status is not None
        os.kill(status.keeper_pid, signal.SIGKILL)
        killed = time.monotonic()
        survivor = keeper.wait(first.folders[0], WITHIN_S)
        assert survivor is not None, first.said()
        assert survivor.exit_code == 69, first.said()
        saved = max(first.output().glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
        left = time.monotonic()
        resumed = {**inputs, "resume": saved}
        second = Ranks(place / "second", 2, resumed, parameters=PARAMETERS)
        gangs.append(second)
        second.start()
        went_on = await_step(second, int(saved.name[11:]) + 1)
        return {
            "start to first steps, s": started - begun,
            "killed to saved and left, s": left - killed,
            "killed to going on, s": time.monotonic() - killed,
            "steps lost": max(0, last_step(first) - int(saved.name[11:])),
            "steps repeated": max(0, steps - went_on + 1),
        }
    finally:
        for gang in gangs:
            gang.destroy()
        shutil.rmtree(place, ignore_errors=True)


def ray_alone() -> dict[str, float]:
    """The same death under Ray's defaults."""
    place = Path(tempfile.mkdtemp(prefix="gl-bench-"))
    place.chmod(0o755)
    (place / "script").mkdir()
    (place / "script" / "main.py").write_text(RAY_ALONE)
    gang = Ranks(
        place / "gang", 2, {"script": place / "script"},
        recipe="script", parameters={"entry": "main.py"},
    )  # fmt: skip
    try:
        gang.start()
        await_step(gang, BEFORE, world=2)
        status = keeper.read_status(gang.folders[1])
        assert status is not None
        os.kill(status.keeper_pid, signal.SIGKILL)
        killed = time.monotonic()
        await_step(gang, 1, world=1)
        return {"Ray alone, killed to going on, s": time.monotonic() - killed}
    finally:
        gang.destroy()
        shutil.rmtree(place, ignore_errors=True)


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
