"""Elastic gangs that run grow into idle GPUs beside them: saved, held, placed anew, or left alone."""

from datetime import timedelta

import pytest
from django.db import transaction

from buyers import jobview
from buyers.models import Job
from marketplace.core.money import MICRO
from scheduler import clearing, growing, lots
from scheduler.models import Assignment, HeldGpu, Hold, Lease
from suppliers import earnings
from suppliers.models import Node
from tests import world

pytestmark = pytest.mark.django_db

AFTER = timedelta(seconds=601)
LIMIT = {"h100-sxm": 4 * MICRO}


@pytest.fixture
def buyer(now):
    """In a transaction of its own, which money wants."""
    with transaction.atomic():
        return world.org("Buyer", now=now, wallet=1000 * MICRO)


@pytest.fixture
def machine(now):
    """Four GPUs at 1.00."""
    return world.agent(world.org("Supplier", now=now), now=now, gpus=4)


def elastic(buyer, machine, now, *, gpus=2, **changes):
    """A job on so many of the machine's GPUs that could use four."""
    changes = {"gpus_min": 1, "gpus_max": 4, "limits": LIMIT, **changes}
    job = world.job(buyer, now=now, **changes)
    with transaction.atomic():
        lease = world.lease(job, machine, now=now, gpus=gpus)
    machine.says(world.status(lease.assignments.get(), "running"), now=now)
    lease.refresh_from_db()
    assert (lease.state, lease.gpus_count) == ("running", gpus)
    return lease


def grow(now):
    Node.objects.update(last_seen_at=now)
    return growing.grow_market(lambda at: lots.standing(lots.read(now=at), now=at), now=now)


def test_it_saves_leaves_and_goes_on_with_all_that_it_could_use(buyer, machine, now):
    lease = elastic(buyer, machine, now)
    later = now + AFTER
    assert grow(later) == 1
    lease.refresh_from_db()
    share = lease.assignments.get()
    assert (lease.end_reason, share.drain_why, share.drain_grace_s) == ("grown", "grown", 60)
    assert "with 4 GPUs instead of 2" in lease.end_detail
    assert HeldGpu.objects.filter(hold__job=lease.job).count() == 4
    assert grow(later) == 0
    # Nobody else gets what is held while it leaves.
    with transaction.atomic():
        rival = world.org(now=now, wallet=1000 * MICRO)
    waits = world.job(rival, now=now, limits={"h100-sxm": 9 * MICRO})
    assert clearing.clear_market(now=later) == 0
    assert earnings.of_node(machine.node)[0].words == "leaving, to come back with more GPUs"
    machine.says(
        world.status(share, "gone", exit=world.exited(75, "drain"), settled=True),
        now=later + timedelta(seconds=10),
    )
    lease.job.refresh_from_db()
    assert lease.job.state == "queued"
    assert clearing.clear_market(now=later + timedelta(seconds=12)) == 1
    again = Lease.objects.live().get()
    assert (again.job, again.gpus_count) == (lease.job, 4)
    # It paid 2.00 for each, and pays no less.
    assert again.price_micros == 2 * MICRO
    assert not Hold.objects.exists()
    waits.refresh_from_db()
    assert waits.state == "queued"


def test_it_goes_over_the_site_where_its_job_accepts_that(buyer, now):
    supplier = world.org(now=now)
    full = world.agent(supplier, now=now, gpus=2, lan_address="10.0.0.1")
    world.agent(supplier, now=now, gpus=2, site=full.node.site, lan_address="10.0.0.2")
    lease = elastic(buyer, full, now, level=1)
    Job.objects.update(level=0)
    assert grow(now + AFTER) == 0
    Job.objects.update(level=1)
    assert grow(now + AFTER) == 1
    assert HeldGpu.objects.filter(hold__job=lease.job).count() == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"gpus_max": 2},
        {"limits": {"h100-sxm": 1_010_000}},
    ],
    ids=["it wants no more", "it gains too little"],
)
def test_it_stays_as_it_is_where(buyer, machine, now, changes):
    elastic(buyer, machine, now, **changes)
    assert grow(now + AFTER) == 0
    assert not Hold.objects.exists()


def test_not_before_ten_minutes_nor_again_within_the_hour(buyer, machine, now):
    lease = elastic(buyer, machine, now)
    assert grow(now + timedelta(seconds=599)) == 0
    ended = Lease.objects.create(
        job=lease.job, epoch=lease.epoch + 10**6, gpu_class="h100-sxm", level=0, gpus_count=1,
        price_micros=MICRO, save_s=1, created_at=now, until=now, start_by=now, state="ended",
        state_since=now, end_reason="grown", ended_at=now - timedelta(minutes=30),
    )  # fmt: skip
    assert grow(now + AFTER) == 0
    ended.delete()
    assert grow(now + AFTER) == 1


def test_a_budget_that_is_nearly_used_up_is_not_spent_on_a_move(buyer, machine, now):
    elastic(buyer, machine, now)
    Job.objects.update(spent_micros=99_950_000)
    assert grow(now + AFTER) == 0


def test_a_wallet_that_could_not_start_it_again_lets_it_run_on(machine, now):
    with transaction.atomic():
        poor = world.org(now=now, wallet=200_000)
    elastic(poor, machine, now)
    assert grow(now + AFTER) == 0


def test_what_somebody_has_taken_meanwhile_is_not_held(buyer, machine, now):
    lease = elastic(buyer, machine, now)
    later = now + AFTER
    Node.objects.update(last_seen_at=later)
    stale = lots.standing(lots.read(now=later), now=later)
    world.job(buyer, now=now, limits=LIMIT, gpus_min=2, gpus_max=2)
    assert clearing.clear_market(now=later) == 1
    assert growing.grow_market(lambda _: stale, now=later) == 0
    lease.refresh_from_db()
    assert lease.end_reason == ""


def test_its_buyer_is_told(buyer, machine, now):
    lease = elastic(buyer, machine, now)
    grow(now + AFTER)
    look = jobview.look(Job.objects.get(pk=lease.job.pk), now=now + AFTER)
    assert look.lease is not None
    assert look.lease.end_reason == "grown"
    assert Assignment.objects.get().drain_at == now + AFTER
