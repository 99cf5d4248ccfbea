"""Each rung of the ladder on a tiny base: it learns, it resumes exactly, and it says what it lacks."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from agent.recipes import __main__ as program
from agent.recipes import verdict
from agent.recipes.catalog import Exit
from tests import tiny_base
from tests.recipes.conftest import lines

WriteJob = Callable[..., Path]
ROOT = Path(__file__).parents[2]
REWARD = """
def reward(prompt, completion, row):
    return sum(letter in row["liked"] for letter in completion)
"""

pytestmark = pytest.mark.usefixtures("own_signals")

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


@pytest.mark.parametrize("method", [name for name in METHODS if name != "sft"])
def test_a_rung_gets_better_at_its_own_measure(
    rung: Callable[..., Path], method: verdict.Method
) -> None:
    path = rung("job", method)
    assert run(path) == Exit.DONE
    found = evaluation(path)
    target = found.domains[0]
    assert target.measure == verdict.MEASURE_OF[method]
    assert target.before is not None
    assert target.after is not None
    assert target.verdict == "kept"
    told = [line for line in lines(path) if "loss" in line]
    shown = "reward" if method == "grpo" else "loss"
    first, last = (sum(line[shown] for line in part) for part in (told[:4], told[-4:]))
    assert last > first + 1 if method == "grpo" else last < 0.9 * first
    if method != "reward":
        assert [(d.name, d.measure) for d in found.domains[1:]] == [("sums", "loss")]
    assert len(told) == 12
    assert all(line["tokens_per_s"] > 0 for line in told)


@pytest.mark.parametrize("method", ["dpo", "grpo", "continue", "reward"])
def test_a_resumed_rung_ends_where_an_undisturbed_one_does(
    rung: Callable[..., Path], method: str
) -> None:
    whole = rung("whole", method, parameters={"evaluate_samples": 0, "answers": 0})
    assert run(whole) == Exit.DONE
    kept = whole.parent / "output" / "checkpoint-5"
    again = rung(
        "again",
        method,
        parameters={"evaluate_samples": 0, "answers": 0},
        resume_from=str(kept),
    )
    assert run(again) == Exit.DONE
    wanted, found = weights(whole), weights(again)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_step_in_parts_learns_what_a_whole_one_does(rung: Callable[..., Path]) -> None:
    told = {}
    for parts in (1, 2):
        wanted = {"accumulate": parts, "dropout": 0.0, "precision": "fp32", "answers": 0}
        path = rung(f"in-{parts}", "sft", parameters=wanted)
        assert run(path) == Exit.DONE
        told[parts] = [line["loss"] for line in lines(path) if "loss" in line]
    assert told[2] == pytest.approx(told[1], rel=1e-3)


def test_what_is_mixed_in_keeps_the_model_from_forgetting(
    rung: Callable[..., Path], datasets: dict[str, Path]
) -> None:
    after = {}
    for share in (0.0, 0.5):
        changed = {"mix": share, "steps": 20, "answers": 0, "weights": "full"}
        path = rung(
            f"mixed-{share}",
            "sft",
            parameters=changed | {"learning_rate": 0.01},
            inputs={"mix": str(datasets["sft"]), "dataset": str(_echoes(datasets, path_of=share))},
        )
        assert run(path) == Exit.DONE
        after[share] = {domain.name: domain.after for domain in evaluation(path).domains}["sums"]
    assert after[0.5] < 0.8 * after[0.0]


def _echoes(datasets: dict[str, Path], path_of: float) -> Path:
    """A task that has nothing to do with sums, which are its held-out domain."""
    folder = datasets["dpo"].parent / f"echoes-{path_of}"
    (folder / "domains").mkdir(parents=True)
    rows = [json.dumps({"prompt": "abcdef"[n % 6], "completion": "zz"}) + "\n" for n in range(40)]
    (folder / "train.jsonl").write_text("".join(rows))
    (folder / "heldout.jsonl").write_text("".join(rows[:6]))
    sums = (datasets["sft"] / "heldout.jsonl").read_bytes()
    (folder / "domains" / "sums.jsonl").write_bytes(sums)
    return folder


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


@pytest.mark.parametrize(
    ("reward", "code", "says"),
    [
        ("def reward(p, c, row):\n    return row['x']\n", Exit.REWARD, "KeyError: 'x' (reward.py line 2)"),
        ("def reward(p, c, row):\n    return 'good'\n", Exit.REWARD, "gave 'good'; return a finite"),
        ("def reward(p, c, row):\n    return float('nan')\n", Exit.REWARD, "gave 'nan'"),
        ("def reward(:\n", Exit.REWARD, "can't be loaded: SyntaxError"),
        ("import nothing_such\n", Exit.REWARD, "No module named 'nothing_such'"),
        ("x = 1\n", Exit.INPUT, "has no function reward"),
    ],
)  # fmt: skip
def test_a_reward_that_does_not_work_stops_the_job_with_its_reason(
    rung: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
    reward: str,
    code: Exit,
    says: str,
) -> None:
    path = rung("job", "grpo", reward=reward, parameters={"evaluate_samples": 0, "answers": 0})
    assert run(path) == code
    assert says in capfd.readouterr().err


def test_a_prompt_without_room_for_an_answer_is_named(
    rung: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    changed = {"max_length": 32, "completion_length": 20, "evaluate_samples": 0, "answers": 0}
    assert run(rung("job", "grpo", parameters=changed)) == Exit.PARAMETERS
    assert "its prompt has more than 12 tokens" in capfd.readouterr().err


def test_rows_of_another_recipe_are_refused_by_the_line(
    rung: Callable[..., Path], datasets: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = rung("job", "dpo", inputs={"dataset": str(datasets["sft"])})
    assert run(path) == Exit.INPUT
    assert "train.jsonl line 1: give prompt, chosen and rejected" in capfd.readouterr().err


def test_a_gang_learns_what_a_single_process_does(rung: Callable[..., Path]) -> None:
    """Two processes under gloo, as torchrun or Ray would start them: half of each step's rows."""
    same = {"dropout": 0.0, "precision": "fp32", "batch_size": 4, "answers": 0, "steps": 4}
    alone = rung("alone", "sft", parameters=same | {"checkpoint_every": 2})
    assert run(alone) == Exit.DONE
    both = rung("both", "sft", parameters=same | {"checkpoint_every": 2})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "agent.recipes", both],
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [Exit.DONE, Exit.DONE]
    assert {p.name for p in (both.parent / "output").iterdir()} == {"artifact", "checkpoint-2"}
    losses = [[line["loss"] for line in lines(path) if "loss" in line] for path in (alone, both)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert evaluation(both).domains[0].after == pytest.approx(
        evaluation(alone).domains[0].after, rel=1e-3
    )


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
    assert after[1.0] < target.before < after[-1.0]


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
