"""How jobs end, and what their keeper says of it."""

import signal

from agent import keeper
from agent import order as files
from agent.sandbox.watchdog import descendants
from tests.agent.sandbox.jobs import MIB, Assignment, commands_with, each_rung, each_wall, until

IGNORE_TERM = "trap '' TERM; echo ready; while true; do sleep 0.02; done"
SAVE_ON_TERM = "trap 'echo saved > saved; exit 0' TERM; echo ready; while true; do sleep 0.02; done"


@each_rung
def test_a_job_that_succeeds_leaves_its_output_and_its_code(assignment: Assignment, rung):
    status = assignment.run(rung, "sh", "-c", "echo hello; echo oh >&2; echo 1 > result")
    assert (status.state, status.why, status.exit_code, status.exit_signal) == (
        *("gone", "exited", 0, None),
    )
    assert (assignment.stdout(), assignment.stderr()) == ("hello\n", "oh\n")


@each_rung
def test_a_job_that_fails_is_told_with_its_code(assignment, rung):
    status = assignment.run(rung, "sh", "-c", "exit 7")
    assert (status.why, status.exit_code, status.exit_signal) == ("exited", 7, None)


@each_rung
def test_a_job_that_crashes_is_told_with_its_signal(assignment, rung):
    status = assignment.run(rung, "sh", "-c", "kill -SEGV $$")
    assert (status.why, status.exit_code, status.exit_signal) == ("exited", None, signal.SIGSEGV)


@each_rung
def test_a_command_that_is_not_there_never_started(assignment, rung):
    status = assignment.run(rung, "no-such-command")
    assert (status.why, status.running_ms, status.started_up_ms) == ("start_failed", 0, 0)
    assert status.detail == "no-such-command: No such file or directory"


@each_rung
def test_drain_lets_the_job_save_and_leave(assignment, rung):
    assignment.start(rung, "sh", "-c", SAVE_ON_TERM, grace_ms=20_000)
    assignment.until_it_said("ready")
    keeper.drain(assignment.folder, "the owner wants the machine")
    status = assignment.end()
    assert (status.why, status.detail) == ("drain", "the owner wants the machine")
    assert (status.exit_code, status.exit_signal) == (0, None)


@each_rung
def test_a_job_deaf_to_sigterm_is_killed_after_its_grace(assignment, rung):
    assignment.start(rung, "sh", "-c", IGNORE_TERM)
    assignment.until_it_said("ready")
    before = keeper.read_status(assignment.folder)
    keeper.drain(assignment.folder, "enough", grace_ms=300)
    status = assignment.end()
    assert (status.why, status.exit_code, status.exit_signal) == ("drain", None, signal.SIGKILL)
    assert status.running_ms >= before.running_ms + 300


@each_rung
def test_kill_ends_it_at_once_whatever_it_does(assignment, rung):
    assignment.start(rung, "sh", "-c", IGNORE_TERM, grace_ms=60_000)
    assignment.until_it_said("ready")
    status = keeper.kill(assignment.folder)
    assert (status.state, status.why, status.exit_signal) == ("gone", "killed", signal.SIGKILL)


@each_rung
def test_daemons_of_the_job_do_not_survive_it(assignment, rung):
    marker = f"{assignment.folder.parent.name}-daemon"
    daemon = f"import os, time; os.fork() or os.setsid(); time.sleep(1000) # {marker}"
    script = (
        "import subprocess, sys, time\n"
        "for _ in range(2):\n"
        f"    subprocess.Popen([sys.executable, '-c', {daemon!r}], start_new_session=True)\n"
        "time.sleep(0.2); print('left', flush=True); time.sleep(1000)"
    )
    assignment.start(rung, "python3", "-c", script)
    assignment.until_it_said("left")
    until(lambda: len(commands_with(marker)) >= 4)
    status = keeper.kill(assignment.folder)
    assert status.detail == "the agent ended it"
    assert commands_with(marker) == []


