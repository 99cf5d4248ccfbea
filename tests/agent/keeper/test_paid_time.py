"""A job runs as long as it is paid for, whether or not an agent is there."""

import signal

from agent import keeper
from agent import order as files
from tests.agent.keeper.test_ends import IGNORE_TERM, SAVE_ON_TERM
from tests.agent.sandbox.jobs import Assignment, each_rung, rungs, until

WALL = rungs()[-1]


@each_rung
def test_a_job_saves_before_its_paid_time_ends(assignment: Assignment, rung):
    assignment.start(rung, "sh", "-c", SAVE_ON_TERM, paid_ms=20_000, save_ms=19_200)
    status = assignment.end()
    assert (status.why, status.exit_code) == ("unpaid", 0)
    assert status.detail == "paid for 20000 ms"
    assert 800 <= status.running_ms < 20_000


@each_rung
def test_a_job_that_goes_on_is_killed_when_its_paid_time_ends(assignment, rung):
    assignment.start(rung, "sh", "-c", IGNORE_TERM, paid_ms=700, save_ms=300)
    status = assignment.end()
    assert (status.why, status.exit_code, status.exit_signal) == ("unpaid", None, signal.SIGKILL)
    assert status.running_ms >= 700


def test_more_time_paid_before_the_save_means_that_nothing_happens(assignment):
    count = "trap 'echo TERM' TERM; echo ready; for n in 1 2 3 4 5 6; do sleep 0.3; done"
    assignment.start(WALL, "sh", "-c", count, paid_ms=1_500, save_ms=200)
    assignment.until_it_said("ready")
    files.write_paid_through(assignment.folder, 60_000)
    status = assignment.end()
    assert (status.why, status.exit_code) == ("exited", 0)
    assert "TERM" not in assignment.stdout()


def test_time_paid_after_the_save_began_does_not_take_it_back(assignment):
    assignment.start(WALL, "sh", "-c", IGNORE_TERM, paid_ms=1_200, save_ms=800)
    until(lambda: keeper.read_status(assignment.folder).state == "draining")
    files.write_paid_through(assignment.folder, 60_000)
    status = assignment.end()
    assert (status.why, status.exit_signal) == ("unpaid", signal.SIGKILL)


def test_what_was_never_paid_never_runs_on(assignment):
    assignment.start(WALL, "sh", "-c", IGNORE_TERM, paid_ms=0, save_ms=0)
    assert assignment.end().why == "unpaid"


def test_a_figure_that_cant_be_read_leaves_the_last_one(assignment):
    assignment.start(WALL, "sh", "-c", IGNORE_TERM, paid_ms=1_200, save_ms=200)
    assignment.until_it_said("ready")
    (assignment.folder / files.PAID_THROUGH).write_text("a lot")
    status = assignment.end()
    assert (status.why, status.detail) == ("unpaid", "paid for 1200 ms")


def test_a_drain_does_not_outlast_the_paid_time(assignment):
    assignment.start(WALL, "sh", "-c", IGNORE_TERM, paid_ms=1_000, save_ms=0)
    assignment.until_it_said("ready")
    keeper.drain(assignment.folder, "the owner", grace_ms=60_000)
    status = assignment.end()
    assert (status.why, status.exit_signal) == ("drain", signal.SIGKILL)
    assert status.running_ms < 30_000
