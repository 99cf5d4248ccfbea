"""The ladder on a real model: SmolLM2-135M-Instruct, few steps a rung, before and after.

    .venv/bin/python benchmarks/ladder.py [--steps 12] [rung …]

Each rung is a job as a node would run it (`python -m agent.recipes`), on the demo's corpus: what a
function of Python's library does, from its signature. Modules that training has not seen are the
target; general knowledge and sums are held-out domains, so that forgetting shows. `distill` learns
from what `full` has made, `arithmetic` adds what `sft` has learnt to the base.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from agent.recipes import verdict
from marketplace.devstack import base_model, corpus
from marketplace.devstack.stack import DATA

ROOT: Final = Path(__file__).parents[1]
_HELD_OUT: Final = 48
_COMMON: Final = {
    "batch_size": 4,
    "max_length": 128,
    "evaluate_samples": 16,
    "answers": 1,
    "answer_tokens": 32,
}
# A verifiable reward: the answer is one sentence, of not too many words, that ends.
_REWARD: Final = """
def reward(prompt, completion, row):
    words = completion.split()
    whole = completion.rstrip().endswith(".") and completion.count("\\n") == 0
    return whole - abs(len(words) - 10) / 20
"""
_KNOWN: Final = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What do bees make?", "Bees make honey."),
    ("How many days has a week?", "A week has seven days."),
    ("Which planet is closest to the sun?", "Mercury is the closest planet to the sun."),
    ("What is water made of?", "Water is made of hydrogen and oxygen."),
    ("Who wrote Romeo and Juliet?", "William Shakespeare wrote Romeo and Juliet."),
    ("What colour is the sky on a clear day?", "The sky is blue on a clear day."),
    ("What is the largest ocean?", "The Pacific Ocean is the largest ocean."),
)
_RUNGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "prompt": {"shots": 2, "max_length": 256},
    "sft": {"learning_rate": 2e-3},
    "full": {"learning_rate": 5e-5},
    "dpo": {"learning_rate": 2e-4},
    "reward": {"learning_rate": 5e-4},
    "grpo": {
        "learning_rate": 2e-4,
        "batch_size": 8,
        "completion_length": 32,
        "evaluate_samples": 4,
    },
    "continue": {"learning_rate": 1e-3},
    "distill": {"learning_rate": 1e-3},
    "sweep": {"learning_rate": [1e-4, 5e-4, 2e-3, 8e-3]},
    "arithmetic": {"first": 1.0},
}
_OTHER: Final = {"distill": "full", "arithmetic": "sft"}
"""Rungs that need what another has made."""
_KIND: Final = {"dpo": "dpo", "reward": "reward", "grpo": "grpo", "continue": "continue"}


def main() -> int:
    """Runs the rungs asked for, and prints a table in Markdown."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("rungs", nargs="*", metavar="rung", help=", ".join(_RUNGS))
    asked = options.parse_args()
    base = base_model.ensure(DATA / "cache")
    folder = DATA / "cache" / "stdlib-docstrings"
    if not (folder / corpus.TRAIN).exists():
        corpus.write(folder)
    print(f"| rung | part | measure | before | after | | s | tokens/s | peak GB |\n{'|---' * 9}|")
    answers = []
    with tempfile.TemporaryDirectory(prefix="ladder-") as scratch:
        datasets = _datasets(folder, Path(scratch))
        job = _Job(base, datasets, Path(scratch), asked.steps)
        for rung in asked.rungs or _RUNGS:
            found, seconds = job.run(rung)
            _print(rung, found, seconds)
            answers += [(rung, answer) for answer in found.answers]
    for rung, answer in answers:
        print(f"\n{rung}: {answer.prompt!r}\n  expected {answer.expected!r}")
        print(f"  before   {answer.before!r}\n  after    {answer.after!r}")
    return 0


