"""Who is to blame, whose word counts, and what is told again until it is done."""

import pytest

from agent import protocol
from buyers.models import Job
from marketplace.core.money import MICRO
from marketplace.ledger import services as ledger
from scheduler import book, jobs, metering, watch
from scheduler.models import Lease
from suppliers.models import Node
from tests import world
from tests.scheduler.test_leases import seconds

pytestmark = pytest.mark.django_db


def test_a_node_that_says_it_broke_the_job_gives_back_what_was_lost(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now, price=36 * MICRO)
    share = lease.assignments.get()
    for second in range(0, 110, 10):
        node.says(
            world.status(share, "running", running_ms=second * 1000), now=now + seconds(second)
        )
    at = now + seconds(100)
    metering.claim(node.node, node.claim(share, 100_000), now=at)
    metering.settle(now=at)
    broken = world.exited(None, "rebooted")
    node.says(world.status(share, "gone", running_ms=100_000, exit=broken, settled=True), now=at)
    job.refresh_from_db()
    assert (job.state, job.spent_micros) == ("queued", 0)
    assert job.avoid_nodes == [str(node.node.pk)]
    assert ledger.balance(ledger.payable(node.node.site.org_id)) == 0
    assert ledger.balance(ledger.FEES) == 0


def test_the_end_of_a_leases_day_is_billed_and_not_credited(buyer, node, now):
    expired = world.lease(world.job(buyer, now=now), node, now=now, price=36 * MICRO)
    share = expired.assignments.get()
    node.says(world.status(share, "running"), now=now)
    Lease.objects.filter(pk=expired.pk).update(until=now)
    world.listening(now + seconds(1))
    Node.objects.update(last_seen_at=now + seconds(1))
    watch.watch(now=now + seconds(1))
    at = now + seconds(21)
    node.says(world.status(share, "draining", running_ms=21_000), now=at)
    metering.claim(node.node, node.claim(share, 21_000, final=True), now=at)
    node.says(
        world.status(share, "gone", running_ms=21_000, exit=world.exited(75), settled=True), now=at
    )
    expired.refresh_from_db()
    assert expired.end_reason == "expired"
    assert not share.credits.exists()
    assert Job.objects.get(pk=expired.job_id).spent_micros == 210_000


def _killed(node, job, lease, at):
    exit = protocol.Exit(code=None, signal=9, why="exited")
    node.says(world.status(lease.assignments.get(), "gone", exit=exit, settled=True), now=at)
    job.refresh_from_db()


def test_a_process_that_somebody_killed_is_tried_again_and_not_credited(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now, price=36 * MICRO)
    share = lease.assignments.get()
    node.says(world.status(share, "running"), now=now)
    node.says(world.status(share, "running", running_ms=10_000), now=now + seconds(10))
    metering.claim(node.node, node.claim(share, 10_000, final=True), now=now + seconds(10))
    _killed(node, job, lease, now + seconds(10))
    assert (job.state, job.spent_micros) == ("queued", 100_000)
    assert job.avoid_nodes == []


def test_a_job_that_is_killed_again_and_again_without_progress_fails(buyer, node, now):
    job = world.job(buyer, now=now)
    for _ in range(3):
        assert job.state == "queued"
        lease = world.lease(job, node, now=now)
        node.says(world.status(lease.assignments.get(), "running"), now=now)
        _killed(node, job, lease, now)
    assert job.state == "failed"
    assert "3 attempts in a row" in job.story().last().reason


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ("memory", "more memory than it booked"),
        ("disk", "more to disk than it booked"),
        ("pids", "more processes than it may"),
        ("hang", "made no step"),
        ("environment", "environment could not be made"),
        ("output", "output that can't be accepted"),
    ],
)
def test_a_job_that_broke_its_bounds_fails_and_is_told_which(buyer, node, now, why, words):
    job = world.job(buyer, now=now)
    share = world.lease(job, node, now=now).assignments.get()
    node.says(world.status(share, "running"), now=now)
    broke = world.exited(None, why)
    node.says(world.status(share, "gone", exit=broke, settled=True), now=now + seconds(1))
    job.refresh_from_db()
    assert job.state == "failed"
    assert words in job.story().last().reason


