"""A recipe on two nodes: Ray Train inside the sandboxes, real keepers, one node lost."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent import keeper
from agent.recipes.__main__ import main
from tests import tiny_base
from tests.agent.gang.ranks import Ranks
from tests.agent.sandbox.jobs import IS_ROOT, place, until

__all__ = ["place"]
pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="making a lease's network takes root"),
    pytest.mark.timeout(900),
]
STEPS = 40
PARAMETERS = {
    "steps": STEPS, "batch_size": 4, "max_length": 64, "answers": 0, "evaluate_samples": 8,
    "precision": "fp32",
}  # fmt: skip
WITHIN_S = 600.0
"""Ray's dozen processes take half a minute to start on two busy cores, and on slow ones minutes."""


@pytest.fixture
def inputs(place: Path) -> dict[str, Path]:
    place.chmod(0o755)
    base, dataset = tiny_base.write(place / "base"), tiny_base.write_dataset(place / "dataset")
    return {"base": base, "dataset": dataset}


@pytest.fixture
def gang(place: Path, inputs: dict[str, Path]) -> Iterator[Ranks]:
    it = Ranks(place, 2, inputs, gpus_min=1, parameters=PARAMETERS)
    yield it
    it.destroy()


@pytest.fixture
def alone(tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict:
    """The losses of the same job in one process, by step."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    known = signal.getsignal(signal.SIGTERM)
    told = {
        "job": "alone", "recipe": "full", "parameters": PARAMETERS, "seed": 3,
        "inputs": {name: str(path) for name, path in inputs.items()},
        "output": str(tmp_path / "output"), "metrics": str(tmp_path / "metrics.jsonl"),
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(told))
    assert main([str(tmp_path / "job.json")]) == 0
    signal.signal(signal.SIGTERM, known)
    return losses(tmp_path / "metrics.jsonl")


def losses(metrics: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_two_nodes_learn_what_one_does_also_when_one_of_them_is_lost(gang: Ranks, alone: dict):
    links = psutil.net_if_addrs().keys()
    gang.start()
    metrics = gang.folders[0] / "job" / "metrics.jsonl"
    until(lambda: metrics.exists() and len(losses(metrics)) >= 2, gang.said, WITHIN_S)
    status = keeper.read_status(gang.folders[1])
    assert status is not None
    os.kill(status.keeper_pid, signal.SIGKILL)
    first, _ = gang.end(WITHIN_S)
    assert first.exit_code == 0, gang.said()
    assert "rank 1 is gone; going on with 1 of 2 GPUs" in gang.said()
    together = losses(metrics)
    assert sorted(together) == sorted(alone) == list(range(1, STEPS + 1))
    assert together == pytest.approx(alone, rel=0.02)
    assert (gang.output() / "artifact" / "model.safetensors").exists()
    assert psutil.net_if_addrs().keys() == links
