"""Jobs on the tiny base, as the agent would write them down."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from agent.recipes import __main__ as program
from agent.recipes import verdict
from tests import tiny_base

WriteJob = Callable[..., Path]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base.write(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base.write_dataset(tmp_path_factory.mktemp("sums") / "dataset")


@pytest.fixture
def job(tmp_path: Path, base: Path, dataset: Path) -> Callable[..., Path]:
    """Writes a job.json into a folder of its own, and says where."""

    def write(name: str = "job", *, recipe: str = "lora", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        told = {
            "job": "0199-tiny",
            "recipe": recipe,
            "parameters": {"steps": 12, "batch_size": 4, "max_length": 64, "answer_tokens": 8},
            "inputs": {"base": str(base), "dataset": str(dataset)},
            "output": str(folder / "output"),
            "metrics": str(folder / "metrics.jsonl"),
            "resume_from": None,
            "seed": 7,
            "lineage": {"base": {"name": "tiny"}, "dataset": "sums@1"},
        }
        told["parameters"] |= changes.pop("parameters", {})
        (folder / "job.json").write_text(json.dumps(told | changes))
        return folder / "job.json"

    return write


@pytest.fixture
def own_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Recipes listen for SIGTERM and set variables; tests that run them in here undo that."""
    for name in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("GRIDLOOM_RESUME_FROM", raising=False)
    known = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, known)


def lines(job: Path) -> list[dict[str, float]]:
    """What a job has reported."""
    return [json.loads(line) for line in (job.parent / "metrics.jsonl").read_text().splitlines()]


REWARD = """
def reward(prompt, completion, row):
    return sum(letter in row["liked"] for letter in completion)
"""

# What each method learns from a few steps, and whether more of its measure is better.
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"learning_rate": 0.02, "dropout": 0.1},
    "dpo": {"learning_rate": 0.02},
    "reward": {"learning_rate": 0.02, "weights": "full"},
    "grpo": {
        "learning_rate": 0.02,
        "weights": "full",
        "batch_size": 16,
        "completion_length": 8,
    },
    "continue": {"learning_rate": 0.02, "weights": "full", "max_length": 32},
}


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> dict[str, Path]:
    """A small dataset of each kind; the sums are a domain that none of the others is about."""
    root = tmp_path_factory.mktemp("datasets")

    def folder(name: str, rows: list[dict[str, object]]) -> Path:
        made = root / name
        (made / "domains").mkdir(parents=True)
        text = [json.dumps(row) + "\n" for row in rows]
        (made / "heldout.jsonl").write_text("".join(text[:6]))
        (made / "train.jsonl").write_text("".join(text[6:]))
        if name != "reward":
            (made / "domains" / "sums.jsonl").write_bytes((dataset / "heldout.jsonl").read_bytes())
        return made

    pairs: list[dict[str, object]] = [
        {"prompt": f"{n}?", "chosen": "yes", "rejected": "no, never"} for n in range(46)
    ]
    prompts: list[dict[str, object]] = [
        {"prompt": f"{n}!", "liked": "abcdefghijklmnop"} for n in range(46)
    ]
    texts: list[dict[str, object]] = [{"text": f"one and {n} and one"} for n in range(46)]
    return {
        "sft": dataset,
        "dpo": folder("dpo", pairs),
        "reward": folder("reward", pairs),
        "grpo": folder("grpo", prompts),
        "continue": folder("continue", texts),
    }


@pytest.fixture
def rung(
    job: WriteJob, base: Path, datasets: dict[str, Path], tmp_path: Path
) -> Callable[..., Path]:
    """Writes a job of a method, with all that it reads."""

    def write(name: str, method: str, /, reward: str = REWARD, **changes: Any) -> Path:
        inputs = {"base": str(base), "dataset": str(datasets[method])}
        if method == "grpo":
            script = tmp_path / f"{name}-script"
            script.mkdir()
            (script / "reward.py").write_text(reward)
            inputs["script"] = str(script)
        inputs |= changes.pop("inputs", {})
        wanted = METHODS[method] | {"checkpoint_every": 5} | changes.pop("parameters", {})
        return job(name, recipe=method, parameters=wanted, inputs=inputs, **changes)

    return write


def run(path: Path) -> int:
    return program.main([str(path)])


def evaluation(path: Path) -> verdict.Evaluation:
    return verdict.read((path.parent / "output" / "artifact" / verdict.FILE).read_bytes())


def weights(path: Path) -> dict[str, np.ndarray]:
    (found,) = (path.parent / "output" / "artifact").glob("*.safetensors")
    return load_file(found)
