"""The lives of things: nothing happens that is not in a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.core.errors import InvalidTransition
from marketplace.core.states import JOB, JOB_EVENT_AFTER, LEASE, MACHINES, NODE


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
class TestEachMachine:
    def test_can_reach_every_state_from_its_first(self, machine):
        reached, before = {machine.initial}, set()
        while reached != before:
            before = set(reached)
            reached |= {t.target for t in machine.transitions if t.sources & reached}
        assert reached == set(machine.states)

    def test_names_each_event_once(self, machine):
        events = [transition.event for transition in machine.transitions]
        assert len(events) == len(set(events))

    def test_can_end(self, machine):
        # Models are kept for good; one may be current again and again.
        assert machine.final or machine.name == "artifact"

    def test_knows_no_event_that_is_not_in_its_table(self, machine):
        with pytest.raises(InvalidTransition, match="knows no event"):
            machine.after(machine.initial, "explode")


@given(st.sampled_from(MACHINES), st.lists(st.integers(0, 10), max_size=30))
def test_a_life_never_leaves_its_table(machine, choices):
    state = machine.initial
    for choice in choices:
        event = machine.transitions[choice % len(machine.transitions)].event
        try:
            state = machine.after(state, event)
        except InvalidTransition:
            assert state not in machine.transition(event).sources
        assert state in machine.states


def test_what_is_retired_cancelled_or_done_stays_so():
    assert NODE.final == {"retired"}
    assert JOB.final == {"succeeded", "failed", "cancelled"}
    assert LEASE.final == {"ended"}


def test_every_end_of_a_running_lease_means_something_for_its_job():
    for event in JOB_EVENT_AFTER.values():
        assert JOB.after("running", event)


def test_a_stopped_job_can_be_resumed_and_a_failed_one_can_not():
    assert JOB.after("stopped", "resume") == "queued"
    with pytest.raises(InvalidTransition, match="a failed job cannot resume"):
        JOB.after("failed", "resume")
