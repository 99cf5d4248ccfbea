"""The stack: what it remembers, what it is given, what it tells to whom, and one at a time."""

import fcntl
import json
import os
import subprocess
import sys
import time

import pytest
import uvicorn

from agent.protocol import MAX_MESSAGE
from marketplace.devstack import stack as stacks
from marketplace.devstack.live import end_jobs, follow_market
from marketplace.devstack.process import StackError
from marketplace.devstack.stack import opened, split_cores

MINE = ("DATABASE_URL", "REDIS_URL", "DEBUG")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The suite's own settings name services; a user's environment rarely does."""
    for name in list(os.environ):
        if name in MINE or name.startswith(("S3_", "STRIPE_", "POLICY_")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def told() -> list[str]:
    return []


def test_ports_and_secrets_are_kept_between_starts(tmp_path, told):
    with opened(tmp_path, told.append, anywhere=True) as first:
        pass
    with opened(tmp_path, told.append) as second:
        pass
    assert second.port == first.port
    assert second.secrets == first.secrets
    assert (tmp_path / "stack.json").stat().st_mode & 0o077 == 0
    assert told == []


def test_uvicorn_knows_all_that_it_is_told(tmp_path, told):
    with opened(tmp_path, told.append, anywhere=True) as stack:
        web, agents = (
            uvicorn.main.make_context("uvicorn", list(service.argv[3:])).params
            for service in stack.site_services()[:2]
        )
    assert (web["lifespan"], agents["lifespan"]) == ("on", "on")
    # One small message may not unfold to a large one, nor each idle node cost a compressor.
    assert (agents["ws"], agents["ws_per_message_deflate"]) == ("websockets-sansio", False)
    assert agents["ws_max_size"] == 2 * MAX_MESSAGE


def test_two_stacks_share_no_secret(tmp_path, told):
    with (
        opened(tmp_path / "a", told.append, anywhere=True) as a,
        opened(tmp_path / "b", told.append, anywhere=True) as b,
    ):
        assert not set(a.secrets.values()) & set(b.secrets.values())


def test_a_second_start_in_one_folder_is_refused_while_the_first_runs(tmp_path, told):
    with (
        opened(tmp_path, told.append, anywhere=True),
        pytest.raises(StackError, match=rf"runs already \(process {os.getpid()}\)"),
        opened(tmp_path, told.append, anywhere=True),
    ):
        pass


def test_a_damaged_memory_is_refused_with_the_way_out(tmp_path, told):
    (tmp_path / "stack.json").write_text("{")
    with (
        pytest.raises(StackError, match=r"stack\.json is damaged. `make clean`"),
        opened(tmp_path, told.append),
    ):
        pass


def test_a_service_that_the_environment_names_is_used_and_not_started(tmp_path, told, environment):
    environment.setenv("DATABASE_URL", "postgresql://me@db.example/market")
    with opened(tmp_path, told.append, anywhere=True) as stack:
        assert stack.environment()["DATABASE_URL"] == "postgresql://me@db.example/market"
        assert {s.name for s in stack.data_services()} == {"valkey", "s3", "stripe"}
    assert told == ["Using the PostgreSQL that DATABASE_URL names, not one of our own."]


def test_a_test_key_of_stripe_replaces_the_stand_in(tmp_path, told, environment):
    environment.setenv("STRIPE_SECRET_KEY", "sk_test_of_mine")
    environment.setenv("DATABASE_URL", "postgresql://me@db.example/market")
    with opened(tmp_path, told.append, anywhere=True) as stack:
        assert "STRIPE_API_BASE" not in stack.environment()
        assert {s.name for s in stack.data_services()} == {"valkey", "s3"}
    assert any("Stripe itself" in line for line in told)


def test_a_live_key_of_stripe_is_refused(tmp_path, told, environment):
    environment.setenv("STRIPE_SECRET_KEY", "sk_live_dear")
    with pytest.raises(StackError, match="not a test key"), opened(tmp_path, told.append):
        pass


def test_a_supplier_s_agent_is_told_none_of_the_market_s_secrets(tmp_path, told, environment):
    environment.setenv("S3_SECRET_KEY", "mine")
    environment.setenv("CUDA_VISIBLE_DEVICES", "1")
    with opened(tmp_path, told.append, anywhere=True) as stack:
        node = stack.node("aurora", frozenset())
        shown = json.dumps(dict(node.env)) + " ".join(node.argv)
        assert not [name for name, secret in stack.secrets.items() if secret in shown]
        assert "mine" not in node.env.values()
        assert node.env["CUDA_VISIBLE_DEVICES"] == "1"


def test_no_secret_stands_on_a_command_line(tmp_path, told, environment):
    """Anybody on the machine may read those."""
    environment.setenv("DATABASE_URL", "postgresql://me@db.example/market")
    with opened(tmp_path, told.append, anywhere=True) as stack:
        lines = [" ".join(s.argv) for s in [*stack.data_services(), *stack.site_services()]]
        assert not [line for line in lines for secret in stack.secrets.values() if secret in line]


def test_cores_are_split_without_overlap():
    mine = os.sched_getaffinity(0)
    parts = split_cores(2)
    if len(mine) == 1:
        assert parts == [frozenset(mine)] * 2
    else:
        assert parts[0] | parts[1] == mine
        assert not parts[0] & parts[1]


def test_a_nearly_full_disk_is_refused_before_anything_starts(tmp_path, told, monkeypatch):
    def refuse(folder):
        raise StackError(f"The disk under {folder} is nearly full")

    monkeypatch.setattr(stacks, "need_space", refuse)
    with pytest.raises(StackError, match="nearly full"), opened(tmp_path, told.append):
        pass
    assert not (tmp_path / "stack.json").exists()


def test_a_node_finds_its_market_on_another_port(tmp_path):
    node = tmp_path / "aurora"
    node.mkdir()
    old = {"agents_url": "http://127.0.0.1:8010", "market": "http://127.0.0.1:8010",
           "server": "127.0.0.1:8010", "name": "aurora"}  # fmt: skip
    (node / "config.json").write_text(json.dumps(old))
    follow_market(tmp_path, "http://127.0.0.1:8011")
    assert json.loads((node / "config.json").read_text()) == {
        "agents_url": "http://127.0.0.1:8011",
        "market": "http://127.0.0.1:8011",
        "server": "127.0.0.1:8011",
        "name": "aurora",
    }


def test_a_stack_that_stops_asks_the_jobs_that_outlived_their_agents_to_save(tmp_path):
    folder = tmp_path / "aurora" / "assignments" / "a-job"
    folder.mkdir(parents=True)
    (folder / "keeper.lock").touch()
    finished = tmp_path / "aurora" / "assignments" / "finished"
    finished.mkdir()
    (finished / "keeper.lock").touch()
    keeper = """
import fcntl, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
with (folder / "keeper.lock").open() as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("kept", flush=True)
    while not (folder / "drain.json").exists():
        time.sleep(0.01)
"""
    with subprocess.Popen(
        [sys.executable, "-c", keeper, folder], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "kept\n"
        end_jobs(tmp_path, grace_s=20)
        assert process.wait(20) == 0
    assert json.loads((folder / "drain.json").read_text())["grace_ms"] == 20_000
    assert not (finished / "drain.json").exists()


def test_a_keeper_that_does_not_leave_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("marketplace.devstack.live._KEEPER_ENDS_WITHIN_S", 0)
    folder = tmp_path / "aurora" / "assignments" / "a-job"
    folder.mkdir(parents=True)
    with (folder / "keeper.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        end_jobs(tmp_path, grace_s=0.1)
        assert time.monotonic() - began < 20
