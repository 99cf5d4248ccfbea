"""Leases, assignments and let GPUs have no foreign keys in the database: what stands in their place
refuses the same, one statement at a time, and whoever comes first."""

import threading
import time
from contextlib import contextmanager

import pytest
from django.db import IntegrityError, NotSupportedError, connection, models, transaction

from buyers.models import Job
from marketplace import bulk
from marketplace.core.ids import uuid7
from marketplace.core.money import MICRO
from marketplace.models import Org
from scheduler.models import Assignment, Lease, LeasedGpu, Round
from suppliers.models import Gpu, Node, Offer
from tests import world

REFERENCES = [
    (model, field.attname, field.related_model)
    for model in (Lease, Assignment, LeasedGpu)
    for field in model._meta.concrete_fields
    if isinstance(field, models.ForeignKey)
]


@pytest.fixture
def lease(buyer, node, now):
    return world.lease(world.job(buyer, now=now), node, now=now)


def copy_of(row):
    """A row's columns but for what is unique in it, as `bulk.write` takes them."""
    told = {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}
    again = {"id": uuid7(), "epoch": 10**9, "rank": 7, "state": "ended", "end_reason": "expired"}
    if not isinstance(row, Lease):
        again = {"id": uuid7(), "rank": 7}
    told |= {name: value for name, value in again.items() if name in told}
    if isinstance(row, LeasedGpu):
        del told["id"]
    return {name: [value] for name, value in told.items()}


def test_no_foreign_key_that_is_left_to_the_triggers_is_forgotten():
    for model, name, _ in REFERENCES:
        assert not model._meta.get_field(name).db_constraint, (model, name)


@pytest.mark.django_db
@pytest.mark.parametrize(("model", "name", "parent"), REFERENCES)
def test_a_reference_to_what_is_not_there_is_refused(lease, now, model, name, parent):
    written = copy_of(model.objects.get())
    if model is Lease:
        written["ended_at"] = [now]
    if model is Assignment:
        written["node_id"] = [world.agent(world.org("Other", now=now), now=now).node.pk]
    if model is LeasedGpu:
        written["released_at"] = [now]
    written[name] = [uuid7()]
    with pytest.raises(IntegrityError, match=rf"Key \({name}\)=") as refused, transaction.atomic():
        bulk.write(model, written, {})
    assert refused.value.__cause__.sqlstate == "23503"  # foreign_key_violation
    assert model.objects.count() == 1


@pytest.mark.django_db
def test_one_bad_reference_among_many_rows_is_enough(lease, buyer, now):
    jobs = [world.job(buyer, now=now).pk for _ in range(20)]
    told = {name: values * 21 for name, values in copy_of(lease).items()}
    told |= {"id": [uuid7() for _ in range(21)], "job_id": [*jobs, uuid7()]}
    told |= {"epoch": list(range(10**9, 10**9 + 21)), "ended_at": [now] * 21}
    with pytest.raises(IntegrityError, match="job_id"), transaction.atomic():
        bulk.write(Lease, told, {})
    for name in told:
        told[name] = told[name][:20]
    bulk.write(Lease, told, {})
    assert Lease.objects.count() == 21


@contextmanager
def refused_as_referred():
    with pytest.raises(IntegrityError, match="refers to it"), transaction.atomic():
        yield


@pytest.mark.django_db
@pytest.mark.parametrize("parent", [Job, Round, Node, Offer, Gpu, Lease, Org])
def test_what_is_referred_to_cannot_be_deleted(lease, now, parent):
    """Not even by SQL of one's own, where Django's PROTECT isn't asked."""
    round = Round.objects.create(
        at=now, jobs=0, gpus=0, matched_jobs=0, matched_gpus=0, welfare=0, bound=0, make_whole=0,
        seconds=0, seed=0, book_sha256="",
    )  # fmt: skip
    told = copy_of(lease) | {"round_id": [round.pk], "ended_at": [now]}
    bulk.write(Lease, told, {})
    count = parent.objects.count()
    table = connection.ops.quote_name(parent._meta.db_table)
    with refused_as_referred(), connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {table}")
    assert parent.objects.count() == count


