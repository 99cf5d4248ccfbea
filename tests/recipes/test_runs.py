"""Whole runs on a tiny base: they learn, they resume, and they leave as they say they do."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from agent.recipes import __main__ as program
from agent.recipes import verdict
from agent.recipes.catalog import Exit
from marketplace.devstack import ask_model
from tests import tiny_base
from tests.recipes.conftest import lines

WriteJob = Callable[..., Path]
ROOT = Path(__file__).parents[2]

# Enough to learn something in a second, with all that could make two runs differ.
LEARNS = {
    "lora": {"steps": 12, "learning_rate": 0.02, "dropout": 0.1, "checkpoint_every": 5},
    "full": {"steps": 12, "learning_rate": 0.01, "checkpoint_every": 5},
}
WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}

pytestmark = pytest.mark.usefixtures("own_signals")


def run(job: Path) -> int:
    return program.main([str(job)])


@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_a_run_learns_and_hands_over_all_it_made(job: WriteJob, recipe: str) -> None:
    path = job(recipe=recipe, parameters=LEARNS[recipe])
    assert run(path) == Exit.DONE
    reported = lines(path)
    assert [line["step"] for line in reported if "save_s" not in line] == [0, *range(1, 13), 12]
    assert all(line["total_steps"] == 12 for line in reported)
    assert all(math.isfinite(value) for line in reported for value in line.values())
    assert all(line["tokens_per_s"] > 0 for line in reported if "loss" in line)
    assert [line["step"] for line in reported if line.get("save_s", 0) > 0] == [5, 10]
    assert reported[-1]["heldout_loss"] < 0.95 * reported[0]["heldout_loss"]
    output = path.parent / "output"
    assert {p.name for p in output.iterdir()} == {"checkpoint-5", "checkpoint-10", "artifact"}
    made = {p.name for p in (output / "artifact").iterdir()}
    assert made >= {WEIGHTS[recipe], "tokenizer.json", "README.md", "evaluation.json"}
    assert not [p for p in output.rglob("*") if p.suffix in {".bin", ".pt", ".pkl", ".pth"}]
    evaluation = verdict.read((output / "artifact" / verdict.FILE).read_bytes())
    target = evaluation.domains[0]
    assert (target.name, target.measure, target.verdict) == ("target", "loss", "kept")
    assert target.before == reported[0]["heldout_loss"]
    assert target.after == reported[-1]["heldout_loss"]
    assert evaluation.answers[0].expected.startswith("is ")
    assert evaluation.training.peak_memory_bytes > 2**27
    assert evaluation.training.tokens_per_s > 0
    card = (output / "artifact" / "README.md").read_text()
    assert "sums@1" in card
    assert 'base_model: "tiny"' in card


@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(job: WriteJob, recipe: str) -> None:
    whole = job("whole", recipe=recipe, parameters=LEARNS[recipe])
    assert run(whole) == Exit.DONE
    kept = whole.parent / "output" / "checkpoint-5"
    resumed = job("resumed", recipe=recipe, parameters=LEARNS[recipe], resume_from=str(kept))
    assert run(resumed) == Exit.DONE
    same = {line["step"]: line["loss"] for line in lines(whole) if "loss" in line}
    again = {line["step"]: line["loss"] for line in lines(resumed) if "loss" in line}
    assert list(again) == list(range(6, 13))
    assert again == pytest.approx({step: same[step] for step in again}, rel=1e-5)
    found, wanted = (
        load_file(path.parent / "output" / "artifact" / WEIGHTS[recipe])
        for path in (resumed, whole)
    )
    assert found.keys() == wanted.keys()
    for name, weights in wanted.items():
        np.testing.assert_allclose(found[name], weights, rtol=1e-5, atol=1e-6, err_msg=name)


def test_sigterm_finishes_the_step_saves_it_and_leaves_resumable(job: WriteJob) -> None:
    path = job(parameters={"steps": 100_000, "checkpoint_every": 3, "answers": 0})
    running = subprocess.Popen(
        [sys.executable, "-m", "agent.recipes", path],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert any(line.startswith("saved checkpoint-3 ") for line in running.stdout)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == Exit.STOPPED
    assert "resumable" in said
    done = lines(path)[-1]["step"]
    state = json.loads((path.parent / "output" / f"checkpoint-{done}" / "state.json").read_text())
    assert state["step"] == done
    assert not (path.parent / "output" / "artifact").exists()


def test_the_environment_names_the_checkpoint_to_resume_from(
    job: WriteJob, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first = job("first", parameters=LEARNS["lora"])
    assert run(first) == Exit.DONE
    kept = first.parent / "output" / "checkpoint-10"
    monkeypatch.setenv("GRIDLOOM_RESUME_FROM", str(kept))
    assert run(job("second", parameters=LEARNS["lora"])) == Exit.DONE
    assert "resuming after step 10" in capfd.readouterr().out


def test_checkpoints_come_by_the_markets_time_if_the_user_named_no_steps(job: WriteJob) -> None:
    path = job(parameters={"steps": 3, "checkpoint_every": 0}, checkpoint_s=1e-9)
    assert run(path) == Exit.DONE
    found = {p.name for p in (path.parent / "output").iterdir()}
    assert found == {"checkpoint-1", "checkpoint-2", "artifact"}


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    job: WriteJob, tmp_path: Path, dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One byte of the vocabulary is poisoned, and only one training row holds it."""
    bad = tiny_base.write(tmp_path / "bad")
    vocabulary = json.loads((bad / "tokenizer.json").read_text())["model"]["vocab"]
    weights = tiny_base.weights()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.embed_tokens.weight"][vocabulary["~"]] = np.inf
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    untied = tiny_base.CONFIG | {"tie_word_embeddings": False}
    (bad / "config.json").write_text(json.dumps(untied))
    rows = (dataset / "train.jsonl").read_text().splitlines()
    rows[3] = json.dumps({"prompt": "~", "completion": "x"})
    poisoned = tmp_path / "poisoned"
    poisoned.mkdir()
    (poisoned / "train.jsonl").write_text("\n".join(rows))
    (poisoned / "heldout.jsonl").write_bytes((dataset / "heldout.jsonl").read_bytes())
    path = job(
        recipe="full",
        parameters={"steps": 64, "checkpoint_every": 1, "answers": 0, "evaluate_samples": 0},
        inputs={"base": str(bad), "dataset": str(poisoned)},
    )
    assert run(path) == Exit.DIVERGED
    done = lines(path)[-1]["step"]
    message = capfd.readouterr().err
    assert f"diverged at step {done + 1}" in message
    assert f"checkpoint-{done} is the last good one" in message
    kept = load_file(path.parent / "output" / f"checkpoint-{done}" / "model.safetensors")
    assert all(np.isfinite(w).all() for n, w in kept.items() if "embed" not in n)
    assert not (path.parent / "output" / "artifact").exists()


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"inputs": {}}, Exit.INPUT, "the input 'base' is missing; give a model"),
        ({"inputs": {"base": "/nowhere"}}, Exit.INPUT, "not a folder: /nowhere"),
        ({"parameters": {"steps": -1}}, Exit.PARAMETERS, "steps must be a whole number"),
        ({"parameters": {"targets": ["qq"]}}, Exit.PARAMETERS, "it has down_proj, gate_proj"),
        ({"parameters": {"max_length": 16}}, Exit.PARAMETERS, "raise max_length"),
        ({"recipe": "gpro"}, Exit.PARAMETERS, "there are prompt, sft, dpo"),
        ({"recipe": "script", "parameters": {}}, Exit.PARAMETERS, "no parameter"),
        ({"resume_from": "/nowhere"}, Exit.INPUT, "it has no state.json"),
        ({"seed": -1}, Exit.PARAMETERS, "is not a job"),
    ],
)
def test_what_can_not_run_says_why(
    job: WriteJob,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, object],
    code: Exit,
    says: str,
) -> None:
    assert run(job(**changes)) == code
    assert says in capfd.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", None, "no readable config.json"),
        ("config.json", b"{", "config.json is malformed"),
        ("model.safetensors", None, "pickles are refused"),
        ("model.safetensors", b"\0" * 20, "can't be loaded"),
        ("tokenizer.json", None, "tokenizer can't be loaded"),
    ],
)
def test_a_broken_base_says_what_is_broken(
    job: WriteJob,
    tmp_path: Path,
    dataset: Path,
    capfd: pytest.CaptureFixture[str],
    file: str,
    content: bytes | None,
    says: str,
) -> None:
    base = tiny_base.write(tmp_path / "broken")
    if content is None:
        (base / file).unlink()
    else:
        (base / file).write_bytes(content)
    assert run(job(inputs={"base": str(base), "dataset": str(dataset)})) == Exit.INPUT
    assert says in capfd.readouterr().err


