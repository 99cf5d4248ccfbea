"""A lease's life, told through what nodes say."""

from datetime import datetime, timedelta

import pytest

from buyers.models import Checkpoint, Job
from marketplace.core.errors import InvalidTransition
from marketplace.core.ids import uuid7
from marketplace.core.money import MICRO
from marketplace.ledger import services as ledger
from scheduler import assignments, jobs, metering, watch
from scheduler.models import Lease, LeasedGpu
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
