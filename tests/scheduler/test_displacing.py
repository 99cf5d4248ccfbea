"""Interruptible jobs make room for a job that gains more: drained, held, matched, or left alone."""

from datetime import timedelta

import pytest
from django.db import transaction

from buyers import jobview
from buyers.models import Job
from marketplace.core.errors import Conflict
from marketplace.core.money import MICRO
from marketplace.ledger import services as ledger
from marketplace.models import advance
from scheduler import clearing, holds, jobends, jobs, metering, watch
from scheduler.following import Followed
from scheduler.models import Assignment, HeldGpu, Hold, Lease, UsageSlice
from suppliers import board, earnings
from suppliers.models import Node
from tests import world

pytestmark = pytest.mark.django_db

AFTER = timedelta(seconds=601)


@pytest.fixture
def buyer(now):
    """In a transaction of its own, which money wants."""
    with transaction.atomic():
        return world.org("Buyer", now=now, wallet=1000 * MICRO)


@pytest.fixture
def victim(buyer, node, now):
    """An interruptible job that has just begun to run, at 2.00."""
    return running(world.job(buyer, now=now, service="interruptible", limits=at(3)), node, now)


def at(limit):
    return {"h100-sxm": round(limit * MICRO)}


def running(job, node, now):
    with transaction.atomic():
        lease = world.lease(job, node, now=now)
    share = lease.assignments.get()
    node.says(world.status(share, "running"), now=now)
    lease.refresh_from_db()
    assert lease.state == "running"
    return lease


def wants(now, limit=5, **changes):
    with transaction.atomic():
        buyer = world.org(now=now, wallet=1000 * MICRO)
    return world.job(buyer, now=now, limits=at(limit), **changes)


def clear(now, followed=None):
    Node.objects.update(last_seen_at=now)
    return clearing.clear_market(now=now, followed=followed)


def leave(lease, node, now):
    """The victim's node says that it has saved and gone."""
    share = lease.assignments.select_related("lease").get()
    node.says(world.status(share, "gone", exit=world.exited(75, "drain"), settled=True), now=now)
    lease.refresh_from_db()
    assert lease.state == "ended"


def test_it_leaves_after_ten_minutes_and_its_gpu_goes_to_that_job(victim, node, now):
    wanted = wants(now)
    assert clear(now + AFTER - timedelta(seconds=2)) == 0
    assert not Hold.objects.exists()
    assert clear(now + AFTER) == 0
    victim.refresh_from_db()
    share = victim.assignments.get()
    assert (victim.end_reason, share.drain_why, share.drain_grace_s) == (
        "displaced",
        "displaced",
        60,
    )
    assert HeldGpu.objects.get().hold.job == wanted
    leave(victim, node, now + AFTER + timedelta(seconds=20))
    victim.job.refresh_from_db()
    assert victim.job.state == "queued"
    assert clear(now + AFTER + timedelta(seconds=25)) == 1
    lease = Lease.objects.live().get()
    assert lease.job == wanted
    # Whoever left it paid 2.00: the supplier earns no less.
    assert lease.price_micros == 2 * MICRO
    assert not Hold.objects.exists()


def test_a_protected_job_never_leaves(buyer, node, now):
    lease = running(world.job(buyer, now=now, limits=at(3)), node, now)
    wants(now, limit=900, budget_micros=10_000 * MICRO)
    for hours in (1, 5, 20):
        clear(now + timedelta(hours=hours))
    lease.refresh_from_db()
    assert lease.end_reason == ""
    assert not Hold.objects.exists()


@pytest.mark.parametrize(("limit", "leaves"), [(3.1, False), (3.6, True)])
def test_the_gain_must_be_a_tenth_of_what_the_newcomer_is_worth(victim, now, limit, leaves):
    wants(now, limit=limit)
    clear(now + AFTER)
    victim.refresh_from_db()
    assert (victim.end_reason == "displaced") is leaves


