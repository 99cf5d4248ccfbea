"""Checkpoints that turn out good or bad when somebody goes on from them, and who pays."""

import hashlib

import pytest

from agent import protocol
from buyers.models import Checkpoint, Job, MetricPoint
from marketplace import storage
from marketplace.core.errors import Conflict
from marketplace.core.ids import uuid7
from marketplace.core.money import MICRO
from marketplace.ledger import services as ledger
from scheduler import assignments, book, jobs, metering, restores, specs, watch
from scheduler.models import Credit
from tests import world
from tests.scheduler.test_leases import seconds

pytestmark = pytest.mark.django_db


@pytest.fixture
def other(now):
    return world.agent(world.org("Other", now=now), now=now)


def saved(lease, step, *, running_ms, now, body=b"weights"):
    """A committed checkpoint of a lease, its one file in storage."""
    sha256 = hashlib.sha256(body).hexdigest()
    entry = protocol.File(path="w", bytes=len(body), sha256=sha256)
    prefix = storage.run_prefix(lease.job_id, lease.epoch, "checkpoint", step)
    lease.assignments.update(saved_ms=running_ms)
    return Checkpoint.objects.create(
        id=uuid7(), job=lease.job, epoch=lease.epoch, step=step, running_ms=running_ms,
        manifest=[{"path": "w", "bytes": len(body), "sha256": sha256}], prefix=prefix,
        sha256=protocol.manifest_sha256([entry]), bytes=len(body), created_at=now,
        committed_at=now, place="work/results/checkpoint-" + str(step),
    )  # fmt: skip


def run(node, lease, now, *, ran_s, since_s=0):
    """Runs, is heard of each ten seconds, claims it, and is billed for it."""
    share = lease.assignments.get()
    for second in range(since_s, ran_s + 1, 10):
        node.says(
            world.status(share, "running", running_ms=second * 1000), now=now + seconds(second)
        )
    at = now + seconds(ran_s)
    metering.claim(node.node, node.claim(share, ran_s * 1000), now=at)
    metering.settle(now=at)
    return at


def reclaimed(node, lease, at):
    """Its owner has the node back; the job waits again."""
    watch.reclaim(node.node, why="", now=at)
    node.says(
        world.status(lease.assignments.get(), "gone", exit=world.exited(75), settled=True), now=at
    )
    lease.job.refresh_from_db()
    assert lease.job.state == "queued"


def cannot_read(node, lease, at):
    """A node finds other bytes in the checkpoint than its manifest says."""
    exit = world.exited(None, "checkpoint")
    share = lease.assignments.get()
    node.says(
        world.status(share, "gone", exit=exit, settled=True, detail="its SHA-256 differs"), now=at
    )


@pytest.fixture
def interrupted(buyer, node, now):
    """A job that saved at 50 s and at 90 s of a hundred, and waits for another node."""
    job = world.job(buyer, now=now)
    lease = world.lease(job, node, now=now, price=36 * MICRO)  # a cent a second
    run(node, lease, now, ran_s=50)
    saved(lease, 5, running_ms=50_000, now=now)
    at = run(node, lease, now, ran_s=100, since_s=60)
    saved(lease, 9, running_ms=90_000, now=now, body=b"newer")
    reclaimed(node, lease, at)
    assert job.leases.get().end_reason == "reclaimed"
    job.refresh_from_db()
    return job


def rot(checkpoint):
    """What lies in storage is not what was declared."""
    (entry,) = checkpoint.manifest
    storage.put(storage.file_key(checkpoint.prefix, entry["sha256"]), b"rotten")


def put(checkpoint, body):
    (entry,) = checkpoint.manifest
    storage.put(storage.file_key(checkpoint.prefix, entry["sha256"]), body)


def test_what_was_lost_is_credited_from_when_it_was_written_not_from_when_it_had_arrived(
    interrupted, buyer
):
    (credit,) = Credit.objects.all()
    assert credit.micros == 10 * 10_000  # from 90 to 100 s
    assert interrupted.spent_micros == 90 * 10_000


