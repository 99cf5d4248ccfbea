"""A seeded minute of the faults benchmark: on the story's market, with its short times."""

import random

import pytest

from benchmarks.faults import strikes
from benchmarks.faults.trial import Outcome, World, complaints, run
from buyers.sdk import Client
from marketplace.devstack.live import LiveSite

pytestmark = pytest.mark.timeout(300)

STEPS = 60
# An owner's word takes a second or two to the market and back: the job must still run by then.
RECLAIMED_STEPS = 120
CHANCE = random.Random(3)


@pytest.fixture(scope="module")
def world(site: LiveSite, buyer: Client, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.of(site, buyer, tmp_path_factory.mktemp("projects"))


@pytest.fixture(scope="module")
def alone(world: World) -> Outcome:
    """The same job, undisturbed."""
    outcome = run(world, None, steps=RECLAIMED_STEPS)
    assert complaints(outcome, outcome, steps=RECLAIMED_STEPS) == []
    return outcome


@pytest.mark.parametrize(
    ("strike", "end"),
    [
        (strikes.job_killed, "killed"),
        (strikes.keeper_killed, "node_lost"),
        (strikes.storage_away(3), ""),
        (strikes.market_away(3), ""),
        (strikes.reclaimed(0), "reclaimed"),
        (strikes.reclaimed(10), "reclaimed"),
    ],
    ids=["job killed", "keeper killed", "storage away", "market away", "no notice", "notice"],
)
def test_a_disturbed_job_does_the_same_steps_for_the_same_money(
    world: World, alone: Outcome, strike: strikes.Strike, end: str, request: pytest.FixtureRequest
) -> None:
    notices = {"no notice": 0, "notice": 10}
    strikes.offer_with_notice(world, notices.get(request.node.callspec.id, 30))
    steps = RECLAIMED_STEPS if end == "reclaimed" else STEPS
    outcome = run(world, strike, steps=steps, at_step=CHANCE.randrange(25, 40))
    assert complaints(outcome, alone, steps=steps) == []
    assert outcome.ends == ((end, "completed") if end else ("completed",))
    if end == "reclaimed" and request.node.callspec.id == "notice":
        assert outcome.lost_steps == 0