class TestABuyersWord:
    def test_overrules_an_owner_who_takes_the_node_back(self, buyer, node, now):
        job = world.job(buyer, now=now)
        lease = world.lease(job, node, now=now)
        share = lease.assignments.get()
        node.says(world.status(share, "running"), now=now)
        watch.reclaim(node.node, why="", now=now)
        jobs.cancel(job, by=buyer.members.first(), now=now)
        gone = world.status(share, "gone", exit=world.exited(75), settled=True)
        node.says(gone, now=now + seconds(5))
        job.refresh_from_db()
        assert job.state == "cancelled"

    def test_does_not_wait_for_a_node_that_sends_nothing(self, buyer, node, now):
        job = world.job(buyer, now=now)
        lease = world.lease(job, node, now=now)
        share = lease.assignments.get()
        node.says(world.status(share, "running"), now=now)
        jobs.cancel(job, by=buyer.members.first(), now=now)
        node.says(world.status(share, "gone", exit=world.exited(-15)), now=now + seconds(1))
        watch.watch(now=now + seconds(2))
        job.refresh_from_db()
        assert job.state == "cancelled"


def test_a_node_that_never_sends_what_it_owes_is_not_waited_for_for_ever(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    share = lease.assignments.get()
    node.says(world.status(share, "running"), now=now)
    node.says(world.status(share, "gone", exit=world.exited(1)), now=now + seconds(1))
    watch.watch(now=now + seconds(3600))
    assert Lease.objects.get().state == "draining"
    watch.watch(now=now + seconds(3602))
    job.refresh_from_db()
    assert job.state == "failed"


def test_a_loss_that_could_not_be_written_down_is_tried_again(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    node.says(world.status(lease.assignments.get(), "running"), now=now)
    later = now + seconds(60)
    # Somebody marked the node, and died before the job was told.
    Node.objects.update(lost_at=later)
    world.listening(later + seconds(2))
    watch.watch(now=later + seconds(2))
    job.refresh_from_db()
    assert job.state == "queued"


def test_a_deaf_market_blames_no_start_and_loses_no_drain(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    later = now + seconds(3600)
    world.listening(later, for_s=5)
    watch.watch(now=later)
    lease.refresh_from_db()
    assert lease.end_reason == ""


def test_a_script_that_was_asked_to_leave_and_exits_0_is_not_done(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    share = lease.assignments.get()
    node.says(world.status(share, "running"), now=now)
    watch.reclaim(node.node, why="", now=now)
    gone = world.status(share, "gone", exit=world.exited(0), settled=True)
    node.says(gone, now=now + seconds(5))
    job.refresh_from_db()
    assert job.state == "queued"


def test_a_job_that_saved_because_the_market_was_away_goes_on(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    share = lease.assignments.get()
    node.says(world.status(share, "running"), now=now)
    gone = world.status(share, "gone", exit=world.exited(75, "drain"), settled=True)
    node.says(gone, now=now + seconds(5))
    job.refresh_from_db()
    assert (job.state, Lease.objects.get().end_reason) == ("queued", "expired")


def test_an_owner_who_comes_back_between_two_looks_still_has_the_node(buyer, node, now):
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now)
    node.says(world.status(lease.assignments.get(), "running"), now=now)
    Node.objects.update(owner_busy=True)
    watch.watch(now=now + seconds(1))
    lease.refresh_from_db()
    assert lease.end_reason == "reclaimed"


@pytest.mark.parametrize("why", ["refused", "bad_input"])
def test_a_node_that_refuses_a_job_is_avoided_and_not_blamed_until_no_more_is_tried(
    buyer, now, why
):
    job = world.job(buyer, now=now)
    for tried in range(1, 4):
        node = world.agent(world.org(now=now), now=now)
        share = world.lease(job, node, now=now).assignments.get()
        exit = world.exited(None, why)
        node.says(world.status(share, "gone", exit=exit, settled=True, detail="too long"), now=now)
        job.refresh_from_db()
        share.refresh_from_db()
        assert not share.at_fault
        assert str(node.node.pk) in job.avoid_nodes
        assert job.state == ("queued" if tried < 3 else "failed")
    assert not book.reliability_of([node.node], now=now)[node.node.pk].kept < 2 / 3
