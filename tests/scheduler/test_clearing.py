"""Rounds: what is matched is placed whole, at one price a cell, or left to the next round."""

from datetime import timedelta

import pytest

from agent import protocol
from marketplace.core.money import MICRO, gross_ask
from marketplace.ledger import services as ledger
from scheduler import clearing, snapshots
from scheduler.models import ClearingPrice, Lease, LeasedGpu, Round
from suppliers.models import Node, Offer
from tests import world

pytestmark = pytest.mark.django_db
H100 = "h100-sxm"


@pytest.fixture
def supplier(now):
    return world.org("Supplier", now=now)


def test_the_cheapest_machine_that_fits_gets_the_job(buyer, supplier, now):
    world.agent(supplier, now=now, ask=2 * MICRO)
    cheap = world.agent(supplier, now=now, ask=1 * MICRO)
    job = world.job(buyer, now=now)
    assert clearing.clear_market(now=now) == 1
    lease = Lease.objects.get()
    assert lease.assignments.get().node == cheap.node
    job.refresh_from_db()
    assert job.state == "placed"


def test_the_price_lies_between_ask_and_limit(buyer, supplier, now):
    world.agent(supplier, now=now, ask=1 * MICRO)
    world.job(buyer, now=now, limits={H100: 3 * MICRO})
    clearing.clear_market(now=now)
    share = Lease.objects.get().assignments.get()
    assert gross_ask(1 * MICRO, take_bps=800) <= share.price_micros <= 3 * MICRO


def test_two_jobs_in_one_cell_pay_one_price(buyer, supplier, now):
    world.agent(supplier, now=now, ask=1 * MICRO)
    world.agent(supplier, now=now, ask=2 * MICRO)
    world.job(buyer, now=now, limits={H100: 3 * MICRO})
    world.job(buyer, now=now, limits={H100: 4 * MICRO})
    assert clearing.clear_market(now=now) == 2
    prices = {
        share.price_micros for lease in Lease.objects.all() for share in lease.assignments.all()
    }
    assert len(prices) == 1


def test_clearing_twice_leases_once(buyer, supplier, now):
    world.agent(supplier, now=now)
    world.job(buyer, now=now)
    assert clearing.clear_market(now=now) == 1
    assert clearing.clear_market(now=now) == 0
    assert Lease.objects.count() == 1


def test_a_gang_is_placed_whole_or_not_at_all(buyer, supplier, now):
    world.agent(supplier, now=now, gpus=4)
    world.job(buyer, now=now, gpus_min=8, gpus_max=8)
    assert clearing.clear_market(now=now) == 0
    world.agent(supplier, now=now, gpus=8)
    assert clearing.clear_market(now=now + timedelta(seconds=5)) == 1
    assert LeasedGpu.objects.count() == 8


def test_a_gang_may_span_a_site_if_it_says_so(buyer, supplier, now):
    first = world.agent(supplier, now=now, gpus=4, lan_address="10.0.0.1")
    other = world.agent(supplier, now=now, gpus=4, site=first.node.site)
    world.job(buyer, now=now, gpus_min=8, gpus_max=8, level=0)
    assert clearing.clear_market(now=now) == 0
    world.job(buyer, now=now, gpus_min=8, gpus_max=8, level=1)
    # A node that peers can't reach is in no gang, wherever it stands.
    assert clearing.clear_market(now=now + timedelta(seconds=5)) == 0
    Node.objects.filter(pk=other.node.pk).update(lan_address="10.0.0.2")
    assert clearing.clear_market(now=now + timedelta(seconds=10)) == 1
    lease = Lease.objects.get()
    assert lease.level == 1
    assert lease.assignments.count() == 2


def test_nodes_that_differ_in_what_a_gang_does_not_mind_are_one_gang(buyer, supplier, now):
    first = world.agent(supplier, now=now, lan_address="10.0.0.1", disk_bytes=300 * world.GIB)
    site = first.node.site
    world.agent(supplier, now=now, lan_address="10.0.0.2", site=site, gpu_memory=90 * world.GIB)
    world.job(buyer, now=now, gpus_min=2, gpus_max=2, level=1)
    assert clearing.clear_market(now=now) == 1


def test_the_ranks_of_a_gang_run_the_same_environment(buyer, supplier, now):
    first = world.agent(supplier, now=now, lan_address="10.0.0.1")
    other = world.agent(
        supplier, now=now, lan_address="10.0.0.2", site=first.node.site, environment="f" * 64
    )
    world.job(buyer, now=now, gpus_min=2, gpus_max=2, level=1)
    assert clearing.clear_market(now=now) == 0
    Node.objects.filter(pk=other.node.pk).update(environment=first.node.environment)
    assert clearing.clear_market(now=now + timedelta(seconds=5)) == 1


