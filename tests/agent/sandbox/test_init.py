"""Our process 1: whose interpreter runs it, and how its words are taken."""

import socket
from collections.abc import Iterator

import pytest

from agent.sandbox.launch import Ended, Running
from tests.agent.sandbox.jobs import each_rung


@each_rung
def test_what_lies_in_a_jobs_own_environment_never_runs_as_init(assignment, rung):
    """It runs as the job alone, whose `python` it is."""
    folder = assignment.folder.parent / "env" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").write_text("#!/bin/sh\necho mine; id -u\n")
    (folder / "python").chmod(0o755)
    status = assignment.run(rung, "python", environment=str(folder.parent))
    assert (status.why, status.exit_code) == ("exited", 0), status.detail
    said = assignment.stdout().split()
    assert said[0] == "mine"
    if rung.wall == "root":
        assert said[1] != "0"


@pytest.fixture
def said() -> Iterator[tuple[Running, socket.socket]]:
    """The keeper's end of what init says, and init's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        running = Running(None, 0, None)
        running.control = ours.fileno()
        yield running, theirs


@pytest.mark.parametrize(
    "line",
    [b"started x", b"started -1", b"started 99999999999999999", b"started 1\nstarted 2", b"door",
     b"shell", b"exited", b"exited 1", b"exited a b", b"exited 1 2 3", b"exited 0 9999999999999",
     b"\xff\xfe", b"", b"started 1\nfailed by itself", b"x" * 4000],
)  # fmt: skip
def test_a_line_that_makes_no_sense_ends_the_job_and_not_the_keeper(said, line):
    running, theirs = said
    theirs.sendall(line + b"\n")
    assert not running.listen()
    assert (running.ended, running.failure) == (
        Ended(126, None), "its first process was meddled with",
    )  # fmt: skip


def test_no_end_of_a_line_is_waited_for_for_ever(said):
    running, theirs = said
    theirs.sendall(b"x" * 20_000)
    while running.listen():
        pass
    assert running.ended is not None


def test_what_init_says_is_taken(said):
    running, theirs = said
    theirs.sendall(b"started 5\nexited 3 0\n")
    assert running.listen()
    assert (running.started_up_ms, running.ended, running.failure) == (5, Ended(3, None), "")
