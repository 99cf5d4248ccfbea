"""`gridloom` as a person runs it: a process of its own, without Django."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from buyers.models import Artifact, Job
from buyers.sdk import config, show
from buyers.sdk.shapes import MICRO
from marketplace import storage, telemetry
from scheduler import clearing
from tests import world
from tests.buyers import folders

JOB = ("script", "--script", "code", "--set", "entry=main.py", "--budget", "5",
       "--memory-gib", "2", "--hours", "0.5", "--limit", "3")  # fmt: skip


@pytest.fixture
def environment(site, key, tmp_path):
    kept = {
        name: os.environ[name] for name in ("PATH", "PYTHONPYCACHEPREFIX") if name in os.environ
    }
    return {**kept, "HOME": str(tmp_path), "GRIDLOOM_URL": site, "GRIDLOOM_KEY": key,
            "COLUMNS": "200"}  # fmt: skip


@pytest.fixture
def gridloom(environment, tmp_path):
    def gridloom(*arguments, said="", code=0, **changes):
        done = subprocess.run(
            [sys.executable, "-m", "buyers.sdk", *arguments], input=said, text=True, timeout=60,
            capture_output=True, env={**environment, **changes},
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    return gridloom


def test_logging_in_keeps_the_key_for_this_user_alone(gridloom, site, key, tmp_path):
    nowhere = {"GRIDLOOM_URL": "", "GRIDLOOM_KEY": ""}
    assert "run `gridloom login`" in gridloom("wallet", code=1, **nowhere)
    said = gridloom("login", "--url", site, said=f"{key}\n", **nowhere)
    assert "$100.00" in said
    assert key not in said
    kept = tmp_path / ".config" / "gridloom" / "config.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert json.loads(kept.read_text()) == {"url": site, "key": key}
    assert "$100.00" in gridloom("wallet", **nowhere)


def test_a_key_that_is_none_is_not_kept(gridloom, site, tmp_path):
    assert "Error:" in gridloom("login", "--url", site, "--key", "glk_wrong", code=1)
    assert not (tmp_path / ".config").exists()


def test_a_job_is_quoted_taken_and_cancelled(gridloom, wanted, node):
    quoted = gridloom("quote", *JOB)
    assert node.node.name in quoted
    gridloom("run", *JOB, said="n\n", code=1)
    assert not Job.objects.exists(), "not without a yes"
    gridloom("run", *JOB, "--yes", "--detach")
    job = str(Job.objects.get().pk)
    assert job in gridloom("jobs")
    assert "queued → placed" in gridloom("job", job)
    gridloom("cancel", job)
    assert "the take (8 %)" in gridloom("receipt", job)


def test_what_protection_costs_is_shown(gridloom, wanted, node, settings):
    settings.POLICY = replace(settings.POLICY, premium_bps=1000)
    assert "($0.217392 of it premium)" in gridloom("quote", *JOB)
    gridloom("run", *JOB, "--yes", "--detach")
    shown = gridloom("job", str(Job.objects.get().pk))
    assert "$2.391306 ($0.217392 of it premium) per GPU-hour" in shown
    assert "protected, at a premium of 10 %" in shown
    assert "premium for protection, $0.217392 per GPU-hour" in gridloom(
        "receipt", str(Job.objects.get().pk)
    )


def test_a_waiting_job_says_why_and_takes_a_change(gridloom, wanted, node, buyer, today):
    job = str(world.job(buyer, now=today, limits={"h100-sxm": 2_000_000}).pk)
    assert clearing.clear_market(now=today) == 0
    shown = gridloom("job", job)
    assert "waiting: h100-sxm costs 2.173914 a GPU-hour, and its limit is 2.00" in shown
    assert "0 raise the limit on h100-sxm to 2.176: 1 × h100-sxm, 2.17 an hour" in shown
    assert "it lists no change 7" in gridloom("accept", job, "7", code=1)
    assert "waiting for the next round" in gridloom("accept", job, "0")
    assert clearing.clear_market(now=today) == 1


def test_a_bid_is_stopped_and_resumed(gridloom, wanted, node):
    assert "Job " in gridloom("bid", *JOB, "--detach", "--name", "patient")
    job = str(Job.objects.get().pk)
    assert "stopped" in gridloom("stop", job)
    assert "stopped" in gridloom("watch", job)
    assert "$9.00" in gridloom("resume", job, "--budget", "9")


def test_what_is_refused_is_one_line_and_an_exit_code(gridloom, wanted, node):
    said = gridloom("bid", *JOB[:5], "--budget", "0", code=1)
    assert said.strip() == "Error: budget must be more than zero, not 0"
    assert "no job's id" in gridloom("job", "mine", code=1)
    assert "a parameter is like steps=100" in gridloom(
        "quote", "lora", "--budget", "1", "-s", "steps", code=1
    )
    assert "gives no answer" in gridloom(
        "login", "--url", "http://127.0.0.1:9", "--key", "k", code=1
    )


def test_a_folder_is_uploaded_and_what_came_of_it_downloaded(gridloom, ran, s3, tmp_path):
    data = tmp_path / "pairs"
    data.mkdir()
    for name, content in folders.TRAINING.items():
        (data / name).write_bytes(content)
    assert "pairs@2: 7 rows" in gridloom("upload", str(data))
    assert "pairs" in gridloom("datasets")

    digest = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
    storage.put(storage.file_key(ran.artifact.prefix, digest), b"0123456789")
    Artifact.objects.update(manifest=[{"path": "model.safetensors", "bytes": 10, "sha256": digest}])
    target = tmp_path / "model"
    gridloom("download", str(ran.job.pk), str(target))
    assert (target / "model.safetensors").read_bytes() == b"0123456789"


def test_recipes_datasets_and_models_are_shown_and_one_is_promoted(gridloom, ran):
    from tests.buyers.test_models import measured

    ran.artifact.evaluation = measured(dropped=True)
    ran.artifact.save()
    assert "lora" in gridloom("recipes")
    said = gridloom("recipes", "lora")
    assert "learning_rate" in said
    assert "Its peak; a cosine follows the warm-up" in said
    assert "there is no recipe 'alchemy'" in gridloom("recipes", "alchemy", code=1)
    said = gridloom("dataset", "pairs@1")
    assert '{"prompt": "2+2?", "completion": "It is 4."}' in said
    assert "there is no dataset 'nothing'" in gridloom("dataset", "nothing", code=1)
    said = gridloom("model", str(ran.job.pk))
    assert "dropped" in said
    assert "| Energy |" in said
    assert "got worse" in gridloom("promote", str(ran.artifact.pk), code=1)
    gridloom("promote", str(ran.artifact.pk), "--reason", "still better")
    ran.artifact.refresh_from_db()
    assert ran.artifact.state == "current"


def test_a_base_is_added_from_a_hub_and_its_licence_accepted(gridloom, ran, s3, settings, tmp_path):
    from django.utils import timezone

    from buyers import fetching
    from tests.buyers import hub as hubs

    with hubs.serving() as hub:
        settings.HUBS, settings.SCRATCH_DIR = {"huggingface": hub.url}, tmp_path / "scratch"
        hub.repos["makers/small"] = hubs.Repository(hubs.model(tmp_path))
        gridloom("base", "add", "makers/small@main", "--detach")
        fetching.work(timezone.now)
    said = gridloom("base", "list")
    assert "apache-2.0, to be accepted" in said
    assert "Accepted: apache-2.0" in gridloom("base", "accept", "makers/small", said="y\n")
    assert "to be accepted" not in gridloom("base", "list")


def test_a_log_can_not_steer_the_terminal(gridloom, ran):
    evil = "\x1b]0;owned\x07[bold]plain[/] [/]\n"
    telemetry.keep_log(ran.job.pk, ran.lease.epoch, [("stdout", 0, evil)])
    said = gridloom("log", str(ran.job.pk))
    assert "\x1b" not in said
    assert "[bold]plain[/] [/]" in said


def test_the_environment_counts_before_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("GRIDLOOM_URL", raising=False)
    monkeypatch.setenv("GRIDLOOM_KEY", "of-the-environment")
    config.save(config.Access("https://kept.example", "kept"))
    assert config.load() == config.Access("https://kept.example", "of-the-environment")


@pytest.mark.parametrize(
    ("micros", "shown"),
    [(0, "$0.00"), (MICRO, "$1.00"), (1, "$0.000001"), (-1_250_000, "-$1.25"),
     (1_234_567_890_000, "$1,234,567.89")],
)  # fmt: skip
def test_money_is_shown_to_the_last_micro_and_no_further(micros, shown):
    assert show.money(micros) == shown


def test_the_sdk_needs_nothing_of_the_site():
    """In a fresh interpreter where importing Django or any other package of ours fails."""
    blocked = ["django", "rest_framework", "agent", "marketplace", "scheduler", "suppliers",
               "buyers.models", "celery", "boto3", "torch"]  # fmt: skip
    code = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        "import buyers.sdk.cli, buyers.sdk\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_secret_is_set_from_standard_input_listed_and_forgotten(gridloom):
    said = gridloom("secret", "set", "HF_TOKEN", said="hf_0123456789\n")
    assert "HF_TOKEN is kept, for sites that are at least verified" in said
    assert "hf_0123456789" not in said
    assert "HF_TOKEN  at least verified  last used: never" in gridloom("secret", "list")
    assert "choose another" in gridloom("secret", "set", "PATH", said="x" * 20, code=1)
    assert "forgotten" in gridloom("secret", "forget", "HF_TOKEN")
    assert gridloom("secret", "list") == ""
