"""What closes the gap between what the market wants of this node and what the node has. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from agent.protocol import Desired, Drain, Wanted


@dataclass(frozen=True)
class Held:
    """One assignment as the node has it."""

    epoch: int
    paid_through_ms: int
    drain: Drain | None = None
    """What has been asked of it already."""
    is_gone: bool = False
    is_settled: bool = False
    is_abandoned: bool = False


@dataclass(frozen=True)
class Start:
    """Take it up: fetch what it reads, then run it."""

    wanted: Wanted


@dataclass(frozen=True)
class Pay:
    """More running time is paid for."""

    id: UUID
    paid_through_ms: int


@dataclass(frozen=True)
class AskToLeave:
    """Checkpoint and leave within the grace."""

    id: UUID
    drain: Drain


@dataclass(frozen=True)
class Abandon:
    """Nobody wants it: kill what runs, send nothing more."""

    id: UUID


@dataclass(frozen=True)
class Forget:
    """All of it is over, on both sides: remove its folder."""

    id: UUID


Action = Start | Pay | AskToLeave | Abandon | Forget


def reconcile(desired: Desired, held: Mapping[UUID, Held]) -> list[Action]:
    """What to do so that what is held becomes what is wanted; called on every message and change.

    Doing an action and asking again does not ask for it again. An epoch older than the one held
    is an echo of the past and changes nothing; a newer one ends what is held and then starts.
    """
    wanted = {one.id: one for one in desired.assignments}
    actions: list[Action] = []
    for id, have in held.items():
        want = wanted.get(id)
        if want is None or want.epoch > have.epoch:
            if have.is_settled:
                actions.append(Forget(id))
            elif not have.is_abandoned:
                actions.append(Abandon(id))
        elif want.epoch == have.epoch and not have.is_gone:
            actions += _adjust(want, have)
    # What is to leave before it came is never taken up: the market sees that it isn't there.
    actions += [Start(one) for one in wanted.values() if one.id not in held and not one.drain]
    return actions


def _adjust(want: Wanted, have: Held) -> list[Action]:
    actions: list[Action] = []
    if want.paid_through_ms > have.paid_through_ms:
        actions.append(Pay(want.id, want.paid_through_ms))
    if want.drain and (have.drain is None or want.drain.grace_s < have.drain.grace_s):
        actions.append(AskToLeave(want.id, want.drain))
    return actions
