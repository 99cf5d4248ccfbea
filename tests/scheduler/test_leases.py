"""A lease's life, told through what nodes say."""

from datetime import datetime, timedelta

import pytest

from agent import protocol
from buyers.models import Checkpoint, Job
from marketplace.core.errors import InvalidTransition
from marketplace.core.ids import uuid7
from marketplace.core.money import MICRO
from marketplace.ledger import services as ledger
from scheduler import assignments, jobs, metering, watch
from scheduler.models import Credit, Lease, LeasedGpu
from suppliers.models import Node
from tests import world

pytestmark = pytest.mark.django_db


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def run_to_the_end(node, lease, now, *, ran_s=100, code=0):
    """Start, run for `ran_s` with a heartbeat each 10 s, and end."""
    share = lease.assignments.get()
    node.says(world.status(share, "accepted"), now=now)
    at = now
    for second in range(0, ran_s + 1, 10):
        at = now + seconds(second)
        node.says(world.status(share, "running", running_ms=second * 1000, step=second), now=at)
    metering.claim(node.node, node.claim(share, ran_s * 1000, final=True), now=at)
    node.says(
        world.status(share, "gone", running_ms=ran_s * 1000, exit=world.exited(code), settled=True),
        now=at,
    )
    return at


def test_a_job_that_ends_well_is_billed_for_each_second_it_ran(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now, price=36 * MICRO)
    run_to_the_end(node, lease, now, ran_s=100)

    job.refresh_from_db()
    lease.refresh_from_db()
    assert (job.state, lease.state, lease.end_reason) == ("succeeded", "ended", "completed")
    assert job.spent_micros == 1 * MICRO  # 100 s at 36 an hour
    assert ledger.balance(ledger.wallet(buyer.pk)) == 999 * MICRO
    assert ledger.balance(ledger.escrow(job.pk)) == 0
    assert ledger.balance(ledger.payable(node.node.site.org_id)) == 920_000
    assert ledger.balance(ledger.FEES) == 80_000
    assert ledger.imbalance() == 0
    assert not ledger.audit()


def test_its_gpus_are_free_again_once_the_process_is_gone(buyer, node, now):
    lease = world.lease(world.job(buyer, now=now), node, now=now)
    assert LeasedGpu.objects.filter(released_at=None).count() == 1
    run_to_the_end(node, lease, now)
    assert not LeasedGpu.objects.filter(released_at=None).exists()


def test_a_gpu_is_never_let_twice(buyer, node, now):
    world.lease(world.job(buyer, now=now), node, now=now)
    with pytest.raises(Exception, match="gpu_let_once"):
        world.lease(world.job(buyer, now=now), node, now=now)


def test_a_script_that_crashes_fails_with_its_exit_code_in_words(buyer, node, now):
    job = world.job(buyer, now=now)
    run_to_the_end(node, world.lease(job, node, now=now), now, code=3)
    job.refresh_from_db()
    assert job.state == "failed"
    assert "exit code 3" in job.story().last().reason


def test_a_recipe_that_leaves_no_artifact_has_not_succeeded(buyer, node, now):
    job = world.job(buyer, now=now, recipe="lora")
    run_to_the_end(node, world.lease(job, node, now=now), now)
    job.refresh_from_db()
    assert job.state == "failed"


