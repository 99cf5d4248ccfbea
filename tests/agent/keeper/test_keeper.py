"""Keepers and agents that die, start twice, or are told nonsense."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from agent import keeper
from agent import order as files
from agent.order import KeeperOrder, Limits, OrderError, Rung, Status
from agent.sandbox import launch
from agent.sandbox.workspace import WorkspaceError
from tests.agent.sandbox.jobs import PLAIN, Assignment, commands_with, each_rung, rungs, until

WALL = rungs()[-1]
CHECKOUT = Path(keeper.__file__).parent.parent


@each_rung
def test_a_keeper_survives_the_kill_of_its_agent(assignment: Assignment, rung):
    assignment.order(rung, ["sh", "-c", "echo ready; while [ ! -e go ]; do sleep 0.02; done"])
    script = (
        "import pathlib, sys, time; from agent import keeper\n"
        "keeper.start(pathlib.Path(sys.argv[1])); print('started', flush=True)\n"
        "time.sleep(1000)"
    )
    agent_process = subprocess.Popen(
        [sys.executable, "-c", script, str(assignment.folder)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert agent_process.stdout.readline() == b"started\n"
    assignment.until_it_said("ready")
    os.killpg(agent_process.pid, signal.SIGKILL)
    agent_process.wait()
    agent_process.stdout.close()
    until(lambda: keeper.read_status(assignment.folder).state == "running")
    (assignment.folder / "job" / "go").touch()
    status = assignment.end()
    assert (status.why, status.exit_code) == ("exited", 0)


@each_rung
def test_a_job_does_not_survive_the_kill_of_its_keeper(assignment, rung):
    marker = f"{assignment.folder.parent.name}-orphan"
    script = f"import os, time; os.fork(); print('ready', flush=True); time.sleep(999) # {marker}"
    assignment.start(rung, "python3", "-c", script)
    assignment.until_it_said("ready")
    os.kill(keeper.read_status(assignment.folder).keeper_pid, signal.SIGKILL)
    until(lambda: commands_with(marker) == [])
    status = assignment.end()
    assert (status.state, status.why) == ("gone", "keeper_lost")
    assert files.read(assignment.folder / files.STATUS, Status) == status
    groups = Path("/sys/fs/cgroup").glob(f"**/{launch.group_name(assignment.folder)}")
    assert list(groups) == []


def test_a_status_of_an_earlier_boot_is_gone(assignment):
    assignment.order(WALL, ["true"])
    last = Status(keeper_pid=1, boot_id="another", state="running", running_ms=5)
    files.write(assignment.folder / files.STATUS, last)
    status = keeper.read_status(assignment.folder)
    assert (status.state, status.why, status.running_ms) == ("gone", "rebooted", 5)


def test_a_status_that_went_with_the_machines_power_is_gone(assignment):
    assignment.order(WALL, ["true"])
    (assignment.folder / files.STATUS).write_bytes(b"")
    assert keeper.read_status(assignment.folder).why == "rebooted"
    with pytest.raises(OrderError, match="has been run already"):
        keeper.start(assignment.folder)


def test_a_folder_has_one_keeper(assignment):
    assignment.start(WALL, "sleep", "1000")
    first = keeper.read_status(assignment.folder).keeper_pid
    keeper.start(assignment.folder)
    assert keeper.read_status(assignment.folder).keeper_pid == first
    keeper_command = [sys.executable, "-m", "agent.keeper", str(assignment.folder)]
    second = subprocess.run(keeper_command, cwd=CHECKOUT, capture_output=True, check=False)
    assert second.returncode == 1
    assert b"Resource temporarily unavailable" in second.stderr


def test_an_assignment_is_run_once(assignment):
    assignment.run(WALL, "true")
    with pytest.raises(OrderError, match="has been run already"):
        keeper.start(assignment.folder)


def test_no_order_no_start(place):
    with pytest.raises(OrderError, match=r"order\.json is missing"):
        keeper.start(place)


def test_nothing_starts_before_anything_is_paid(assignment):
    assignment.order(WALL, ["true"])
    (assignment.folder / files.PAID_THROUGH).unlink()
    with pytest.raises(OrderError, match="must hold milliseconds"):
        keeper.start(assignment.folder)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("argv", [], "length >= 1"),
        ("argv", ["echo", "a\0b"], "NUL"),
        ("env", {"A=B": "1"}, "can't be the name"),
        ("inputs", {"../etc": "/etc"}, "use letters"),
        ("inputs", {"base": "relative"}, "absolute path"),
        ("save_ms", -1, "save_ms"),
        ("surprise", 1, "surprise"),
    ],
)
def test_an_order_that_makes_no_sense_says_where(assignment, field, value, complaint):
    order = json.loads(msgspec.json.encode(assignment.order(WALL, ["true"])))
    (assignment.folder / files.ORDER).write_text(json.dumps(order | {field: value}))
    with pytest.raises(OrderError, match=complaint):
        keeper.start(assignment.folder)


def test_a_job_that_books_more_disk_than_there_is_does_not_start(assignment):
    assignment.order(WALL, ["true"], disk_bytes=2**50)
    with pytest.raises(WorkspaceError, match="MiB free"):
        keeper.start(assignment.folder)


def test_a_gpu_that_is_not_there_is_named(assignment):
    status = assignment.run(WALL, "true", gpus=[250])
    assert (status.why, status.exit_code) == ("start_failed", None)
    assert "/dev/nvidia250 is missing" in status.detail


def test_the_agents_environment_stays_with_the_agent(assignment, monkeypatch):
    monkeypatch.setenv("GRIDLOOM_TEST_SECRET", "sesame")
    assignment.start(PLAIN, "sh", "-c", "env; echo ready; sleep 1000", env={"MINE": "1"})
    assignment.until_it_said("ready")
    assert "MINE=1" in assignment.stdout()
    assert "sesame" not in assignment.stdout()
    kept = keeper.read_status(assignment.folder).keeper_pid
    assert b"sesame" not in Path(f"/proc/{kept}/environ").read_bytes()


def test_readers_never_see_half_a_status(place):
    path = place / files.STATUS
    files.write(path, Status(keeper_pid=1, boot_id="b", state="running"))
    stop = threading.Event()

    def write_on() -> None:
        while not stop.is_set():
            for detail in ("short", "long " * 400):
                status = Status(keeper_pid=1, boot_id="b", state="running", detail=detail)
                files.write(path, status)

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        for _ in range(2000):
            assert files.read(path, Status) is not None
    finally:
        stop.set()
        writer.join()


def test_many_readers_do_not_keep_a_keeper_from_its_lock(assignment):
    stop = threading.Event()

    def ask_on() -> None:
        while not stop.is_set():
            keeper._is_kept(assignment.folder)

    askers = [threading.Thread(target=ask_on) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        assert assignment.run(WALL, "true").why == "exited"
    finally:
        stop.set()
        for asker in askers:
            asker.join()


def test_rungs_say_what_they_are():
    best = Rung(wall="root", limits="cgroup2", disk="image")
    least = Rung(wall="userns", limits="rlimits", disk="watchdog")
    assert best.name == "bubblewrap + cgroup v2 + quota"
    assert least.name == "bubblewrap + rlimits (weaker)"
    assert PLAIN.name.startswith("none")


def test_an_order_survives_its_file(place):
    limits = Limits(memory_bytes=2**30, disk_bytes=2**30, cpus=[0, 1])
    order = KeeperOrder(argv=["a"], rung=WALL, limits=limits, save_ms=1, grace_ms=2)
    files.write(place / files.ORDER, order)
    assert files.read(place / files.ORDER, KeeperOrder) == order
