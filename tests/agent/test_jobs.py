"""A job's whole life on a node, with a real keeper in a real sandbox and a market that listens."""

import json
import os
import time
from pathlib import Path

import pytest

from agent.config import State
from tests.agent import node as nodes
from tests.agent.conftest import spec
from tests.agent.market import Market

TRAIN = b"""
import json, os, sys, time
told = json.load(open(os.environ["GRIDLOOM_JOB"]))
assert told["output"] == os.environ["GRIDLOOM_OUTPUT"]
metrics = open(os.environ["GRIDLOOM_METRICS"], "a", buffering=1)
print("hello from the job")
print("and its trouble", file=sys.stderr)
for step in range(1, 5):
    metrics.write(json.dumps({"step": step, "total_steps": 4, "loss": 1 / step}) + "\\n")
    folder = f"{told['output']}/.making-{step}"
    os.makedirs(folder)
    open(f"{folder}/weights", "wb").write(bytes([step]) * 1000)
    os.rename(folder, f"{told['output']}/checkpoint-{step}")
    time.sleep(float(sys.argv[1]))
os.makedirs(f"{told['output']}/artifact/inner")
open(f"{told['output']}/artifact/inner/model", "wb").write(b"the result")
"""


def device(state: State) -> str:
    return nodes.machine(state).inventory.devices[0].uuid


async def test_a_job_runs_from_a_wish_to_its_artifact(market: Market, node: State):
    script = market.offer({"main.py": TRAIN}, "script")
    data = market.offer({"train.jsonl": b"{}\n" * 10, "deep/er/file": b"x"}, "dataset")
    job = market.want(
        spec(script, data, devices=[device(node)], parameters={"entry": "main.py", "args": ["0.6"]})
    )
    await market.until(lambda: market.settled(job))
    status = market.statuses[job]
    assert (status.exit.code, status.exit.why, status.step) == (0, "exited", 4)
    states = list(dict.fromkeys(one.state for one in market.history if one.id == job))
    assert states[-2:] == ["running", "gone"]
    [artifact] = market.sent("artifact")
    assert artifact.files == {"inner/model": b"the result"}
    checkpoints = market.sent("checkpoint")
    assert checkpoints
    assert all(one.files == {"weights": bytes([one.step]) * 1000} for one in checkpoints)
    [logs] = market.sent("log")
    assert logs.files["stdout.log"] == b"hello from the job\n"
    assert {point.step for point in market.metrics} == {1, 2, 3, 4}
    assert market.metrics[0].values == {"total_steps": 4.0, "loss": 1.0}
    assert "hello from the job\n" in [chunk.text for chunk in market.logs]
    final = market.claims[-1]
    assert final.final
    assert final.running_ms == status.running_ms > 1000
    market.unwant(job)
    await market.until(lambda: market.heartbeats[-1].assignments == [])
    assert list(node.assignments.iterdir()) == []
