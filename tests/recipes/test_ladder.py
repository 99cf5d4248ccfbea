"""Each rung of the ladder on a tiny base: it learns, it resumes exactly, and it says what it lacks."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent.recipes import verdict
from agent.recipes.catalog import Exit
from tests.recipes.conftest import METHODS, evaluation, lines, run, weights

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("own_signals")


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
