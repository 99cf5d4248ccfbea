"""The book that a worker keeps from round to round is the book that it would read anew."""

import random
import secrets
import threading
from datetime import timedelta

import pytest
from django.db import OperationalError, connection, transaction

from buyers.models import Job
from marketplace.core.money import MICRO
from scheduler import clearing, following, holds, lots, public, snapshots
from scheduler.following import Followed, Offers
from scheduler.models import HeldGpu, Hold, Lease, LeasedGpu, Moved
from suppliers.models import Gpu, Node, Offer, Site
from tests import world

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def buyer(now):
    with transaction.atomic():
        return world.org("Buyer", now=now, wallet=1000 * MICRO)


@pytest.fixture
def supplier(now):
    return world.org("Supplier", now=now)


@pytest.fixture(autouse=True)
def one_secret(monkeypatch):
    """Rounds are numbered by secrets of their own; these by one, so that books can be compared."""
    monkeypatch.setattr(secrets, "token_bytes", lambda length: b"s" * length)


def same(followed, now):
    """Asserts that both ways of reading give one book."""
    kept, fresh = followed.read(now), snapshots.read(now)
    assert [job.pk for job in kept.jobs] == [job.pk for job in fresh.jobs]
    assert [job.limits for job in kept.jobs] == [job.limits for job in fresh.jobs]
    assert kept.versions == fresh.versions
    assert list(kept.rows) == list(fresh.rows)
    assert list(kept.standing) == list(fresh.standing)
    for name, array in fresh.book.as_arrays().items():
        assert (kept.book.as_arrays()[name] == array).all(), name


def test_nothing_moved_is_nothing_read(buyer, supplier, now, django_assert_num_queries):
    world.agent(supplier, now=now)
    world.job(buyer, now=now)
    followed = Followed()
    followed.read(now)
    followed.read(now)
    # Who waits, who is silent, what is under way, what moved, and what is held.
    with django_assert_num_queries(5):
        assert len(followed.read(now).rows) == 1


def test_a_heartbeat_is_no_move_but_silence_is_seen(buyer, supplier, now):
    agent = world.agent(supplier, now=now)
    world.job(buyer, now=now)
    followed = Followed()
    followed.read(now)
    Moved.objects.all().delete()
    Node.objects.filter(pk=agent.node.pk).update(last_seen_at=now)
    assert not Moved.objects.exists()
    later = now + timedelta(minutes=5)
    assert not followed.read(later).rows
    Node.objects.filter(pk=agent.node.pk).update(last_seen_at=later)
    same(followed, later)
    assert len(followed.read(later).rows) == 1


def test_what_commits_late_is_not_missed(buyer, supplier, now):
    """A writer begins before the book is read, another one after it, and it commits last."""
    early, late = (world.agent(supplier, now=now) for _ in range(2))
    world.job(buyer, now=now)
    followed = Followed()
    followed.read(now)
    begun, go_on = threading.Event(), threading.Event()

    def write():
        try:
            with transaction.atomic():
                Offer.objects.filter(node=early.node).update(state="paused")
                begun.set()
                assert go_on.wait(30)
        finally:
            connection.close()

    writer = threading.Thread(target=write)
    writer.start()
    assert begun.wait(30)
    Offer.objects.filter(node=late.node).update(state="paused")
    assert [row.stands.node for row in followed.read(now).rows] == [str(early.node.pk)]
    same(followed, now)
    go_on.set()
    writer.join()
    assert followed.read(now).rows == []
    same(followed, now)


@pytest.mark.parametrize("seed", range(4))
def test_after_any_changes_the_kept_book_is_the_fresh_one(buyer, supplier, now, seed):
    chance = random.Random(seed)
    agents = [world.agent(supplier, now=now, gpus=chance.choice([1, 2])) for _ in range(6)]
    jobs = [world.job(buyer, now=now) for _ in range(4)]
    followed = Followed()

    def offer():
        return chance.choice(list(Offer.objects.all()))

    def node():
        return chance.choice(agents).node

    def set_node(**changes):
        Node.objects.filter(pk=node().pk).update(**changes)

    def new_price():
        old = offer()
        Offer.objects.filter(node=old.node).update(state="closed")
        Offer.objects.create(
            node=old.node, ask_micros=chance.randrange(MICRO, 3 * MICRO), notice_s=60, state="open",
            state_since=now,
        )  # fmt: skip

    def undone():
        with transaction.atomic():
            set_node(state="retired")
            transaction.set_rollback(True)

    def hold():
        job = chance.choice(list(Job.objects.queued()) or jobs)
        free = list(Gpu.objects.filter(held=None, node=node()))
        if free and not Hold.objects.filter(job=job).exists():
            made = Hold.objects.create(job=job, at=now, until=now + timedelta(minutes=5))
            HeldGpu.objects.create(hold=made, gpu=chance.choice(free), least_micros=MICRO)

    changes = [
        lambda: Offer.objects.filter(pk=offer().pk).exclude(state="closed").update(
            state=chance.choice(["open", "paused"])
        ),
        new_price,
        undone,
        lambda: set_node(owner_busy=chance.random() < 0.5),
        lambda: set_node(lan_address=chance.choice(["", "10.0.0.1"])),
        lambda: set_node(session=None if chance.random() < 0.3 else node().session),
        lambda: set_node(inventory={"environment": {"packages": {"ray": "2"}}}),
        lambda: set_node(disk_bytes=chance.randrange(10**12)),
        lambda: set_node(last_seen_at=now - timedelta(seconds=chance.choice([0, 600]))),
        lambda: Site.objects.filter(pk=node().site_id).update(trust=chance.randrange(4)),
        lambda: Gpu.objects.filter(node=node()).update(present=chance.random() < 0.7),
        lambda: agents.append(world.agent(supplier, now=now)),
        lambda: jobs.append(world.job(buyer, now=now, gpus_max=2)),
        lambda: Job.objects.filter(pk=chance.choice(jobs).pk, state="queued").update(
            limits={"h100-sxm": chance.randrange(MICRO, 5 * MICRO)}
        ),
        lambda: Job.objects.filter(pk=chance.choice(jobs).pk, state="queued").update(
            state="cancelled"
        ),
        lambda: LeasedGpu.objects.filter(released_at=None).update(released_at=now),
        hold,
        lambda: holds.release([chance.choice(jobs).pk]),
        lambda: clearing.clear_market(now=now, followed=followed),
    ]  # fmt: skip
    for _ in range(25):
        for _ in range(chance.randrange(4)):
            chance.choice(changes)()
        same(followed, now)