def test_what_is_lost_since_its_checkpoint_counts(victim, now):
    wants(now)
    Assignment.objects.update(accrued_ms=2 * 3_600_000)
    clear(now + AFTER)
    assert not Hold.objects.exists()
    Assignment.objects.update(saved_ms=2 * 3_600_000)
    clear(now + AFTER)
    assert Hold.objects.exists()


def test_a_newcomer_that_can_not_pay_what_was_paid_before_displaces_nobody(buyer, node, now):
    cheap = world.job(buyer, now=now, service="interruptible", limits=at(1.2))
    lease = world.lease(cheap, node, now=now, price=4 * MICRO)
    node.says(world.status(lease.assignments.get(), "running"), now=now)
    wants(now, limit=3.5)
    clear(now + AFTER)
    assert not Hold.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("follows", [False, True])
def test_while_held_nobody_else_bids_or_takes(victim, node, now, follows):
    followed = Followed() if follows else None
    wanted = wants(now)
    clear(now + AFTER, followed)
    rich = wants(now, limit=4.9)
    left = now + AFTER + timedelta(seconds=20)
    # The job wants it no longer at this price, so that the hold is not used at once.
    held = Hold.objects.get()
    leave(victim, node, left)
    type(wanted).objects.filter(pk=wanted.pk).update(limits=at(1.5))
    for _ in range(2):
        assert Hold.objects.filter(pk=held.pk).exists()
        assert clear(left, followed) == 0
    assert not Hold.objects.exists()
    # It lapsed after two rounds: now it is anybody's.
    assert clear(left, followed) == 1
    assert Lease.objects.live().get().job == rich


@pytest.mark.parametrize(
    "end",
    [
        lambda job, now: jobs.cancel(job, by=job.created_by, now=now),
        lambda job, now: jobs.stop(job, by=job.created_by, now=now),
        lambda job, now: jobends.stop_unfunded({job: MICRO}, now=now),
        lambda job, now: advance([job], "cancel", now=now),
    ],
    ids=["cancelled", "stopped", "out of money", "by whatever comes next"],
)
def test_a_hold_is_released_when_its_job_waits_no_longer(victim, node, now, end):
    wanted = wants(now)
    clear(now + AFTER)
    assert HeldGpu.objects.exists()
    with transaction.atomic():
        end(Job.objects.get(pk=wanted.pk), now + AFTER)
    assert not HeldGpu.objects.exists()
    assert not Hold.objects.exists()


def test_a_hold_is_released_when_its_job_finds_another_place(victim, node, now):
    wanted = wants(now)
    clear(now + AFTER)
    world.agent(world.org(now=now), now=now)
    assert clear(now + AFTER + timedelta(seconds=5)) == 1
    assert Lease.objects.get(job=wanted).state == "reserved"
    assert not Hold.objects.exists()


def test_a_hold_whose_victim_does_not_leave_lapses(victim, now):
    wants(now)
    clear(now + AFTER)
    clear(now + AFTER + timedelta(seconds=100))
    assert Hold.objects.exists()
    clear(now + AFTER + timedelta(seconds=201))
    assert not HeldGpu.objects.exists()


def test_both_sides_are_told_while_gpus_are_freed_and_held(victim, node, now):
    wanted = wants(now)
    clear(now + AFTER)
    asked = jobview.look(Job.objects.get(pk=wanted.pk), now=now + AFTER)
    assert asked.held == holds.Held(1, now + AFTER + timedelta(seconds=200), free=False)
    assert asked.words == "waiting: a GPU is being freed for it, and held until about 12:13 UTC"
    leaves = "leaving: it makes room for a job that gains more"
    assert earnings.of_node(node.node)[0].words == leaves
    later = now + AFTER + timedelta(seconds=20)
    leave(victim, node, later)
    asked = jobview.look(Job.objects.get(pk=wanted.pk), now=later)
    assert asked.words == "waiting: a GPU is free and held for it, until 12:13 UTC"
    line = board.line(Node.objects.select_related("site").get(), now=later)
    assert (line.held, line.words) == (1, "held: a GPU for a job that waits")
    assert earnings.of_node(node.node)[0].words == "left: it made room for a job that gains more"


