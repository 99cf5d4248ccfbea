"""Bounds by control groups, and what a job finds in its sandbox."""

import json
import os
from pathlib import Path

import pytest

from agent import keeper
from agent.order import Limits
from agent.sandbox import cgroups, launch
from tests.agent.sandbox.jobs import MIB, PLAIN, Assignment, each_rung, each_wall, rungs, until

CPUS = sorted(os.sched_getaffinity(0))


def bounded_rungs():
    return [rung for rung in rungs() if rung.limits != "rlimits"]


@each_wall
def test_a_job_stays_on_the_cpus_it_booked(assignment: Assignment, rung):
    ask = (
        "import os\n"
        "try: os.sched_setaffinity(0, range(1024))\n"
        "except OSError: pass\n"
        "print(os.sched_getaffinity(0))"
    )
    assignment.run(rung, "python3", "-c", ask, cpus=CPUS[-1:])
    assert assignment.stdout() == f"{set(CPUS[-1:])}\n"


@each_rung
def test_a_job_finds_what_it_was_promised(assignment, rung, place):
    (place / "dataset").mkdir()
    (place / "dataset" / "train.jsonl").write_text("rows\n")
    told = {"inputs": {"dataset": "/job/inputs/dataset"}, "output": "/job/output", "seed": 3}
    script = (
        "import json, os\n"
        "job = json.load(open(os.environ['GRIDLOOM_JOB']))\n"
        "rows = open(job['inputs']['dataset'] + '/train.jsonl').read()\n"
        "os.mkdir(job['output']); open(job['output'] + '/seen', 'w').write(rows)\n"
        "import agent.recipes, os.path\n"
        "print(os.getcwd() == os.environ['HOME'], job['seed'], os.environ['USER'])"
    )
    assignment.order(
        rung,
        ["python3", "-c", script],
        env={"GRIDLOOM_JOB": "/job/job.json"},
        inputs={"dataset": str(place / "dataset")},
    )
    (assignment.folder / "job" / "job.json").write_text(json.dumps(told))
    place.chmod(0o755)
    keeper.start(assignment.folder)
    status = assignment.end()
    assert status.exit_code == 0, assignment.stderr()
    assert assignment.stdout() == "True 3 job\n"
    assert (assignment.folder / "job" / "output" / "seen").read_text() == "rows\n"


@each_wall
def test_the_jobs_environment_does_not_reach_our_init(assignment, rung):
    """A library that the job preloads would otherwise run before init has given up its rights."""
    poison = {"LD_PRELOAD": "/job/poison.so", "PYTHONSTARTUP": "/job/x", "PYTHONHOME": "/job"}
    status = assignment.run(rung, "sh", "-c", "echo $LD_PRELOAD", env=poison)
    assert (status.exit_code, assignment.stdout()) == (0, "/job/poison.so\n")
    # the loader complains of the missing library once for each program of the job's, not for init
    assert "init" not in assignment.stderr()


@each_wall
def test_standard_output_can_be_opened_by_name(assignment, rung):
    status = assignment.run(rung, "sh", "-c", "echo hello > /dev/stdout; echo oh > /dev/stderr")
    assert (status.exit_code, assignment.stdout(), assignment.stderr()) == (0, "hello\n", "oh\n")


@pytest.mark.skipif(not bounded_rungs(), reason="control groups of version 1 take root")
def test_groups_bound_the_job_and_go_with_it(assignment):
    (rung,) = bounded_rungs()
    assignment.start(rung, "sleep", "1000", pids=33, memory_bytes=64 * MIB)
    until(lambda: keeper.read_status(assignment.folder).state == "running")
    name = launch.group_name(assignment.folder)
    folders = list(Path("/sys/fs/cgroup").glob(f"**/{name}"))
    limits = {path.name: path.read_text().strip() for folder in folders for path in folder.iterdir()
              if path.name in ("pids.max", "memory.limit_in_bytes", "memory.max")}  # fmt: skip
    assert limits.pop("pids.max") == "35"
    assert set(limits.values()) == {str(64 * MIB)}
    keeper.kill(assignment.folder)
    assert list(Path("/sys/fs/cgroup").glob(f"**/{name}")) == []


@pytest.mark.skipif(not bounded_rungs(), reason="control groups of version 1 take root")
def test_the_page_cache_of_large_files_is_no_reason_to_end_a_job(assignment):
    (rung,) = bounded_rungs()
    write = (
        "import os\n"
        "for part in range(4):\n"
        "    with open(f'{part}', 'wb') as file:\n"
        "        for _ in range(64): file.write(b'x' * 2**20)\n"
        "    open(f'{part}', 'rb').read()\n"
        "print('done')"
    )
    status = assignment.run(
        rung, "python3", "-c", write, memory_bytes=128 * MIB, disk_bytes=512 * MIB
    )
    assert (status.why, assignment.stdout()) == ("exited", "done\n")


def test_version_2_is_bounded_by_its_own_files(place, monkeypatch):
    """With folders for a hierarchy, since kernels that give version 1 the controllers have none."""
    monkeypatch.setattr(cgroups, "_delegated", lambda: place)
    limits = Limits(memory_bytes=64 * MIB, disk_bytes=MIB, cpus=[0, 2], pids=10)
    (place / "job").mkdir()
    for file in ("memory.swap.max", "cpuset.cpus"):
        (place / "job" / file).touch()
    groups = cgroups.create("job", limits, "cgroup2")
    written = {path.name: path.read_text() for path in (place / "job").iterdir()}
    assert written == {
        "memory.max": str(64 * MIB),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "12",
        "cpuset.cpus": "0,2",
    }
    (place / "job" / "memory.events").write_text("low 0\nmax 9\noom 3\noom_kill 2\n")
    assert groups.oom_kills() == 2


def test_a_host_has_control_groups_or_says_why_not():
    if bounded_rungs():
        assert cgroups.version() == bounded_rungs()[0].limits
    else:
        with pytest.raises(cgroups.NoCgroups, match=r"cgroup v2 .*; cgroup v1 "):
            cgroups.version()


def test_without_a_sandbox_paths_are_translated_and_nothing_else(assignment):
    status = assignment.run(PLAIN, "sh", "-c", "echo $A $B", env={"A": "/job/x", "B": "/jobs"})
    assert status.exit_code == 0
    assert assignment.stdout() == f"{assignment.folder}/job/x /jobs\n"