@pytest.mark.parametrize(
    ("job", "node"),
    [
        ({"limits": {"rtx-4090": 5 * MICRO}}, {}),
        ({"limits": {H100: MICRO}}, {}),
        ({"memory_bytes": 100 * world.GIB}, {}),
        ({"disk_bytes": 10_000 * world.GIB}, {}),
        ({"regions": ["us-east"]}, {}),
        ({"trust": 2}, {"trust": 3}),
        ({"tier": 1}, {}),
        ({"environment": "f" * 64}, {}),
        ({}, {"audience": "own_org"}),
        ({}, {"owner_busy": True}),
        ({}, {"state": "pending"}),
        ({}, {"session": None}),
        ({}, {"windows": [[0, 1]]}),
    ],
)
def test_what_does_not_fit_is_not_matched(buyer, supplier, now, job, node):
    world.agent(supplier, now=now, **node)
    world.job(buyer, now=now, **job)
    assert clearing.clear_market(now=now) == 0


def test_a_node_not_heard_of_lately_is_not_matched(buyer, supplier, now):
    world.agent(supplier, now=now)
    world.job(buyer, now=now)
    assert clearing.clear_market(now=now + timedelta(seconds=31)) == 0


def test_a_node_that_failed_a_job_is_not_given_it_again(buyer, supplier, now):
    bad = world.agent(supplier, now=now, ask=MICRO)
    good = world.agent(supplier, now=now, ask=2 * MICRO)
    world.job(buyer, now=now, avoid_nodes=[str(bad.node.pk)])
    world.job(buyer, now=now)
    assert clearing.clear_market(now=now) == 2
    placed = {
        lease.job.avoid_nodes != []: lease.assignments.get().node for lease in Lease.objects.all()
    }
    assert placed == {True: good.node, False: bad.node}


def test_a_job_without_money_is_stopped_and_the_others_are_placed(buyer, supplier, now):
    world.agent(supplier, now=now)
    world.agent(supplier, now=now)
    poor = world.job(world.org(now=now), now=now)
    rich = world.job(buyer, now=now)
    assert clearing.clear_market(now=now) == 1
    poor.refresh_from_db()
    rich.refresh_from_db()
    assert (poor.state, rich.state) == ("stopped", "placed")
    assert "wallet" in poor.story().last().reason
    assert Round.objects.get().matched_jobs == 1
    assert ledger.imbalance() == 0


def test_an_offer_that_changed_since_the_book_was_read_drops_the_whole_gang(
    buyer, supplier, now, monkeypatch
):
    node = world.agent(supplier, now=now)
    job = world.job(buyer, now=now)
    read = snapshots.read

    def read_then_close(at):
        snapshot = read(at)
        Offer.objects.filter(node=node.node).update(state="closed")
        return snapshot

    monkeypatch.setattr(snapshots, "read", read_then_close)
    assert clearing.clear_market(now=now) == 0
    job.refresh_from_db()
    assert job.state == "queued"
    assert not Lease.objects.exists()


def test_a_round_publishes_its_prices_and_the_books_hash(buyer, supplier, now):
    world.agent(supplier, now=now)
    world.job(buyer, now=now)
    clearing.clear_market(now=now)
    round = Round.objects.get()
    assert len(round.book_sha256) == 64
    assert round.bound >= round.welfare > 0
    price = ClearingPrice.objects.get()
    assert price.gpu_class == H100
    assert price.cell.startswith(f"{H100}/eu-west/")
    assert price.price_micros == Lease.objects.get().price_micros


def test_a_round_with_nothing_to_match_is_not_worth_a_row(buyer, supplier, now):
    world.agent(supplier, now=now)
    clearing.clear_market(now=now)
    assert not Round.objects.exists()
    world.job(buyer, now=now, limits={"b200": MICRO})
    for second in range(0, 60, 5):
        clearing.clear_market(now=now + timedelta(seconds=second))
        Node.objects.update(last_seen_at=now + timedelta(seconds=second))
    assert Round.objects.count() == 1


def test_two_jobs_share_one_machine(buyer, supplier, now):
    world.agent(supplier, now=now, gpus=4)
    for _ in range(2):
        world.job(buyer, now=now, gpus_min=2, gpus_max=2)
    assert clearing.clear_market(now=now) == 2
    assert LeasedGpu.objects.values("gpu").distinct().count() == 4


def test_a_job_that_must_reach_names_goes_where_the_owner_lets_it(buyer, supplier, now):
    world.agent(supplier, now=now, ask=1 * MICRO)
    open_ = world.agent(supplier, now=now, ask=2 * MICRO, egress=True)
    job = world.job(buyer, now=now, egress=["huggingface.co"])
    clearing.clear_market(now=now)
    share = Lease.objects.get(job=job).assignments.get()
    assert share.node == open_.node
    spec = protocol.decode(bytes(share.spec), protocol.AssignmentSpec)
    assert spec.egress == ["huggingface.co"]
