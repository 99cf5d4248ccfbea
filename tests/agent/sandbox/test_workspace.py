"""A work folder that is a file system of its own. Each test's agent is a process of its own:
parting mounts is for the start of a process, before it has threads."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent import keeper
from agent import order as files
from agent.order import Rung
from agent.sandbox import outputs, workspace
from tests.agent.sandbox.jobs import IS_ROOT, MIB, Assignment, rungs, until

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="mounting a work folder takes root")

CHECKOUT = Path(keeper.__file__).parent.parent
QUOTA = Rung(wall="root", limits=rungs()[-1].limits if IS_ROOT else "rlimits", disk="image")
AGENT = """
import pathlib, sys
from agent import keeper, order
from agent.sandbox import outputs, workspace
folder = pathlib.Path(sys.argv[1])
assert workspace.own_mounts() and workspace.why_no_image() == ""
"""


@pytest.fixture(autouse=True)
def images_work_here():
    done = subprocess.run(
        [*(sys.executable, "-c"), AGENT + "print(workspace.why_no_image())", "/tmp"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"this root may not mount loop devices: {done.stderr[-200:]}")


def agent(folder: Path, script: str) -> str:
    """Runs an agent's script to its end; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", AGENT + script, str(folder)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_nowhere_mounted(folder: Path) -> bool:
    """Neither in our mounts, nor held by any loop device."""
    images = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    return str(folder) not in Path("/proc/self/mounts").read_text() + "".join(images)


def test_the_kernel_stops_a_job_at_the_disk_it_booked(assignment: Assignment):
    hog = (
        "import os\nwritten = 0\nout = open('out', 'wb', buffering=0)\n"
        "other = open('other', 'wb', buffering=0)\n"
        "try:\n"
        "    while True: written += out.write(b'x' * 65536) + other.write(b'y' * 65536)\n"
        "except OSError as error: print(written, error.strerror)"
    )
    assignment.order(QUOTA, ["python3", "-c", hog], disk_bytes=100 * MIB)
    told = agent(
        assignment.folder,
        "keeper.start(folder); print(keeper.wait(folder, 60))\n"
        "print([file.path for file in outputs.walk(folder/'job', '.', max_bytes=2**40, max_files=9)])",
    )
    written, why = re.match(r"(\d+) (.*)", assignment.stdout()).groups()
    assert why == "No space left on device"
    assert 100 * MIB <= int(written) <= 110 * MIB
    assert "why='exited'" in told
    assert "['other', 'out']" in told
    assert not (assignment.folder / "job" / "out").exists(), "the mount leaked into our tree"
    until(lambda: is_nowhere_mounted(assignment.folder))


def test_the_disk_that_a_job_has_booked_is_its_own_from_the_beginning(assignment):
    assignment.order(QUOTA, ["true"], disk_bytes=100 * MIB)
    told = agent(
        assignment.folder,
        "keeper.start(folder); print((folder / workspace.IMAGE).stat().st_blocks * 512)\n"
        "keeper.wait(folder, 60)",
    )
    assert int(told) >= 100 * MIB


def test_files_that_were_there_before_are_there_inside(assignment):
    assignment.order(QUOTA, ["sh", "-c", "cat job.json folder/file; rm job.json"])
    job = assignment.folder / "job"
    (job / "folder").mkdir()
    (job / "folder" / "file").write_text("two\n")
    (job / "job.json").write_text("one\n")
    agent(assignment.folder, "keeper.start(folder); keeper.wait(folder, 60)")
    assert assignment.stdout() == "one\ntwo\n"


def test_an_agent_killed_and_started_anew_sees_the_work_of_its_job(assignment):
    script = "echo work > result; echo ready; while [ ! -e go ]; do sleep 0.02; done; echo more >> result"
    assignment.order(QUOTA, ["sh", "-c", script])
    first = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            AGENT + "import time; keeper.start(folder); time.sleep(1000)",
            str(assignment.folder),
        ],
        cwd=CHECKOUT,
        start_new_session=True,
    )
    assignment.until_it_said("ready")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    told = agent(
        assignment.folder,
        "print(keeper.read_status(folder).state, (folder/'job/result').read_text().split())\n"
        "(folder/'job/go').touch(); print(keeper.wait(folder, 60).why)\n"
        "print((folder/'job/result').read_text().split())\n"
        "outputs.clean(folder); print(folder.exists())",
    )
    assert told.splitlines() == ["running ['work']", "exited", "['work', 'more']", "False"]
    until(lambda: is_nowhere_mounted(assignment.folder))


def test_a_start_that_was_interrupted_goes_on_without_losing_a_file(assignment):
    assignment.order(QUOTA, ["cat", "job.json"])
    (assignment.folder / "job.files").mkdir()
    (assignment.folder / "job.files" / "job.json").write_text("here\n")
    (assignment.folder / workspace.IMAGE).write_bytes(b"half an image")
    agent(assignment.folder, "keeper.start(folder); keeper.wait(folder, 60)")
    assert assignment.stdout() == "here\n"


def test_without_mounts_of_its_own_an_agent_gets_no_image(assignment):
    assignment.order(QUOTA, ["true"])
    with pytest.raises(workspace.WorkspaceError, match="no mounts of its own"):
        keeper.start(assignment.folder)
    assert files.read(assignment.folder / files.STATUS, files.Status) is None


def test_cleaning_takes_mount_and_image_with_it(assignment):
    assignment.order(QUOTA, ["sleep", "1000"])
    agent(
        assignment.folder,
        "keeper.start(folder); keeper.kill(folder); outputs.clean(folder)\n"
        "assert not folder.exists()",
    )
    outputs.clean(assignment.folder)
    until(lambda: is_nowhere_mounted(assignment.folder))