@pytest.mark.django_db
def test_what_nothing_refers_to_can_be_deleted(lease, now):
    other = world.agent(world.org("Other", now=now), now=now)
    other.node.offers.all().delete()
    other.node.gpus.all().delete()
    assert not Offer.objects.filter(node=other.node).exists()


@pytest.mark.django_db
@pytest.mark.parametrize(("model", "name", "parent"), REFERENCES)
def test_a_reference_never_changes(lease, model, name, parent):
    with pytest.raises(IntegrityError, match="never change"), transaction.atomic():
        model.objects.update(**{name: uuid7()})
    model.objects.update(**{name: models.F(name)})  # what Django's save() says is no change


@pytest.mark.django_db
@pytest.mark.parametrize("parent", [Job, Node, Offer, Gpu, Lease, Org])
def test_what_is_referred_to_cannot_be_emptied(lease, parent):
    table = connection.ops.quote_name(parent._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        with refused_as_referred():
            cursor.execute(f"TRUNCATE {table} CASCADE")
    assert parent.objects.exists()


@pytest.fixture
def stranger():
    """Runs SQL in a thread of its own, and says how it ended."""
    ended = {}
    threads = []

    def run(name, act):
        def body():
            try:
                with transaction.atomic():
                    act()
                ended[name] = "done"
            except IntegrityError as error:
                ended[name] = str(error)
            finally:
                connection.close()

        thread = threading.Thread(target=body)
        threads.append(thread)
        thread.start()
        return thread

    yield run, ended
    for thread in threads:
        thread.join()


def wait_until_locked(table):
    """Until somebody waits for a lock on this table."""
    told = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
    for _ in range(1000):
        with connection.cursor() as cursor:
            cursor.execute(told, [table])
            if cursor.fetchone()[0]:
                return
        time.sleep(0.01)
    raise AssertionError("nobody waits")


@pytest.mark.django_db(transaction=True)
def test_who_deletes_while_a_round_writes_waits_and_is_refused(now, stranger):
    run, ended = stranger
    world.listening(now)
    with transaction.atomic():
        buyer = world.org("Buyer", now=now, wallet=1000 * MICRO)
    agent = world.agent(world.org("Supplier", now=now), now=now)
    job = world.job(buyer, now=now)
    gpu = Gpu.objects.get()
    with transaction.atomic():
        world.lease(job, agent, now=now)
        thread = run("delete", lambda: Gpu.objects.filter(pk=gpu.pk)._raw_delete("default"))
        wait_until_locked("scheduler_leasedgpu")
    thread.join()
    assert "refers to it" in ended["delete"]
    assert Gpu.objects.filter(pk=gpu.pk).exists()


@pytest.mark.django_db(transaction=True)
def test_who_writes_while_somebody_deletes_waits_and_is_refused(now, stranger):
    run, ended = stranger
    world.listening(now)
    with transaction.atomic():
        buyer = world.org("Buyer", now=now, wallet=1000 * MICRO)
    agent = world.agent(world.org("Supplier", now=now), now=now)
    job, offer = world.job(buyer, now=now), agent.node.offers.get()
    with transaction.atomic():
        Offer.objects.filter(pk=offer.pk)._raw_delete("default")
        thread = run("write", lambda: world.lease(job, agent, now=now))
        wait_until_locked("scheduler_assignment")
    thread.join()
    assert "offer_id" in ended["write"]
    assert not Lease.objects.exists()
    assert not LeasedGpu.objects.exists()


@contextmanager
def refused_for_its_isolation():
    with pytest.raises(NotSupportedError, match="READ COMMITTED"), transaction.atomic():  # noqa: PT012
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        yield


@pytest.mark.django_db(transaction=True)
def test_another_isolation_is_refused_on_both_sides(now):
    """There, a statement doesn't see what the other side has committed meanwhile."""
    agent = world.agent(world.org("Supplier", now=now), now=now)
    gpus = Gpu.objects.filter(node=agent.node)
    with refused_for_its_isolation():
        gpus._raw_delete("default")
    row = LeasedGpu(lease_id=uuid7(), gpu_id=gpus.get().pk)
    with refused_for_its_isolation():
        row.save()
    assert Gpu.objects.exists()
