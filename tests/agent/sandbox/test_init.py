"""Our process 1: whose interpreter runs it, and how its words are taken."""

import socket
from collections.abc import Iterator

import pytest

from agent.order import Network, Peer, Rung
from agent.sandbox import launch
from agent.sandbox.launch import Ended, Running
from tests.agent.sandbox.jobs import Assignment, each_rung


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


@pytest.mark.parametrize("alone", [True, False])
def test_a_gang_reaches_its_ranks_past_the_gate(place, alone):
    ranks = [Peer(address=f"10.77.0.{n}", lan=f"192.0.2.{n}", port=5000) for n in (1, 2, 3)]
    network = None if alone else Network(
        address="10.77.0.1", lan="192.0.2.1", port=5000, id=1, mtu=1400, peers=ranks[1:]
    )  # fmt: skip
    order = Assignment(place).order(
        Rung(wall="userns", limits="rlimits", disk="watchdog"), ["true"],
        egress=["a.example"], network=network,
    )  # fmt: skip
    told = launch.message(place, order, {}).split(b"\0")
    others = b"" if alone else b",10.77.0.1,10.77.0.2,10.77.0.3"
    for name in (b"NO_PROXY", b"no_proxy"):
        assert name + b"=localhost,127.0.0.1,::1" + others in told