@pytest.mark.usefixtures("s3")
def test_a_bad_checkpoint_is_doubted_and_the_one_before_is_offered_at_once(interrupted, other, now):
    at = now + seconds(200)
    lease = world.lease(interrupted, other, now=at)
    cannot_read(other, lease, at)
    interrupted.refresh_from_db()
    assert interrupted.state == "queued"
    assert interrupted.fruitless == 0
    assert str(other.node.pk) not in interrupted.avoid_nodes
    furthest = specs.furthest(interrupted)
    assert furthest is not None
    assert furthest.step == 5
    assert "differs" in interrupted.story().last().reason


@pytest.mark.usefixtures("s3")
def test_whoever_wrote_a_bad_checkpoint_is_not_paid_for_what_it_claimed_to_have_saved(
    interrupted, node, other, buyer, now
):
    bad = interrupted.checkpoints.get(step=9)
    rot(bad)
    at = now + seconds(200)
    cannot_read(other, world.lease(interrupted, other, now=at), at)
    assert restores.judge(now=at) == 1
    bad.refresh_from_db()
    assert bad.bad_at == at
    assert bad.doubted_at is None
    assert bad not in Checkpoint.objects.usable()
    # From 50 s on nothing of the first attempt is of use: 50 to 90 now, 90 to 100 before.
    first = interrupted.leases.order_by("epoch").first().assignments.get()
    assert sorted(c.micros for c in first.credits.all()) == [10 * 10_000, 40 * 10_000]
    assert any("can't be read" in credit.reason for credit in first.credits.all())
    interrupted.refresh_from_db()
    assert interrupted.spent_micros == 50 * 10_000
    assert ledger.balance(ledger.payable(node.node.site.org_id)) == 50 * 9_200
    assert (
        ledger.balance(ledger.wallet(buyer.pk)) + ledger.balance(ledger.escrow(interrupted.pk))
        == 1000 * MICRO - 50 * 10_000
    )
    assert ledger.imbalance() == 0
    assert restores.judge(now=at) == 0


@pytest.mark.usefixtures("s3")
def test_a_node_that_cries_wolf_is_at_fault_itself(interrupted, node, other, now):
    good = interrupted.checkpoints.get(step=9)
    put(good, b"newer")
    at = now + seconds(200)
    lease = world.lease(interrupted, other, now=at)
    cannot_read(other, lease, at)
    restores.judge(now=at)
    assert specs.furthest(interrupted) == good
    interrupted.refresh_from_db()
    assert str(other.node.pk) in interrupted.avoid_nodes
    assert lease.assignments.get().at_fault
    assert Credit.objects.count() == 1
    assert book.reliability_of([other.node], now=at)[other.node.pk].kept < 2 / 3


@pytest.mark.usefixtures("s3")
def test_a_node_that_cried_wolf_is_not_believed_again(interrupted, other, buyer, now):
    put(interrupted.checkpoints.get(step=9), b"newer")
    at = now + seconds(200)
    for tried in range(2):
        Job.objects.update(avoid_nodes=[])
        interrupted.refresh_from_db()
        lease = world.lease(interrupted, other, now=at)
        cannot_read(other, lease, at)
        assert restores.judge(now=at) == (0 if tried else 1)
        interrupted.refresh_from_db()
        assert (interrupted.state, interrupted.avoid_nodes) == ("queued", [str(other.node.pk)])
        assert lease.assignments.get().at_fault


@pytest.mark.usefixtures("s3")
def test_what_may_have_been_paid_out_is_not_taken_back(interrupted, node, other, now):
    rot(interrupted.checkpoints.get(step=9))
    fees = ledger.balance(ledger.FEES)
    at = now + seconds(8 * 24 * 3600)
    cannot_read(other, world.lease(interrupted, other, now=at), at)
    assert restores.judge(now=at) == 1
    assert Credit.objects.count() == 1
    assert ledger.balance(ledger.FEES) == fees


@pytest.mark.usefixtures("s3")
def test_nobody_stands_in_for_a_supplier_that_bought_from_itself(buyer, now, other):
    world.listening(now)
    own = world.agent(buyer, now=now)
    job = world.job(buyer, now=now)
    lease = world.lease(job, own, now=now, price=36 * MICRO)
    at = run(own, lease, now, ran_s=50)
    saved(lease, 5, running_ms=50_000, now=now)
    reclaimed(own, lease, at)
    rot(job.checkpoints.get())
    fees, job = ledger.balance(ledger.FEES), Job.objects.get(pk=job.pk)
    cannot_read(other, world.lease(job, other, now=at), at)
    restores.judge(now=at)
    assert ledger.balance(ledger.FEES) == fees > 0
    assert ledger.balance(ledger.payable(buyer.pk)) == 0
    assert ledger.imbalance() == 0


