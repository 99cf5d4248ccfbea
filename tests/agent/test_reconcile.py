"""The one function that closes the gap: whatever is wanted and whatever is held, it converges."""

from dataclasses import replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as some

from agent.protocol import Desired, Drain, Wanted
from agent.reconcile import Abandon, AskToLeave, Forget, Held, Pay, Start, reconcile

IDS = [UUID(int=n) for n in range(1, 5)]
DRAINS = some.none() | some.builds(
    Drain, why=some.just("why"), grace_s=some.sampled_from([0.0, 5.0])
)
WANTED = some.builds(
    Wanted,
    id=some.sampled_from(IDS),
    epoch=some.integers(1, 3),
    spec=some.just("0" * 64),
    paid_through_ms=some.integers(0, 3).map(lambda n: n * 1000),
    drain=DRAINS,
)
DESIRED = some.lists(WANTED, unique_by=lambda one: one.id).map(lambda all: Desired(assignments=all))
HELD = some.dictionaries(
    some.sampled_from(IDS),
    some.builds(
        Held,
        epoch=some.integers(1, 3),
        paid_through_ms=some.integers(0, 3).map(lambda n: n * 1000),
        drain=DRAINS,
        is_gone=some.booleans(),
        is_settled=some.booleans(),
        is_abandoned=some.booleans(),
    ).map(lambda held: replace(held, is_settled=held.is_settled and held.is_gone)),
)


def _done(held: dict[UUID, Held], desired: Desired) -> dict[UUID, Held]:
    """What is held once every action has been done, as far as it is done at once."""
    held = dict(held)
    for action in reconcile(desired, held):
        match action:
            case Start(wanted):
                held[wanted.id] = Held(wanted.epoch, wanted.paid_through_ms)
            case Pay(id, paid):
                held[id] = replace(held[id], paid_through_ms=paid)
            case AskToLeave(id, drain):
                held[id] = replace(held[id], drain=drain)
            case Abandon(id):
                held[id] = replace(held[id], is_abandoned=True)
            case Forget(id):
                del held[id]
    return held


def _time_passes(held: dict[UUID, Held]) -> dict[UUID, Held]:
    """What was abandoned or asked to leave has ended by itself."""
    return {
        id: replace(one, is_gone=True, is_settled=True) if one.is_abandoned or one.drain else one
        for id, one in held.items()
    }


@given(DESIRED, HELD)
def test_what_has_been_done_is_not_asked_for_again(desired, held):
    assert not [
        action
        for action in reconcile(desired, _done(held, desired))
        # what was forgotten in favour of a newer epoch is started in the second round
        if not isinstance(action, Start)
    ]


@given(DESIRED, HELD)
def test_it_converges(desired, held):
    for _ in range(4):
        held = _time_passes(_done(held, desired))
    assert reconcile(desired, held) == []
    wanted = {one.id: one for one in desired.assignments}
    assert set(held) <= set(wanted)
    for one in wanted.values():
        if one.id in held and held[one.id].epoch == one.epoch and not held[one.id].is_gone:
            assert held[one.id].paid_through_ms >= one.paid_through_ms


@given(DESIRED, HELD)
def test_what_is_not_wanted_ends(desired, held):
    wanted = {one.id for one in desired.assignments}
    actions = reconcile(desired, held)
    for id, one in held.items():
        if id not in wanted and not one.is_abandoned:
            assert (Forget(id) if one.is_settled else Abandon(id)) in actions


@given(DESIRED, HELD)
def test_what_is_wanted_is_never_forgotten(desired, held):
    epochs = {one.id: one.epoch for one in desired.assignments}
    for action in reconcile(desired, held):
        if isinstance(action, Forget | Abandon):
            assert epochs.get(action.id, 99) > held[action.id].epoch


@given(DESIRED, HELD)
def test_an_older_epoch_changes_nothing(desired, held):
    for action in reconcile(desired, held):
        match action:
            case Start(wanted):
                assert wanted.id not in held
            case Pay(id) | AskToLeave(id):
                [want] = [one for one in desired.assignments if one.id == id]
                assert want.epoch == held[id].epoch


@given(DESIRED, HELD)
def test_paid_time_never_falls_and_patience_never_grows(desired, held):
    after = _done(held, desired)
    for id, before in held.items():
        if id in after:
            assert after[id].paid_through_ms >= before.paid_through_ms
            if before.drain:
                assert after[id].drain.grace_s <= before.drain.grace_s


@given(DESIRED, HELD)
def test_results_are_waited_for(desired, held):
    """Gone, but not all of it sent: as long as it is wanted, it stays."""
    wanted = {one.id: one.epoch for one in desired.assignments}
    for id, one in _done(held, desired).items():
        if id in held and wanted.get(id) == one.epoch and held[id].epoch == one.epoch:
            assert one.is_abandoned == held[id].is_abandoned