def test_a_displaced_job_is_told_what_it_lost(victim, node, now):
    wants(now)
    Assignment.objects.update(accrued_ms=360_000, saved_ms=300_000)
    clear(now + AFTER)
    leave(victim, node, now + AFTER + timedelta(seconds=20))
    shown = jobview.look(Job.objects.get(pk=victim.job.pk), now=now + AFTER)
    assert shown.lost_s == 60
    assert shown.story[-1].reason.endswith(
        "the 1 min since its last checkpoint are lost, and not paid for"
    )


def test_a_hold_lapses_though_no_round_runs(victim, now):
    wants(now)
    clear(now + AFTER)
    watch.watch(now=now + AFTER + timedelta(seconds=199))
    assert Hold.objects.exists()
    watch.watch(now=now + AFTER + timedelta(seconds=201))
    assert not HeldGpu.objects.exists()
    assert not Hold.objects.exists()


def test_billing_stops_when_it_is_asked_to_leave(victim, node, now):
    share = victim.assignments.select_related("lease").get()
    for seconds in range(10, 601, 10):
        node.says(
            world.status(share, "running", running_ms=seconds * 1000),
            now=now + timedelta(seconds=seconds),
        )
    wants(now)
    clear(now + AFTER)
    for seconds in range(610, 651, 10):
        node.says(
            world.status(share, "draining", running_ms=seconds * 1000),
            now=now + timedelta(seconds=seconds),
        )
    metering.claim(node.node, node.claim(share, 650_000), now=now + timedelta(seconds=650))
    Assignment.objects.filter(pk=share.pk).update(saved_ms=600_000)
    leave(victim, node, now + timedelta(seconds=655))
    assert max(UsageSlice.objects.values_list("until_s", flat=True)) == 600
    assert ledger.imbalance() == 0
    assert ledger.audit() == {}


def test_a_displaced_job_is_not_displaced_again_within_an_hour(victim, node, now):
    wanted = wants(now)
    clear(now + AFTER)
    later = now + AFTER + timedelta(seconds=20)
    leave(victim, node, later)
    jobs.cancel(wanted, by=wanted.created_by, now=later)
    again = running(victim.job.__class__.objects.get(pk=victim.job.pk), node, later)
    wants(later)
    clear(later + AFTER)
    again.refresh_from_db()
    assert again.end_reason == ""
    clear(later + timedelta(seconds=3601))
    again.refresh_from_db()
    assert again.end_reason == "displaced"


def test_two_rounds_displace_once(buyer, now):
    supplier = world.org(now=now)
    world.listening(now)
    for _ in range(2):
        agent = world.agent(supplier, now=now)
        running(world.job(buyer, now=now, service="interruptible", limits=at(3)), agent, now)
    wants(now)
    for seconds in range(0, 30, 5):
        clear(now + AFTER + timedelta(seconds=seconds))
    assert Lease.objects.filter(end_reason="displaced").count() == 1
    assert Hold.objects.count() == 1


def test_taking_what_is_held_is_refused(victim, node, now):
    wanted = wants(now)
    clear(now + AFTER)
    leave(victim, node, now + AFTER + timedelta(seconds=20))
    offer = node.node.offers.get()
    chosen = {
        "seats": [{"offer": str(offer.pk), "node": str(node.node.pk), "gpus": 1}],
        "gpu_class": "h100-sxm", "price_micros": 5 * MICRO,
    }  # fmt: skip
    with pytest.raises(Conflict, match="somebody was first"):
        jobs._seats(chosen, 5 * MICRO, now + AFTER)
    assert Hold.objects.get().job == wanted
