"""Jobs on the tiny base, as the agent would write them down."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_base


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
