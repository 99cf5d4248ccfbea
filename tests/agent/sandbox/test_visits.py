"""A shell beside a running job: in its sandbox, under its limits, and gone with it."""

import os
import socket
import struct

import pytest

from agent import keeper
from agent.sandbox import visits
from tests.agent.sandbox.jobs import WITHIN_S, Assignment, each_rung, each_wall

WAITS = "import time\nprint('ready', flush=True)\nwhile True: time.sleep(0.05)"


@pytest.fixture
def job(assignment: Assignment, rung):
    assignment.start(rung, "python3", "-c", WAITS, env={"MINE": "the job's own"})
    assignment.until_it_said("ready")
    return assignment


def types(terminal: socket.socket, text: str) -> None:
    data = text.encode()
    terminal.sendall(b"d" + struct.pack(">H", len(data)) + data)


def shows(terminal: socket.socket, words: str) -> str:
    """All that is shown until the words come."""
    terminal.settimeout(WITHIN_S)
    shown = ""
    while words not in shown:
        data = terminal.recv(4096)
        assert data, shown
        shown += data.decode(errors="replace")
    return shown


@each_rung
def test_a_shell_sees_what_the_job_sees(job, rung):
    with visits.visit(job.folder) as terminal:
        terminal.sendall(b"w" + struct.pack(">HHH", 4, 33, 99))
        types(terminal, "echo $MINE in $(pwd | tail -c 5); stty size; id -u; echo do''ne\n")
        shown = shows(terminal, "done")
    assert "the job's own in " in shown
    assert "33 99" in shown
    if rung.wall == "root":
        assert f"\n{os.getuid()}\r" not in shown


@each_wall
def test_a_shell_is_walled_in_like_the_job(job, rung):
    with visits.visit(job.folder) as terminal:
        types(terminal, "ls /root /home/* 2>&1 | head -3; grep -c . /proc/net/dev; "
                        "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; echo do''ne\n")  # fmt: skip
        shown = shows(terminal, "done")
    assert "CapEff:\t0000000000000000" in shown
    assert "Seccomp:\t2" in shown
    assert "\n3\r" in shown  # two lines of heading, and a loopback


@each_rung
def test_a_shell_ends_by_itself_and_the_job_goes_on(job, rung):
    with visits.visit(job.folder) as terminal:
        types(terminal, "exit\n")
        terminal.settimeout(WITHIN_S)
        while terminal.recv(4096):
            pass
    assert keeper.read_status(job.folder).state == "running"


@each_rung
def test_a_shell_ends_with_its_job(job, rung):
    with visits.visit(job.folder) as terminal:
        types(terminal, "echo he''re\n")
        shows(terminal, "here")
        keeper.kill(job.folder)
        terminal.settimeout(WITHIN_S)
        while terminal.recv(4096):
            pass
    with pytest.raises(visits.NoVisit):
        visits.visit(job.folder)


# Sleeping children until there may be no more.
CROWD = """
import os, time
try:
    while True:
        if os.fork() == 0: time.sleep(1000)
except OSError: print("full", flush=True)
while True: time.sleep(0.05)
"""


@each_wall
def test_a_job_without_room_for_a_shell_goes_on_and_its_visitor_leaves(assignment, rung):
    assignment.start(rung, "python3", "-c", CROWD, pids=16)
    assignment.until_it_said("full")
    with pytest.raises(visits.NoVisit, match="too many are open"):
        visits.visit(assignment.folder)
    assert keeper.read_status(assignment.folder).state == "running"
