"""What moves between a gang's drafting and the market's lock: what is of it is drafted anew or left,
and nothing else is."""

import pytest
from django.db import transaction

from marketplace import locks
from marketplace.core.money import MICRO
from scheduler import clearing, leases, lots, seating, snapshots
from scheduler.drafting import Placement
from scheduler.models import Lease, LeasedGpu, Moved
from scheduler.seats import seated
from suppliers.models import Gpu, Node, Offer
from tests import world

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def buyer(now):
    with transaction.atomic():
        return world.org("Buyer", now=now, wallet=1000 * MICRO)


@pytest.fixture
def supplier(now):
    return world.org("Supplier", now=now)


@pytest.fixture
def round_with(now):
    """Clears and drafts, lets something happen to the drafts, and commits; the drafts."""

    def run(happens):
        snapshot = snapshots.read(now)
        matches = clearing.clear(snapshot.book)
        drafted = seating.seat(snapshot, matches, now=now)
        drafts = [draft for _, draft in drafted.drafts]
        happens(drafts)
        with transaction.atomic():
            locks.hold(leases.MARKET_LOCK)
            clearing._commit(snapshot, matches, drafted, now=now)
        return drafts

    return run


def let_one(agent, job, now):
    """Somebody takes the first GPU of a node, as a quote is taken."""
    with transaction.atomic():
        locks.hold(leases.MARKET_LOCK)
        gpus = agent.node.gpus.order_by("index")[:1]
        seat = seated(agent.node.offers.get(), gpus, 2 * MICRO)
        assert leases.place([Placement(job, "h100-sxm", 0, (seat,))], round=None, now=now)


def test_what_has_not_moved_is_placed_as_it_was_drafted(buyer, supplier, now, round_with):
    for _ in range(3):
        world.agent(supplier, now=now)
        world.job(buyer, now=now)
    drafts = round_with(lambda _: None)
    assert {draft.id for draft in drafts} == set(Lease.objects.values_list("pk", flat=True))


TERMS = pytest.mark.parametrize(
    "change",
    [
        lambda node: Offer.objects.filter(node=node).update(state="closed"),
        lambda node: Offer.objects.filter(node=node).update(ask_micros=4 * MICRO),
        lambda node: Offer.objects.filter(node=node).update(audience="own_org"),
        lambda node: Node.objects.filter(pk=node.pk).update(owner_busy=True),
        lambda node: Node.objects.filter(pk=node.pk).update(lost_at=node.last_seen_at),
        lambda node: Node.objects.filter(pk=node.pk).update(environment="f" * 64),
        lambda node: Gpu.objects.filter(node=node).update(present=False),
        lambda node: type(node.site).objects.filter(pk=node.site_id).update(trust=1),
    ],
)


@TERMS
def test_whose_terms_moved_is_left_to_the_next_round_and_nobody_else(
    buyer, supplier, now, round_with, change
):
    agents = [world.agent(supplier, now=now) for _ in range(3)]
    for _ in agents:
        world.job(buyer, now=now)
    moved = agents[1].node
    drafts = round_with(lambda _: change(moved))
    assert len(drafts) == 3
    let = set(LeasedGpu.objects.values_list("gpu__node", flat=True))
    assert let == {agents[0].node.pk, agents[2].node.pk}
    kept = {draft.id for draft in drafts if moved.pk not in draft.nodes}
    assert kept == set(Lease.objects.values_list("pk", flat=True))


@TERMS
def test_whose_terms_moved_before_is_not_drafted_though_no_move_was_noted(
    buyer, supplier, now, change
):
    """The versions of an offer's rows tell, as if a trigger were missing."""
    agents = [world.agent(supplier, now=now) for _ in range(2)]
    for _ in agents:
        world.job(buyer, now=now)
    snapshot = snapshots.read(now)
    matches = clearing.clear(snapshot.book)
    change(agents[0].node)
    Moved.objects.all().delete()
    (draft,) = [draft for _, draft in seating.seat(snapshot, matches, now=now).drafts]
    assert draft.nodes == [agents[1].node.pk]


def test_what_a_spec_tells_of_a_machine_is_as_it_is_now(buyer, supplier, now):
    agent = world.agent(supplier, now=now)
    world.job(buyer, now=now)
    snapshot = snapshots.read(now)
    matches = clearing.clear(snapshot.book)
    Node.objects.filter(pk=agent.node.pk).update(name="renamed", bandwidth_mbps=7.0)
    ((_, draft),) = seating.seat(snapshot, matches, now=now).drafts
    machine = draft.placement.seats[0].machine
    assert (machine.name, machine.bandwidth_mbps) == ("renamed", 7.0)
    # And whoever keeps the book hears of it.
    assert [node for row in Moved.objects.all() for node in row.nodes].count(agent.node.pk) >= 1


def test_a_heartbeat_leaves_an_offer_as_it_was_read(supplier, now):
    agent = world.agent(supplier, now=now)
    before = lots.read(now=now)
    Node.objects.filter(pk=agent.node.pk).update(last_seen_at=now)
    assert lots.read(now=now) == before


def test_a_gang_whose_gpu_was_let_meanwhile_gets_another_of_the_node(
    buyer, supplier, now, round_with
):
    agent = world.agent(supplier, now=now, gpus=3)
    job = world.job(buyer, now=now)

    def take(_):
        let_one(agent, world.job(buyer, now=now, order="take"), now)

    (drafted,) = round_with(take)
    lease = Lease.objects.get(job=job)
    assert lease.pk != drafted.id
    assert LeasedGpu.objects.values("gpu").distinct().count() == 2


def test_one_that_is_drafted_anew_takes_nothing_from_those_that_stay(
    buyer, supplier, now, round_with
):
    """A gang over two nodes, of which one moves; on the other sits somebody beside it."""
    site = world.agent(supplier, now=now, lan_address="10.0.0.1", gpus=8).node.site
    world.agent(supplier, now=now, lan_address="10.0.0.2", gpus=8, site=site)
    world.job(buyer, now=now, gpus_min=12, gpus_max=12, level=1)
    world.job(buyer, now=now, gpus_min=3, gpus_max=3)
    stays = []

    def move_the_other(drafts):
        (alone,) = [draft for draft in drafts if len(draft.nodes) == 1]
        stays.append(alone.id)
        Offer.objects.exclude(node__in=alone.nodes).update(notice_s=61)

    round_with(move_the_other)
    assert Lease.objects.filter(pk__in=stays).exists()
    assert Lease.objects.count() == 2
    assert LeasedGpu.objects.values("gpu").distinct().count() == 15


def test_a_job_that_moved_meanwhile_is_left(buyer, supplier, now, round_with):
    world.agent(supplier, now=now)
    job = world.job(buyer, now=now)
    round_with(lambda _: type(job).objects.filter(pk=job.pk).update(name="another"))
    assert not Lease.objects.exists()