@dataclass(frozen=True)
class _Job:
    """How rungs are run: each in a folder of its own below `scratch`."""

    base: Path
    datasets: Mapping[str, Path]
    scratch: Path
    steps: int

    def run(self, rung: str) -> tuple[verdict.Evaluation, float]:
        """What it measured, and the seconds that it took."""
        other = self._made(_OTHER[rung]) if rung in _OTHER else None
        folder = self.scratch / f"job-{rung}"
        script = folder / "script"
        script.mkdir(parents=True)
        (script / "reward.py").write_text(_REWARD)
        job = {
            "job": f"ladder-{rung}",
            "recipe": rung,
            "parameters": self._parameters(rung),
            "inputs": {
                "base": str(self.base),
                "dataset": str(self.datasets[_KIND.get(rung, "sft")]),
                "script": str(script),
                **({"other": str(other)} if other else {}),
            },
            "output": str(folder / "output"),
            "metrics": str(folder / "metrics.jsonl"),
            "lineage": {"base": {"name": base_model.NAME}},
        }
        (folder / "job.json").write_text(json.dumps(job))
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "agent.recipes", folder / "job.json"],
            cwd=ROOT,
            env=os.environ,
            stdout=sys.stderr,
            check=True,
        )
        seconds = time.monotonic() - started
        return verdict.read((self._artifact(rung) / verdict.FILE).read_bytes()), seconds

    def _made(self, rung: str) -> Path:
        """A rung's artifact, run now if it wasn't."""
        if not self._artifact(rung).exists():
            self.run(rung)
        return self._artifact(rung)

    def _artifact(self, rung: str) -> Path:
        return self.scratch / f"job-{rung}" / "output" / "artifact"

    def _parameters(self, rung: str) -> Mapping[str, Any]:
        if rung == "arithmetic":
            return {name: v for name, v in _COMMON.items() if name != "batch_size"} | _RUNGS[rung]
        if rung == "sweep":
            tried = {"recipe": "lora", "trials": 4, "rungs": 2, "space": _RUNGS[rung]}
            return {**tried, "parameters": {**_COMMON, "steps": self.steps}}
        trained = {} if rung == "prompt" else {"steps": self.steps}
        return {**_COMMON, **trained, **_RUNGS[rung]}


def _print(rung: str, found: verdict.Evaluation, seconds: float) -> None:
    training = found.training
    for place, domain in enumerate(found.domains):
        figures = [f"{x:.3f}" if x is not None else "" for x in (domain.before, domain.after)]
        cost = (
            f"{seconds:.0f} | {training.tokens_per_s:.0f} | {training.peak_memory_bytes / 1e9:.2f}"
            if not place
            else " | | "
        )
        print(
            f"| {rung} | {domain.name} | {domain.measure} | {' | '.join(figures)} "
            f"| {domain.verdict} | {cost} |",
            flush=True,
        )


def _datasets(folder: Path, scratch: Path) -> dict[str, Path]:
    """The corpus, as each kind of rows."""
    parts = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").open()]
        for name in ("train", "heldout")
    }
    parts["heldout"] = parts["heldout"][:_HELD_OUT]
    # What is worse than the right answer: another function's.
    kinds: dict[str, Callable[[list[dict[str, str]], int], dict[str, str]]] = {
        "sft": lambda rows, n: rows[n],
        "dpo": lambda rows, n: {
            "prompt": rows[n]["prompt"],
            "chosen": rows[n]["completion"],
            "rejected": rows[n - 7]["completion"],
        },
        "grpo": lambda rows, n: {"prompt": rows[n]["prompt"]},
        "continue": lambda rows, n: {"text": f"{rows[n]['prompt']} {rows[n]['completion']}"},
    }
    kinds["reward"] = kinds["dpo"]
    known = [{"prompt": asked, "completion": told} for asked, told in _KNOWN]
    sums = [{"prompt": f"What is {n} + {m}?", "completion": f"{n} + {m} = {n + m}"}
            for n in range(2, 6) for m in range(3, 5)]  # fmt: skip
    for kind, row in kinds.items():
        for name, rows in parts.items():
            made = [row(rows, number) for number in range(len(rows))]
            _write(scratch / kind / f"{name}.jsonl", made)
        if kind != "reward":  # it has no words that could be forgotten
            _write(scratch / kind / "domains" / "knowledge.jsonl", known)
            _write(scratch / kind / "domains" / "sums.jsonl", sums)
    return {kind: scratch / kind for kind in kinds}


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