@each_rung
def test_the_jobs_own_end_takes_its_children_with_it(assignment, rung):
    marker = f"{assignment.folder.parent.name}-child"
    script = f"import os, time; os.fork() or (os.setsid(), time.sleep(1000)) # {marker}"
    status = assignment.run(rung, "python3", "-c", script)
    assert (status.why, status.exit_code) == ("exited", 0)
    assert commands_with(marker) == []


@each_wall
def test_a_fork_bomb_is_bounded_and_ends_with_its_job(assignment, rung):
    bomb = (
        "import os, time\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    try: os.fork()\n"
        "    except OSError: time.sleep(0.01)\n"
    )
    assignment.start(rung, "python3", "-c", bomb, pids=40)
    assignment.until_it_said("ready")
    top = keeper.read_status(assignment.folder).keeper_pid
    until(lambda: len(descendants(top)) >= 40)
    assert len(descendants(top)) <= 40 + 3  # bubblewrap, our init, the keeper
    assert keeper.kill(assignment.folder).state == "gone"


@each_rung
def test_a_job_that_takes_more_memory_than_it_booked_is_ended_for_it(assignment, rung):
    hog = "import time\nheld = [bytearray(b'x') * 2**20 for _ in range(400)]\ntime.sleep(60)"
    status = assignment.run(rung, "python3", "-c", hog, memory_bytes=100 * MIB)
    assert (status.why, status.exit_signal) == ("memory", signal.SIGKILL)
    assert "100 MiB" in status.detail


@each_rung
def test_a_job_that_writes_more_than_it_booked_is_ended_for_it(assignment, rung):
    hog = (
        "import time\n"
        "for part in range(10):\n"
        "    open(f'part-{part}', 'wb').write(b'x' * 8 * 2**20)\n"
        "time.sleep(60)"
    )
    status = assignment.run(rung, "python3", "-c", hog, disk_bytes=32 * MIB)
    assert (status.why, status.exit_signal) == ("disk", signal.SIGKILL)
    assert "32 MiB booked" in status.detail


@each_rung
def test_files_without_a_name_count_as_well(assignment, rung):
    hog = (
        "import os, time\n"
        "for part in range(10):\n"
        "    fd = os.open(f'part-{part}', os.O_CREAT | os.O_WRONLY)\n"
        "    os.unlink(f'part-{part}')\n"
        "    os.write(fd, b'x' * 8 * 2**20)\n"
        "time.sleep(60)"
    )
    assert assignment.run(rung, "python3", "-c", hog, disk_bytes=32 * MIB).why == "disk"


@each_rung
def test_a_million_empty_files_are_too_many(assignment, rung):
    hog = "for n in range(10**6): open(f'file-{n}', 'w').close()\nimport time; time.sleep(60)"
    status = assignment.run(rung, "python3", "-c", hog, inodes=500)
    assert (status.why, status.detail) == ("disk", "more than 500 files and folders")


@each_wall
def test_nothing_hides_in_folders_too_deep_to_be_named(assignment, rung):
    dig = "import os, time\nfor _ in range(50): os.mkdir('d' * 200); os.chdir('d' * 200)\n"
    status = assignment.run(rung, "python3", "-c", dig + "time.sleep(60)")
    assert status.why == "disk"
    assert "can't be measured: File name too long" in status.detail


@each_rung
def test_a_flood_of_output_is_capped_and_its_end_kept(assignment, rung):
    flood = "for n in range(60_000): print('x' * 90, n)"
    status = assignment.run(rung, "python3", "-c", flood, log_bytes=MIB)
    assert (status.why, status.exit_code) == ("exited", 0)
    kept = [assignment.folder / name for name in ("stdout.log", "stdout.log.1")]
    assert sum(log.stat().st_size for log in kept) <= MIB
    assert assignment.stdout().endswith("x 59999\n")


@each_rung
def test_running_time_is_the_boot_clocks(assignment, rung):
    before = files.up_ms()
    status = assignment.run(rung, "sleep", "0.4")
    after = files.up_ms()
    assert before <= status.started_up_ms <= after
    assert 400 <= status.running_ms <= after - status.started_up_ms
