"""A round's commit: set by set, whole or not at all, and no GPU twice."""

import json
import random
import threading
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from marketplace import locks
from marketplace.core.money import MICRO
from marketplace.ledger import services as ledger
from marketplace.models import StateChange
from scheduler import clearing, leases, seating, snapshots
from scheduler.drafting import Placement
from scheduler.models import Assignment, ClearingPrice, Lease, LeasedGpu, Round
from scheduler.seats import seated
from tests import world


@pytest.fixture
def buyer(now):
    """In a transaction of its own, which money wants."""
    with transaction.atomic():
        return world.org("Buyer", now=now, wallet=1000 * MICRO)


def stock(buyer, supplier, count, now):
    """So many jobs, and as many nodes of one GPU."""
    for _ in range(count):
        world.agent(supplier, now=now)
        world.job(buyer, now=now)


def placement(job, agent):
    seat = seated(agent.node.offers.get(), agent.node.gpus.all(), 2 * MICRO)
    return Placement(job, "h100-sxm", 0, (seat,))


@pytest.mark.django_db(transaction=True)
def test_a_round_of_fifty_matches_takes_as_many_statements_as_a_round_of_one(buyer, now):
    supplier = world.org("Supplier", now=now)
    counts = []
    for size, second in ((1, 0), (50, 5)):
        stock(buyer, supplier, size, now)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert clearing.clear_market(now=now + timedelta(seconds=second)) == size
        counts.append(len(queries))
    # One more or less where the first round makes an account.
    assert abs(counts[0] - counts[1]) <= 2
    assert counts[1] < 55


@pytest.mark.django_db
def test_committing_the_same_round_twice_changes_nothing(buyer, now):
    stock(buyer, world.org("Supplier", now=now), 3, now)
    snapshot = snapshots.read(now)
    matches = clearing.clear(snapshot.book)
    for _ in range(2):
        seated = seating.seat(snapshot, matches, now=now)
        clearing._commit(snapshot, matches, seated, now=now)
    assert Lease.objects.count() == LeasedGpu.objects.count() == 3
    assert Round.objects.count() == 1
    assert ledger.imbalance() == 0


@pytest.mark.django_db
def test_a_gpu_let_by_somebody_else_fails_loudly_and_leaves_nothing(buyer, node, now):
    first, second = world.job(buyer, now=now), world.job(buyer, now=now)
    leases.place([placement(first, node)], round=None, now=now)
    with pytest.raises(IntegrityError), transaction.atomic():
        leases.place([placement(second, node)], round=None, now=now)
    assert Lease.objects.count() == 1
    assert ledger.audit() == {}


@pytest.fixture
def commit(worker, now):
    """Commits the waiting round in a process of its own, which dies at a moment; see committer."""
    return lambda moment: worker("committer", moment, now)


def nothing_is_left(buyer, held):
    for model in (Round, Lease, Assignment, LeasedGpu, ClearingPrice):
        assert not model.objects.exists()
    assert not StateChange.objects.filter(event="place").exists()
    assert ledger.balance(ledger.wallet(buyer.pk)) == held


def the_whole_round_is_there():
    assert Lease.objects.count() == Assignment.objects.count() == LeasedGpu.objects.count() == 4
    assert Round.objects.get().matched_jobs == 4
    assert StateChange.objects.filter(event="place").count() == 4
    assert ledger.audit() == {}


@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(600)
def test_a_worker_killed_at_any_statement_leaves_nothing_and_at_the_end_the_whole_round(
    buyer, commit, now
):
    stock(buyer, world.org("Supplier", now=now), 4, now)
    held = ledger.balance(ledger.wallet(buyer.pk))
    # 1. In the midst of each COPY, which PostgreSQL has half of.
    for number in range(1, 7):
        assert commit(f"copy {number}").returncode == -9
        nothing_is_left(buyer, held)
    # 2. After some of the statements: the lock, the first rows, the last ones.
    for number in (1, 5, 9, 13, 17):
        assert commit(f"statement {number}").returncode == -9
        nothing_is_left(buyer, held)
    # 3. With all written, and COMMIT not sent.
    assert commit("before commit").returncode == -9
    nothing_is_left(buyer, held)
    # 4. COMMIT has come back, and nobody has been told.
    assert commit("after commit").returncode == -9
    the_whole_round_is_there()
    # 5. The next worker finds nothing to repeat.
    done = commit("never")
    assert done.returncode == 0, done.stderr
    the_whole_round_is_there()


@pytest.mark.django_db(transaction=True)
def test_the_moments_to_be_killed_at_are_all_of_a_commit(buyer, commit, now):
    stock(buyer, world.org("Supplier", now=now), 4, now)
    done = commit("never")
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    # Transfers, leases, assignments, their GPUs, the jobs' stories, prices.
    assert counted["copy"] == 6
    assert counted["statement"] > 17
    the_whole_round_is_there()


@pytest.mark.django_db
def test_a_round_matches_a_job_once(buyer, now):
    """`matched_once_per_round`: a second lease of the same round and job is refused, even when the
    first has ended."""
    supplier = world.org("Supplier", now=now)
    stock(buyer, supplier, 1, now)
    assert clearing.clear_market(now=now) == 1
    lease = Lease.objects.get()
    Lease.objects.update(state="ended", end_reason="expired", ended_at=now)
    type(lease.job).objects.update(state="queued")
    LeasedGpu.objects.update(released_at=now)
    lease.job.refresh_from_db()
    other = world.agent(supplier, now=now)
    with pytest.raises(IntegrityError, match="matched_once_per_round"), transaction.atomic():
        leases.place([placement(lease.job, other)], round=lease.round, now=now)
    assert Lease.objects.count() == 1
    assert ledger.audit() == {}


@pytest.mark.django_db(transaction=True)
def test_eight_writers_at_once_let_no_gpu_twice(buyer, now):
    supplier = world.org("Supplier", now=now)
    agents = [world.agent(supplier, now=now) for _ in range(6)]
    jobs = [world.job(buyer, now=now) for _ in range(8)]
    failures = []

    def write(number):
        try:
            if number % 2:
                clearing.clear_market(now=now + timedelta(seconds=number))
                return
            with transaction.atomic():
                locks.hold(leases.MARKET_LOCK)
                job = type(jobs[number]).objects.select_for_update().get(pk=jobs[number].pk)
                agent = agents[random.Random(number).randrange(6)]
                let = LeasedGpu.objects.filter(gpu__node=agent.node, released_at=None)
                if job.state == "queued" and not let.exists():
                    leases.place([placement(job, agent)], round=None, now=now)
        except BaseException as error:  # noqa: BLE001 (told below)
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=write, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    # A round that met a take has left its gang to the next.
    clearing.clear_market(now=now + timedelta(seconds=8))
    let = list(LeasedGpu.objects.values_list("gpu", flat=True))
    assert len(let) == len(set(let)) == 6
    assert ledger.audit() == {}
