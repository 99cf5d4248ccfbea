"""Recipes made of others, and those that train nothing: chains, sweeps, baselines, arithmetic."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.recipes.catalog import Exit
from tests import tiny_base
from tests.recipes.conftest import METHODS, WriteJob, evaluation, lines, run, weights

pytestmark = pytest.mark.usefixtures("own_signals")

STAGES = [
    {"recipe": "continue", "folder": "continue", "parameters": METHODS["continue"] | {"steps": 4}},
    {"recipe": "sft", "folder": "sft", "parameters": METHODS["sft"] | {"steps": 6}},
    {"recipe": "dpo", "folder": "dpo", "parameters": METHODS["dpo"] | {"steps": 4}},
]


@pytest.fixture
def chain(job: WriteJob, base: Path, datasets: dict[str, Path], tmp_path: Path) -> WriteJob:
    """Writes a chain of three stages, whose rows lie in folders of one dataset."""

    def write(name: str, **changes: Any) -> Path:
        dataset = tmp_path / f"{name}-stages"
        for method in ("continue", "sft", "dpo"):
            shutil.copytree(datasets[method], dataset / method)
        small = {"batch_size": 4, "max_length": 64, "answers": 0, "checkpoint_every": 2}
        stages = [stage | {"parameters": small | stage["parameters"]} for stage in STAGES]
        path = job(name, recipe="chain", inputs={"base": str(base), "dataset": str(dataset)},
                   **changes)  # fmt: skip
        told = json.loads(path.read_text())
        path.write_text(json.dumps(told | {"parameters": {"stages": stages}}))
        return path

    return write


def test_a_chain_goes_on_at_the_stage_it_was_stopped_in(chain: WriteJob) -> None:
    whole = chain("whole")
    assert run(whole) == Exit.DONE
    output = whole.parent / "output"
    saved = sorted(int(p.name.partition("-")[2]) for p in output.glob("checkpoint-*"))
    assert saved == [2, 4, 6, 8, 10, 12], "counted over all stages; each stage's start is kept"
    assert {p.name for p in output.iterdir() if p.name[0] == "."} == set()
    assert {line["total_steps"] for line in lines(whole)} == {14}
    assert (output / "artifact" / "model.safetensors").is_file(), (
        "whole: it adapts no base of theirs"
    )
    again = chain("again", resume_from=str(output / "checkpoint-8"))
    assert run(again) == Exit.DONE
    assert [line["step"] for line in lines(again) if "loss" in line] == [9, 10, 11, 12, 13, 14]
    wanted, found = weights(whole), weights(again)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    told, repeated = evaluation(whole), evaluation(again)
    assert repeated.training.steps == told.training.steps == 14
    assert [d.name for d in told.domains] == ["target", "sums"]
    assert repeated.domains[1].before == told.domains[1].before, "as the first stage found it"


@pytest.mark.parametrize("shots", [0, 2])
def test_the_baseline_is_measured_without_training(job: WriteJob, shots: int) -> None:
    path = job(recipe="prompt")
    told = json.loads(path.read_text())
    wanted = {"max_length": 128, "answer_tokens": 4, "answers": 1, "shots": shots}
    path.write_text(json.dumps(told | {"parameters": wanted}))
    assert run(path) == Exit.DONE
    found = evaluation(path)
    target = found.domains[0]
    assert (target.measure, target.rows, found.training.steps) == ("loss", 8, 0)
    assert target.before is not None
    assert (target.after is not None) == bool(shots)
    artifact = path.parent / "output" / "artifact"
    assert {p.name for p in artifact.iterdir()} == {"README.md", "evaluation.json"}
    assert len(lines(path)) == 1 + bool(shots)


def test_a_student_comes_nearer_to_its_teacher(
    rung: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher = tiny_base.write(tmp_path / "teacher", seed=5)
    changed = {"learning_rate": 0.02, "weights": "full", "answers": 0}
    path = rung("taught", "sft", parameters=changed, inputs={"other": str(teacher)})
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"recipe": "distill"}))
    assert run(path) == Exit.DONE
    losses = [line["loss"] for line in lines(path) if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["content"] = "<|other|>"
    tokenizer["model"]["vocab"] |= {"<|other|>": tokenizer["model"]["vocab"].pop("<|pad|>", 256)}
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert run(path) == Exit.INPUT
    assert "another vocabulary" in capfd.readouterr().err


@pytest.mark.parametrize("by", ["linear", "ties"])
def test_what_was_learnt_can_be_added_and_taken_away(
    rung: Callable[..., Path], job: WriteJob, base: Path, datasets: dict[str, Path], by: str
) -> None:
    learnt = rung("learnt", "sft", parameters={"answers": 0, "evaluate_samples": 0})
    assert run(learnt) == Exit.DONE
    adapter = str(learnt.parent / "output" / "artifact")
    after = {}
    for factor in (1.0, -1.0):
        path = job(
            f"{by}{factor}",
            recipe="arithmetic",
            inputs={"base": str(base), "dataset": str(datasets["sft"]), "other": adapter},
        )
        wanted = {"first": factor, "by": by, "density": 0.9, "max_length": 64, "answers": 0}
        told = json.loads(path.read_text())
        path.write_text(json.dumps(told | {"parameters": wanted}))
        assert run(path) == Exit.DONE
        (target,) = evaluation(path).domains
        after[factor] = target.after
    # Either way changes the loss; only one is the way to what was learnt.
    assert after[1.0] < min(target.before, after[-1.0])


def test_a_sweep_keeps_the_best_and_goes_on_where_it_was(
    job: WriteJob, capfd: pytest.CaptureFixture[str]
) -> None:
    common = {"steps": 8, "batch_size": 4, "max_length": 64, "answers": 0, "weights": "full"}
    wanted = {
        "recipe": "sft",
        "parameters": common,
        "space": {"learning_rate": [1e-6, 0.01, 1e-5, 1e-4]},
        "rungs": 2,
        "trials": 4,
    }

    def sweep(name: str, **changes: Any) -> Path:
        path = job(name, recipe="sweep", **changes)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"parameters": wanted}))
        return path

    whole = sweep("whole")
    assert run(whole) == Exit.DONE
    output = whole.parent / "output"
    saved = [path for folder in output.glob("checkpoint-*") for path in folder.rglob("*")]
    folders = {path.stat().st_mode & 0o777 for path in saved if path.is_dir()}
    assert folders == {0o755}, "who is not root could neither fill nor read them otherwise"
    trials = json.loads((output / "artifact" / "trials.json").read_text())
    assert sorted(trial["steps"] for trial in trials) == [[4], [4], [4, 8], [4, 8]]
    (best,) = [t for t in trials if t["parameters"]["learning_rate"] == 0.01]
    assert best["figures"][-1] == min(figure for t in trials for figure in t["figures"])
    assert evaluation(whole).domains[0].after == pytest.approx(best["figures"][-1], rel=1e-3)
    assert "<polyline" in (output / "artifact" / "trials.svg").read_text()
    saved = sorted(int(p.name.partition("-")[2]) for p in output.glob("checkpoint-*"))
    assert saved == [4, 8, 12, 16, 20, 24]
    capfd.readouterr()
    again = sweep("again", resume_from=str(output / "checkpoint-20"))
    assert run(again) == Exit.DONE
    assert capfd.readouterr().out.count("to step") == 1, "only what was missing"
    found = json.loads((again.parent / "output" / "artifact" / "trials.json").read_text())
    for trial, other in zip(trials, found, strict=True):
        assert other["figures"] == pytest.approx(trial["figures"], rel=1e-3)