def test_every_change_is_a_line_of_the_story(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    run_to_the_end(node, lease, now)
    assert [line.event for line in job.story()] == ["place", "start", "succeed"]
    assert [line.event for line in lease.story()] == ["start", "run", "drain", "end"]


def test_a_cancelled_job_ends_when_its_node_says_so(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    share = lease.assignments.get()
    node.says(world.status(share, "running", running_ms=0), now=now)
    jobs.cancel(job, by=buyer.members.first(), now=now)

    wanted = assignments.desired(node.node).assignments[0]
    assert wanted.drain is not None
    assert wanted.drain.why == "cancelled"
    job.refresh_from_db()
    assert job.state == "running"
    node.says(
        world.status(share, "gone", running_ms=5, exit=world.exited(-15), settled=True),
        now=now + seconds(2),
    )
    job.refresh_from_db()
    assert job.state == "cancelled"
    assert assignments.desired(node.node).assignments == []


def test_a_job_at_rest_can_not_be_cancelled(buyer, node, now):
    job = world.job(buyer, now=now)
    run_to_the_end(node, world.lease(job, node, now=now), now)
    with pytest.raises(InvalidTransition):
        jobs.cancel(Job.objects.get(pk=job.pk), by=buyer.members.first(), now=now)


def test_cancelling_what_waits_gives_the_escrow_back_at_once(buyer, now):
    job = world.job(buyer, now=now)
    jobs.cancel(job, by=buyer.members.first(), now=now)
    job.refresh_from_db()
    assert job.state == "cancelled"
    assert ledger.balance(ledger.wallet(buyer.pk)) == 1000 * MICRO


class TestANodeThatVanishes:
    @pytest.fixture
    def lost(self, buyer, node, now):
        job = world.job(buyer, now=now)
        lease = world.lease(job, node, now=now, price=36 * MICRO)
        share = lease.assignments.get()
        for second in range(0, 70, 10):
            node.says(
                world.status(share, "running", running_ms=second * 1000, step=second),
                now=now + seconds(second),
            )
        metering.claim(node.node, node.claim(share, 60_000), now=now)
        metering.settle(now=now + seconds(60))
        later = now + seconds(60 + 41)
        world.listening(later)
        watch.watch(now=later)
        job.refresh_from_db()
        lease.refresh_from_db()
        return job, lease, later

    def test_its_job_is_queued_again(self, lost):
        job, lease, _ = lost
        assert (job.state, lease.end_reason) == ("queued", "node_lost")

    def test_what_was_billed_and_lost_is_credited_with_the_reason(self, lost, buyer, node):
        job, lease, _ = lost
        credit = lease.assignments.get().credits.get()
        assert credit.micros == 600_000  # 60 s at 36 an hour
        assert "checkpoint" in credit.reason
        assert ledger.balance(ledger.payable(node.node.site.org_id)) == 0
        assert ledger.balance(ledger.FEES) == 0
        assert job.spent_micros == 0
        assert ledger.imbalance() == 0
        assert not ledger.audit()

    def test_it_is_left_out_of_the_jobs_next_placements(self, lost, node):
        job, _, _ = lost
        assert job.avoid_nodes == [str(node.node.pk)]

    def test_its_gpus_return_only_when_it_speaks_again(self, lost, node):
        _, _, later = lost
        assert LeasedGpu.objects.filter(released_at=None).count() == 1
        node.says(now=later + seconds(5))
        assert not LeasedGpu.objects.filter(released_at=None).exists()

    def test_a_zombie_keeps_them_taken_until_it_is_gone(self, lost, node):
        _, lease, later = lost
        share = lease.assignments.get()
        node.says(world.status(share, "running", running_ms=99_000), now=later + seconds(5))
        assert LeasedGpu.objects.filter(released_at=None).count() == 1
        assert assignments.desired(node.node).assignments == []


def test_silence_does_not_count_while_the_market_was_deaf(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    node.says(world.status(lease.assignments.get(), "running"), now=now)
    later = now + seconds(300)
    world.listening(later, for_s=59)
    watch.watch(now=later)
    assert Node.objects.get(pk=node.node.pk).lost_at is None
    world.listening(later, for_s=61)
    watch.watch(now=later)
    assert Node.objects.get(pk=node.node.pk).lost_at == later


def test_what_was_saved_is_not_lost_with_the_node(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now, price=36 * MICRO)
    share = lease.assignments.get()
    for second in range(0, 70, 10):
        node.says(
            world.status(share, "running", running_ms=second * 1000), now=now + seconds(second)
        )
    metering.claim(node.node, node.claim(share, 60_000), now=now)
    Checkpoint.objects.create(
        id=uuid7(), job=job, epoch=lease.epoch, step=30, manifest=[], sha256="0" * 64, bytes=0,
        prefix="x/", created_at=now, committed_at=now,
    )  # fmt: skip
    share.refresh_from_db()
    share.saved_ms = 40_000
    share.save()
    later = now + seconds(120)
    world.listening(later)
    watch.watch(now=later)
    assert share.credits.get().micros == 200_000  # the 20 s after the save
    job.refresh_from_db()
    assert job.spent_micros == 400_000
    assert job.fruitless == 0


def test_a_third_fruitless_end_fails_the_job(buyer, now):
    job = world.job(buyer, now=now)
    supplier = world.org(now=now)
    for attempt in range(3):
        at = now + seconds(1000 * attempt)
        node = world.agent(supplier, now=at)
        lease = world.lease(job, node, now=at)
        node.says(world.status(lease.assignments.get(), "accepted"), now=at)
        later = at + seconds(41)
        world.listening(later)
        watch.watch(now=later)
        job.refresh_from_db()
    assert job.state == "failed"
    assert "without progress" in job.story().last().reason


def test_a_node_that_never_takes_it_up_loses_it_after_the_hold(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    later = now + seconds(61)
    world.listening(later)
    Node.objects.update(last_seen_at=later)
    watch.watch(now=later)
    node.says(now=later + seconds(1))
    job.refresh_from_db()
    lease.refresh_from_db()
    assert (job.state, lease.end_reason) == ("queued", "start_timeout")
    assert not LeasedGpu.objects.filter(released_at=None).exists()


def test_an_owner_has_the_node_back_within_the_notice(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    share = lease.assignments.get()
    node.says(world.status(share, "running"), now=now)
    watch.reclaim(node.node, why="the owner needs it", now=now)

    drain = assignments.desired(node.node).assignments[0].drain
    assert drain is not None
    assert drain.grace_s == 60
    node.says(
        world.status(share, "gone", running_ms=9_000, exit=world.exited(75), settled=True),
        now=now + seconds(9),
    )
    job.refresh_from_db()
    assert job.state == "queued"
    assert job.avoid_nodes == []
    assert Lease.objects.get().end_reason == "reclaimed"


def test_a_drain_that_the_owner_wanted_is_not_billed(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now, price=36 * MICRO)
    share = lease.assignments.get()
    node.says(world.status(share, "running", running_ms=0), now=now)
    watch.reclaim(node.node, why="", now=now)
    at = now + seconds(20)
    node.says(world.status(share, "draining", running_ms=20_000), now=at)
    metering.claim(node.node, node.claim(share, 20_000, final=True), now=at)
    node.says(
        world.status(share, "gone", running_ms=20_000, exit=world.exited(75), settled=True), now=at
    )
    job.refresh_from_db()
    assert job.spent_micros == 0


def test_one_rank_that_crashes_takes_the_gang_with_it(buyer, now):
    world.listening(now)
    first, second = (
        world.agent(world.org(now=now), now=now, lan_address=f"10.0.0.{number}")
        for number in (1, 2)
    )
    job = world.job(buyer, now=now, gpus_min=2, gpus_max=2, level=1)
    lease = world.lease(job, first, second, now=now)
    one, two = lease.assignments.order_by("rank")
    first.says(world.status(one, "running"), now=now)
    assert Lease.objects.get().state == "starting"
    second.says(world.status(two, "running"), now=now)
    assert Lease.objects.get().state == "running"
    first.says(world.status(one, "gone", exit=world.exited(1), settled=True), now=now)
    drain = assignments.desired(second.node).assignments[0].drain
    assert drain is not None
    second.says(world.status(two, "gone", exit=world.exited(-9), settled=True), now=now)
    job.refresh_from_db()
    assert job.state == "failed"


@pytest.fixture
def gang(buyer, now):
    """A lease on two nodes of one site, running."""
    world.listening(now)
    supplier = world.org(now=now)
    first = world.agent(supplier, now=now, lan_address="10.0.0.1")
    second = world.agent(supplier, now=now, lan_address="10.0.0.2", site=first.node.site)
    job = world.job(buyer, now=now, gpus_min=2, gpus_max=2, level=1)
    lease = world.lease(job, first, second, now=now)
    one, two = lease.assignments.order_by("rank")
    first.says(world.status(one, "running"), now=now)
    second.says(world.status(two, "running"), now=now)
    return (first, one), (second, two)


def _wanted(agent):
    return assignments.desired(agent.node).assignments[0]


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


def test_a_job_whose_node_forgot_it_goes_on_elsewhere(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    node.says(world.status(lease.assignments.get(), "running"), now=now)
    node.says(now=now + seconds(10))
    job.refresh_from_db()
    assert job.state == "queued"
    assert Lease.objects.get().end_reason == "node_lost"


def test_an_old_lease_can_not_speak_for_its_job(buyer, node, now: datetime):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    share = lease.assignments.get()
    stale = world.status(share, "gone", exit=world.exited(0), settled=True)
    stale = type(stale)(**{f: getattr(stale, f) for f in stale.__struct_fields__} | {"epoch": 0})
    node.says(stale, now=now)
    job.refresh_from_db()
    assert job.state == "placed"