@pytest.mark.usefixtures("s3")
def test_a_checkpoint_whose_file_is_gone_is_bad(interrupted, other, now):
    at = now + seconds(200)
    cannot_read(other, world.lease(interrupted, other, now=at), at)
    restores.judge(now=at)
    assert interrupted.checkpoints.get(step=9).bad_at == at


def test_what_a_node_went_on_from_is_proven(interrupted, other, now):
    at = now + seconds(200)
    lease = world.lease(interrupted, other, now=at)
    other.says(world.status(lease.assignments.get(), "running"), now=at)
    assert [c.step for c in interrupted.checkpoints.exclude(proven_at=None)] == [9]


def test_the_spec_says_where_the_checkpoint_lay(interrupted, other, now):
    lease = world.lease(interrupted, other, now=now + seconds(200))
    spec = protocol.decode(
        assignments.spec(other.node, lease.assignments.get().pk), protocol.AssignmentSpec
    )
    assert spec.resume is not None
    assert spec.resume.place == "work/results/checkpoint-9"


@pytest.mark.parametrize(
    ("first", "words"), [(10, "went on from step 9"), (1, "starts anew"), (9, "starts anew")]
)
def test_a_script_is_told_whether_it_went_on(interrupted, other, now, first, words):
    at = now + seconds(200)
    lease = world.lease(interrupted, other, now=at)
    other.says(world.status(lease.assignments.get(), "running"), now=at)
    lease.refresh_from_db()
    share = lease.assignments.get()
    assert restores.how_it_went_on(interrupted, lease, share) == ""
    MetricPoint.objects.create(job=interrupted, epoch=lease.epoch, step=first, values={}, at=at)
    assert words in restores.how_it_went_on(interrupted, lease, share)


def test_a_node_that_has_proven_itself_saves_less_often(buyer, node, other, now):
    for _ in range(30):
        lease = world.lease(world.job(buyer, now=now), node, now=now)
        share = lease.assignments.get()
        type(share).objects.filter(pk=share.pk).update(accrued_ms=100 * 3_600_000)
        node.says(world.status(share, "running"), now=now)
        node.says(world.status(share, "gone", exit=world.exited(0), settled=True), now=now)
    known, unknown = (
        protocol.decode(
            bytes(world.lease(world.job(buyer, now=now), each, now=now).assignments.get().spec),
            protocol.AssignmentSpec,
        ).checkpoint_s
        for each in (node, other)
    )
    assert unknown == pytest.approx((2 * 30 * 24 * 3600) ** 0.5)
    assert known > 5 * unknown


def test_a_stopped_job_is_not_resumed_past_the_most_that_an_org_may_have(buyer, now, settings):
    stopped = world.job(buyer, now=now, state="stopped")
    world.job(buyer, now=now)
    settings.POLICY = settings.POLICY.overridden({"live_jobs": "1"})
    with pytest.raises(Conflict, match="which is the most"):
        jobs.resume(stopped, by=buyer.members.first(), now=now)


def test_a_leases_end_bills_it_once(buyer, node, now, django_assert_max_num_queries):
    lease = world.lease(world.job(buyer, now=now), node, now=now, price=36 * MICRO)
    share = lease.assignments.get()
    node.says(world.status(share, "running"), now=now)
    at = now + seconds(10)
    node.says(world.status(share, "running", running_ms=10_000), now=at)
    metering.claim(node.node, node.claim(share, 10_000, final=True), now=at)
    gone = world.status(share, "gone", running_ms=10_000, exit=world.exited(0), settled=True)
    with django_assert_max_num_queries(60) as seen:
        node.says(gone, now=at)
    billed = [
        query["sql"]
        for query in seen.captured_queries
        if 'INSERT INTO "scheduler_usageslice"' in query["sql"]
    ]
    locked = [
        query["sql"]
        for query in seen.captured_queries
        if 'WHERE "scheduler_assignment"."lease_id" =' in query["sql"]
        and "FOR NO KEY UPDATE" in query["sql"]
    ]
    assert (len(billed), len(locked)) == (1, 1)