def test_a_round_from_a_kept_book_that_is_behind_drops_what_moved(buyer, supplier, now):
    """The moves are lost (as if a trigger were missing): the commit itself looks again."""
    agent = world.agent(supplier, now=now)
    job = world.job(buyer, now=now)
    followed = Followed()
    followed.read(now)
    Offer.objects.filter(node=agent.node).update(state="paused")
    Moved.objects.all().delete()
    assert clearing.clear_market(now=now, followed=followed) == 0
    job.refresh_from_db()
    assert job.state == "queued"
    assert not Lease.objects.exists()


def test_all_is_read_anew_now_and_then(buyer, supplier, now):
    agent = world.agent(supplier, now=now)
    world.job(buyer, now=now)
    followed = Followed()
    followed.read(now)
    Offer.objects.filter(node=agent.node).update(state="paused")
    Moved.objects.all().delete()
    assert len(followed.read(now).rows) == 1
    later = now + following.ANEW
    Node.objects.update(last_seen_at=later)
    assert followed.read(later).rows == []


def test_a_lot_gives_its_row_on_demand(supplier, now):
    agent = world.agent(supplier, now=now)
    (lot,) = lots.read(now=now)
    assert lot.offer.pk == lot.offer_id == agent.node.offers.get().pk
    assert lot.offer.node == agent.node


def test_the_market_page_shows_what_was_noted_for_half_a_minute(supplier, now):
    world.agent(supplier, now=now, gpus=2)
    followed = Followed()
    public.note_supply(followed.standing, now=now)
    other = world.agent(supplier, now=now, gpus=4)
    (shown,) = public.look(now=now + timedelta(seconds=9)).supply
    assert (shown.gpus, shown.nodes) == (2, 1)
    # Noted again, and no longer read; what is too old is not shown.
    public.note_supply(followed.standing, now=now + timedelta(seconds=9))
    assert public.look(now=now + timedelta(seconds=9)).supply[0].gpus == 2
    public.note_supply(followed.standing, now=now + timedelta(seconds=11))
    assert public.look(now=now + timedelta(seconds=12)).supply[0].gpus == 6
    later = now + timedelta(seconds=50)
    Node.objects.filter(pk=other.node.pk).update(last_seen_at=later)
    assert public.look(now=later).supply[0].gpus == 4


def test_the_ladders_of_a_round_are_kept_for_the_next(buyer, supplier, now):
    agent = world.agent(supplier, now=now)
    world.job(buyer, now=now)
    followed = Followed()
    assert clearing.clear_market(now=now, followed=followed) == 1
    assert followed.ladders.keys() == {str(agent.node.pk)}
    assert (followed.ladders[str(agent.node.pk)] > 0).all()


def test_what_a_caller_itself_has_moved_is_seen_and_not_kept(supplier, now):
    agent = world.agent(supplier, now=now)
    offers = Offers()
    assert len(offers.standing(now)) == 1
    with transaction.atomic():
        Offer.objects.filter(node=agent.node).update(state="paused")
        assert not offers.standing(now)
        transaction.set_rollback(True)
    assert offers.standing(now).lots == lots.standing(lots.read(now=now), now=now)
    assert len(offers.standing(now)) == 1


def test_a_fault_while_offers_are_read_again_loses_none(supplier, now):
    agent = world.agent(supplier, now=now)
    offers = Offers()
    offers.standing(now)
    Offer.objects.filter(node=agent.node).update(ask_micros=2 * MICRO)

    def cut(execute, sql, params, many, context):
        if "FROM suppliers_offer" in sql:
            raise OperationalError("the connection is gone")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(cut), pytest.raises(OperationalError):
        offers.standing(now)
    assert offers.standing(now).lots == lots.standing(lots.read(now=now), now=now)
