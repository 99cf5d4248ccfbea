"""The lives of things, as tables (DESIGN §4): machine → event → from-states → to-state.

Anything not listed here cannot happen. The tables are data, so tests walk them, pages draw
them, and `marketplace.models.advance` is the only code that acts on them.
"""

from dataclasses import dataclass
from typing import Final

from marketplace.core.errors import InvalidTransition


@dataclass(frozen=True)
class Transition:
    """`event` takes a row in any of `sources` to `target`."""

    event: str
    sources: frozenset[str]
    target: str


@dataclass(frozen=True)
class Machine:
    """One kind of life: where it begins, how it may go on, and which states are final."""

    name: str
    initial: str
    transitions: tuple[Transition, ...]

    @property
    def states(self) -> tuple[str, ...]:
        """Every state, the initial one first, in the order in which events lead to them."""
        seen = {self.initial: None}
        for transition in self.transitions:
            seen.update(dict.fromkeys(sorted(transition.sources)))
            seen[transition.target] = None
        return tuple(seen)

    @property
    def final(self) -> frozenset[str]:
        """The states that no event leaves."""
        left = frozenset[str]().union(*(t.sources for t in self.transitions))
        return frozenset(self.states) - left

    def transition(self, event: str) -> Transition:
        """The one transition named `event`; raises InvalidTransition for an unknown name."""
        for transition in self.transitions:
            if transition.event == event:
                return transition
        raise InvalidTransition(f"a {self.name} knows no event {event!r}")

    def after(self, state: str, event: str) -> str:
        """The state that `event` leads to from `state`; raises InvalidTransition if none."""
        transition = self.transition(event)
        if state not in transition.sources:
            raise InvalidTransition(f"a {state} {self.name} cannot {event}")
        return transition.target


def _machine(name: str, initial: str, *rows: tuple[str, str, str]) -> Machine:
    return Machine(
        name,
        initial,
        tuple(Transition(event, frozenset(sources.split()), to) for sources, event, to in rows),
    )


# Eligibility only: lost, busy and stale are facts beside it.
NODE: Final = _machine(
    "node",
    "pending",
    ("pending quarantined", "verify", "ready"),
    ("pending ready draining", "quarantine", "quarantined"),
    ("ready", "drain", "draining"),
    ("draining", "undrain", "ready"),
    ("pending quarantined ready draining", "retire", "retired"),
)

# A new price is a new offer.
OFFER: Final = _machine(
    "offer",
    "open",
    ("open", "pause", "paused"),
    ("paused", "resume", "open"),
    ("open paused", "close", "closed"),
)

JOB: Final = _machine(
    "job",
    "queued",
    ("queued", "place", "placed"),
    ("placed", "start", "running"),
    ("placed running", "requeue", "queued"),
    ("running", "succeed", "succeeded"),
    ("queued placed running", "fail", "failed"),
    ("queued placed running", "stop", "stopped"),
    ("stopped", "resume", "queued"),
    ("queued placed running stopped", "cancel", "cancelled"),
)

# One attempt of one job on one gang at one price.
LEASE: Final = _machine(
    "lease",
    "reserved",
    ("reserved", "start", "starting"),
    ("starting", "run", "running"),
    ("running", "drain", "draining"),
    ("reserved starting running draining", "end", "ended"),
)

# A node's share of a lease. The agent may report several steps at once (a job that started and
# ended between two heartbeats), so an event may skip states, but never go back.
ASSIGNMENT: Final = _machine(
    "assignment",
    "reserved",
    ("reserved", "accept", "accepted"),
    ("reserved accepted", "start", "starting"),
    ("reserved accepted starting", "run", "running"),
    ("reserved accepted starting running", "drain", "draining"),
    ("reserved accepted starting running draining", "go", "gone"),
)

PAYOUT: Final = _machine(
    "payout",
    "requested",
    ("requested", "approve", "approved"),
    ("approved", "send", "sent"),
    ("sent", "settle", "paid"),
    ("requested", "reject", "rejected"),
    ("sent", "bounce", "failed"),
)

TOP_UP: Final = _machine(
    "top_up",
    "open",
    ("open", "credit", "credited"),
    ("open", "expire", "expired"),
)

# A base's way from a hub to our storage.
FETCH: Final = _machine(
    "fetch",
    "asked",
    ("asked", "start", "fetching"),
    ("asked fetching", "finish", "ready"),
    ("asked fetching", "refuse", "refused"),
    ("refused", "retry", "asked"),
)

# A version of a dataset, from its first byte on.
DATASET: Final = _machine(
    "dataset",
    "begun",
    ("begun refused", "check", "checking"),
    ("begun refused checking", "commit", "ready"),
    ("begun checking", "refuse", "refused"),
)

# Of the models of one name in an org, one is current.
ARTIFACT: Final = _machine(
    "artifact",
    "kept",
    ("kept", "promote", "current"),
    ("current", "retire", "kept"),
)

MACHINES: Final = (
    NODE, OFFER, JOB, LEASE, ASSIGNMENT, PAYOUT, TOP_UP, FETCH, DATASET, ARTIFACT,
)  # fmt: skip

# What the end of a lease does to its job.
JOB_EVENT_AFTER: Final[dict[str, str]] = {
    "completed": "succeed",
    "failed": "fail",
    "cancelled": "cancel",
    "stopped": "stop",
    "unpaid": "stop",
    "displaced": "requeue",
    "grown": "requeue",
    "reclaimed": "requeue",
    "node_lost": "requeue",
    "expired": "requeue",
    "start_timeout": "requeue",
    "bad_checkpoint": "requeue",
    "parted": "requeue",
    "killed": "requeue",
    "refused": "requeue",
}

# Ends that are the supplier's side's doing: three in a row without progress fail the job.
SUPPLIER_SIDE_ENDS: Final = frozenset({"reclaimed", "node_lost", "start_timeout"})
# Of these nobody knows whose doing they were: no mark on any node; tried again, and billed.
UNEXPLAINED_ENDS: Final = frozenset({"parted", "killed", "refused"})
FRUITLESS_ENDS: Final = SUPPLIER_SIDE_ENDS | UNEXPLAINED_ENDS
# The keeper's and the agent's words for ends that are the node's doing, not the job's.
NODE_BROKE: Final[dict[str, str]] = {
    "node_lost": "the node fell silent",
    "vanished": "the node no longer knows the job",
    "rebooted": "the node was restarted",
    "keeper_lost": "the node's keeper was killed",
    "start_failed": "the node could not start its sandbox",
    "input": "the node could not fetch the job's inputs",
    "upload": "the node could not send the result",
}
# Of these the nodes marked as at fault are left out of the job's next placements. Of a bad
# checkpoint a node is marked that could not read what others can.
NODE_FAULT_ENDS: Final = frozenset({"node_lost", "start_timeout", "bad_checkpoint"})
