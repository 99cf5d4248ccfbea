"""kill -9 while room is made: all drains and holds are there, or none, and the next round goes on."""

from datetime import timedelta

import pytest
from django.db import transaction

from marketplace.core.money import MICRO
from marketplace.ledger import services as ledger
from scheduler import clearing
from scheduler.models import Assignment, HeldGpu, Hold, Lease
from suppliers.models import Node
from tests import world

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def victims(now):
    """Two interruptible leases, on a node of one GPU each."""
    world.listening(now)
    with transaction.atomic():
        buyer = world.org("Buyer", now=now, wallet=1000 * MICRO)
    agents = [world.agent(world.org(now=now), now=now) for _ in range(2)]
    for agent in agents:
        job = world.job(buyer, now=now, service="interruptible", limits={"h100-sxm": 3 * MICRO})
        with transaction.atomic():
            lease = world.lease(job, agent, now=now)
        agent.says(world.status(lease.assignments.get(), "running"), now=now)
    for _ in agents:
        world.job(buyer, now=now, limits={"h100-sxm": 5 * MICRO})
    return agents


def made():
    """How many leave, and for how many jobs GPUs are held: the same, by one transaction."""
    leaving = Lease.objects.filter(end_reason="displaced").count()
    assert Assignment.objects.filter(drain_why="displaced").count() == leaving
    assert Hold.objects.count() == HeldGpu.objects.count() == leaving
    return leaving


def test_killed_at_any_moment_it_is_whole_or_not_at_all(worker, victims, now):
    at = now + timedelta(seconds=601)
    Node.objects.update(last_seen_at=at)
    for moment in ("statement 1", "statement 6", "statement 12", "before commit"):
        assert worker("displacer", moment, at).returncode == -9
        assert made() == 0
    assert worker("displacer", "after commit", at).returncode == -9
    assert made() == 2
    # The next worker does nothing twice, and the match comes once they have left.
    clearing.clear_market(now=at + timedelta(seconds=5))
    assert made() == 2
    for agent in victims:
        share = agent.node.assignments.select_related("lease").get()
        gone = world.status(share, "gone", exit=world.exited(75, "drain"), settled=True)
        agent.says(gone, now=at + timedelta(seconds=9))
    Node.objects.update(last_seen_at=at + timedelta(seconds=10))
    assert clearing.clear_market(now=at + timedelta(seconds=10)) == 2
    assert not HeldGpu.objects.exists()
    assert Lease.objects.live().count() == 2
    assert ledger.imbalance() == 0
