"""The supervisor: readiness, order, deaths that are noticed, nobody left behind. Real processes."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from marketplace.devstack.process import Child, Service, StackError, Stage
from marketplace.devstack.supervisor import Supervisor, need_space

# Says "ready", and writes its name into a shared file when it is told to stop.
POLITE = """
import signal, sys
def leave(number, frame):
    with open(sys.argv[2], "a") as log:
        log.write(sys.argv[1] + " ")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
while True:
    signal.pause()
"""
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""


def said_ready(child: Child) -> bool:
    return child.has_said("ready")


def service(name: str, stage: Stage, code: str, *arguments: object, **changes: object) -> Service:
    argv = (sys.executable, "-c", code, *map(str, arguments))
    return Service(name=name, stage=stage, argv=argv, env={}, is_ready=said_ready, **changes)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path, told):
    with Supervisor(tmp_path / "logs", told.append) as it:
        yield it


def wait_for_end(pid: int, seconds: float = 20) -> bool:
    """Whether a process, of anybody's, ends in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def kill(supervisor: Supervisor, name: str) -> None:
    """As a crash would; returns when the kernel has noticed."""
    pid = supervisor.pid(name)
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid)


def test_services_stop_from_the_top(supervisor, tmp_path):
    order = tmp_path / "order"
    supervisor.start(
        *(
            service(stage.name, stage, POLITE, stage.name, order)
            for stage in (Stage.POSTGRES, Stage.BEAT, Stage.WEB, Stage.S3, Stage.NODES)
        )
    )
    supervisor.stop()
    assert order.read_text().split() == ["BEAT", "NODES", "WEB", "S3", "POSTGRES"]


def test_a_stop_can_end_at_a_stage(supervisor, tmp_path):
    order = tmp_path / "order"
    supervisor.start(
        service("web", Stage.WEB, POLITE, "web", order),
        service("beat", Stage.BEAT, POLITE, "beat", order),
    )
    supervisor.stop(down_to=Stage.NODES)
    assert order.read_text().split() == ["beat"]
    supervisor.check()


def test_one_that_ignores_its_signal_is_killed_after_its_grace(supervisor):
    supervisor.start(service("deaf", Stage.S3, DEAF, grace_s=0.2))
    pid = supervisor.pid("deaf")
    supervisor.stop()
    assert wait_for_end(pid)


def test_what_a_service_leaves_in_its_session_ends_with_it(supervisor, tmp_path):
    code = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {DEAF!r}])
print("ready", child.pid, flush=True)
child.wait()
"""
    supervisor.start(service("parent", Stage.WEB, code))
    # `ready` comes from both; the parent's line has the number
    log = (tmp_path / "logs" / "parent.log").read_text()
    orphan = int(log.split("ready ")[1].split()[0])
    supervisor.stop()
    assert wait_for_end(orphan)


def test_a_death_is_noticed_and_named_with_the_end_of_the_log(supervisor):
    supervisor.start(service("fragile", Stage.WEB, "print('ready', flush=True); input()"))
    assert wait_for_end(supervisor.pid("fragile"))  # its standard input is empty
    with pytest.raises(StackError, match=r"(?s)fragile ended with code 1.*EOFError"):
        supervisor.check()


def test_one_that_dies_before_it_is_ready_is_named(supervisor):
    with pytest.raises(StackError, match=r"(?s)stillborn ended with code 3.*out of luck"):
        supervisor.start(
            service("stillborn", Stage.WEB, "import sys; print('out of luck'); sys.exit(3)")
        )


def test_one_that_never_gets_ready_is_named(supervisor):
    slow = service("slow", Stage.WEB, "print('hm', flush=True); import time; time.sleep(60)",
                   ready_s=0.5)  # fmt: skip
    with pytest.raises(StackError, match="slow was not ready within"):
        supervisor.start(slow)


def test_a_program_that_is_not_there_is_named(supervisor):
    absent = Service("absent", Stage.WEB, ("/no/such/program",), {}, said_ready)
    with pytest.raises(StackError, match="absent can't be started"):
        supervisor.start(absent)


def test_a_full_disk_is_told_from_the_log(supervisor):
    code = "raise OSError(28, 'No space left on device')"
    with pytest.raises(StackError, match="The disk is full: make room"):
        supervisor.start(service("full", Stage.POSTGRES, code))


def test_one_without_state_is_started_again_and_that_is_said(supervisor, told, tmp_path):
    supervisor.start(service("web", Stage.WEB, POLITE, "web", tmp_path / "order", restarts=True))
    first = supervisor.pid("web")
    kill(supervisor, "web")
    supervisor.check()
    assert supervisor.pid("web") != first
    assert "web was killed by signal 9" in told[0]
    assert "started again" in told[0]


def test_one_that_keeps_dying_is_not_started_for_ever(supervisor, tmp_path):
    supervisor.start(service("web", Stage.WEB, POLITE, "web", tmp_path / "order", restarts=True))
    for _ in range(3):
        kill(supervisor, "web")
        supervisor.check()
    kill(supervisor, "web")
    with pytest.raises(StackError, match="web was killed"):
        supervisor.check()


def test_a_command_runs_to_its_end_and_its_words_come_back(supervisor):
    ends_well = Service(
        "hello", Stage.WEB, (sys.executable, "-c", "print('hello')"), {},
        is_ready=lambda child: child.exit_code() == 0,
    )  # fmt: skip
    assert supervisor.run(ends_well) == ["hello\n"]
    supervisor.check()


def test_a_killed_supervisor_leaves_nobody_behind(tmp_path):
    code = f"""
import sys
from pathlib import Path
from marketplace.devstack.process import Service, Stage
from marketplace.devstack.supervisor import Supervisor
with Supervisor(Path({str(tmp_path)!r})) as supervisor:
    supervisor.start(Service(
        "child", Stage.WEB, (sys.executable, "-c", {DEAF!r}), {{}},
        is_ready=lambda child: child.has_said("ready"),
    ))
    print(supervisor.pid("child"), flush=True)
    sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    assert wait_for_end(child)


def test_a_disk_with_too_little_room_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(StackError, match=r"is nearly full: .* MiB free, .* MiB needed. Make room"):
        need_space(tmp_path, needed=1 << 60)


def test_a_child_sees_only_what_it_is_told(supervisor, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for children")
    code = "import os; print(sorted(os.environ), 'ready', flush=True); input()"
    supervisor.start(service("web", Stage.WEB, code))
    assert "AWS_SECRET" not in (tmp_path / "logs" / "web.log").read_text()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to choose from")
def test_a_service_stays_on_its_cores(supervisor, tmp_path):
    core = max(os.sched_getaffinity(0))
    code = "import os; print(os.sched_getaffinity(0), 'ready', flush=True); input()"
    supervisor.start(service("node", Stage.NODES, code, cpus=frozenset({core})))
    assert (tmp_path / "logs" / "node.log").read_text().startswith(f"{{{core}}}")
