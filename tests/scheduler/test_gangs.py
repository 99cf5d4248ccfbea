"""Gangs over several nodes: what their ranks are told, and how they part."""

import pytest

from agent import protocol
from buyers.models import Job
from marketplace.core.money import MICRO
from scheduler import assignments, metering, receipts
from scheduler.models import Credit, Lease
from tests import world
from tests.scheduler.test_leases import seconds

pytestmark = pytest.mark.django_db


@pytest.fixture
def starting(buyer, now):
    """A lease on two nodes of one site, of which the second is still made ready."""
    world.listening(now)
    supplier = world.org(now=now)
    first = world.agent(supplier, now=now, lan_address="10.0.0.1")
    second = world.agent(supplier, now=now, lan_address="10.0.0.2", site=first.node.site)
    job = world.job(buyer, now=now, gpus_min=2, gpus_max=2, level=1)
    one, two = world.lease(job, first, second, now=now).assignments.order_by("rank")
    return (first, one), (second, two)


@pytest.fixture
def gang(starting, now):
    """A lease on two nodes of one site, running."""
    (first, one), (second, two) = starting
    first.says(world.status(one, "running"), now=now)
    second.says(world.status(two, "running"), now=now)
    return starting


def _wanted(agent):
    return assignments.desired(agent.node).assignments[0]


def _beat(agent, share, ran_s, at):
    agent.says(world.status(share, "running", running_ms=ran_s * 1000), now=at)
    metering.claim(agent.node, agent.claim(share, ran_s * 1000), now=at)


def test_a_rank_that_waits_for_another_is_not_paid_for_it(starting, buyer, now):
    """A gang is billed from when all its ranks run, and the wait uses up none of its paid time."""
    (first, one), (second, two) = starting
    paid_through = one.paid_through_s
    for at in range(0, 101, 10):
        _beat(first, one, at, now + seconds(at))
        if at == 40:
            metering.settle(now=now + seconds(at))
            one.refresh_from_db()
            assert (one.billed_s, one.paid_s) == (40, 0)
            assert one.paid_through_s == paid_through + 40
        if at >= 60:
            _beat(second, two, at - 60, now + seconds(at))
    metering.settle(now=now + seconds(100))
    lines = receipts.receipt(Job.objects.get()).lines
    assert [line.seconds for line in lines] == [40, 40]
    assert sum(line.charge for line in lines) == Job.objects.get().spent_micros
    assert [share.paid_s for share in Lease.objects.get().assignments.order_by("rank")] == [40, 40]


def test_only_what_was_paid_is_given_back_when_a_gang_breaks(starting, buyer, now):
    (first, one), (second, two) = starting
    for at in range(0, 91, 10):
        _beat(first, one, at, now + seconds(at))
        if at >= 60:
            _beat(second, two, at - 60, now + seconds(at))
    broke = world.exited(None, "keeper_lost")
    second.says(world.status(two, "gone", exit=broke, settled=True), now=now + seconds(92))
    gone = world.status(
        one, "gone", running_ms=90_000, exit=world.exited(75, "drain"), settled=True
    )
    first.says(gone, now=now + seconds(93))
    receipt = receipts.receipt(Job.objects.get())
    assert [line.seconds for line in receipt.lines] == [30, 30]
    assert receipt.total == 0
    assert Job.objects.get().spent_micros == 0


def test_ranks_are_told_of_each_other_and_of_nobody_else(gang, now):
    specs = [protocol.decode(bytes(share.spec), protocol.AssignmentSpec) for _, share in gang]
    assert [spec.rank for spec in specs] == [0, 1]
    assert specs[0].gang == specs[1].gang
    assert [member.lan for member in specs[0].gang.members] == ["10.0.0.1", "10.0.0.2"]
    assert len({(member.address, member.port) for member in specs[0].gang.members}) == 2
    rich = world.org(now=now, wallet=50 * MICRO)
    others = [world.agent(rich, now=now, lan_address=f"10.0.1.{number}") for number in (1, 2)]
    job = world.job(rich, now=now, gpus_min=2, gpus_max=2, level=1)
    other = world.lease(job, *others, now=now)
    spec = protocol.decode(bytes(other.assignments.first().spec), protocol.AssignmentSpec)
    assert spec.gang.network != specs[0].gang.network
    assert spec.gang.token != specs[0].gang.token


def test_a_gang_of_which_a_node_dies_saves_and_goes_on_elsewhere(gang, now):
    """The others notice first, and leave; the node's own end comes later, and is to blame."""
    (first, one), (second, two) = gang
    first.says(world.status(one, "gone", exit=world.exited(69)), now=now + seconds(2))
    assert Lease.objects.get().end_reason == ""
    assert _wanted(second).drain.why == "parted"
    first.says(world.status(one, "gone", exit=world.exited(69), settled=True), now=now + seconds(5))
    dead = world.exited(None, "keeper_lost")
    second.says(world.status(two, "gone", exit=dead, settled=True), now=now + seconds(9))
    lease = Lease.objects.get()
    assert (lease.state, lease.end_reason) == ("ended", "node_lost")
    assert [share.at_fault for share in lease.assignments.order_by("rank")] == [False, True]
    assert lease.job.state == "queued"
    assert lease.job.avoid_nodes == [str(second.node.pk)]


def test_the_rest_of_a_gang_gets_the_time_for_a_save_when_a_node_breaks(gang, now):
    (first, _), (second, two) = gang
    broke = world.exited(None, "keeper_lost")
    second.says(world.status(two, "gone", exit=broke, settled=True), now=now + seconds(2))
    drain = _wanted(first).drain
    assert drain.why == "node_lost"
    assert drain.grace_s == Lease.objects.get().save_s > 0


def test_ranks_that_only_say_that_they_parted_blame_nobody_and_get_nothing_back(gang, now):
    for at, (agent, share) in enumerate(gang, start=60):
        metering.claim(agent.node, agent.claim(share, 50_000, final=True), now=now + seconds(at))
        gone = world.status(share, "gone", running_ms=50_000, exit=world.exited(69), settled=True)
        agent.says(gone, now=now + seconds(at))
    lease = Lease.objects.get()
    assert (lease.end_reason, lease.job.state, lease.job.fruitless) == ("parted", "queued", 1)
    assert not lease.assignments.filter(at_fault=True).exists()
    assert not Credit.objects.exists()


def test_ranks_asked_to_leave_for_one_that_parted_count_as_parted_too(gang, now):
    """The first says that it lost the other; that one, well and asked to leave, saves and goes."""
    (first, one), (second, two) = gang
    at = now + seconds(60)
    first.says(world.status(one, "gone", running_ms=50_000, exit=world.exited(69)), now=at)
    drain = assignments.desired(second.node).assignments[0].drain
    assert drain is not None
    assert drain.why == "parted"
    for agent, share, exit in (
        (second, two, world.exited(75, "drain")),
        (first, one, world.exited(69)),
    ):
        metering.claim(agent.node, agent.claim(share, 50_000, final=True), now=at)
        gone = world.status(share, "gone", running_ms=50_000, exit=exit, settled=True)
        agent.says(gone, now=at)
    lease = Lease.objects.get()
    assert (lease.end_reason, lease.job.state, lease.job.fruitless) == ("parted", "queued", 1)