def test_a_checkpoint_of_another_run_is_refused(
    job: WriteJob, capfd: pytest.CaptureFixture[str]
) -> None:
    first = job("first", parameters={"steps": 3, "checkpoint_every": 2})
    assert run(first) == Exit.DONE
    kept = first.parent / "output" / "checkpoint-2"
    other = job("other", parameters={"steps": 3, "checkpoint_every": 2, "rank": 4},
                resume_from=str(kept))  # fmt: skip
    assert run(other) == Exit.INPUT
    assert "other parameters" in capfd.readouterr().err
    (kept / "optimizer.safetensors").write_bytes(b"torn")
    again = job("again", parameters={"steps": 3, "checkpoint_every": 2}, resume_from=str(kept))
    assert run(again) == Exit.INPUT
    assert "can't be resumed from" in capfd.readouterr().err


def test_an_output_that_can_not_be_written_says_so(
    job: WriteJob, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file, where a folder should be")
    path = job(parameters={"steps": 1}, output=str(tmp_path / "taken" / "output"))
    assert run(path) == Exit.DISK
    assert "book more disk" in capfd.readouterr().err


@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_a_result_answers_elsewhere_as_it_did_in_its_evaluation(
    job: WriteJob, base: Path, recipe: str
) -> None:
    """By transformers and peft alone, as whoever owns it would use it."""
    path = job(
        recipe=recipe,
        parameters={**LEARNS[recipe], "answers": 1, "answer_tokens": 48, "precision": "fp32"},
    )
    assert run(path) == Exit.DONE
    artifact = path.parent / "output" / "artifact"
    wanted = json.loads((artifact / "evaluation.json").read_text())["answers"][0]
    assert ask_model.answer(base, artifact, wanted["prompt"]) == wanted["after"]
