"""What is kept of a round and published when: hashes and root at once, all of it a week later."""

import io
import json
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest

from marketplace import storage
from marketplace.core.errors import Conflict, Missing
from marketplace.core.money import MICRO
from scheduler import archive, clearing, proving, snapshots
from scheduler.matching import book as books
from scheduler.matching import proofs
from scheduler.matching.check import VERSION
from scheduler.matching.verify import read_released
from scheduler.models import Round
from scheduler.record_models import Record
from suppliers.models import Offer
from tests import world

pytestmark = pytest.mark.django_db
WEEK = timedelta(days=7)


@pytest.fixture
def supplier(now):
    world.listening(now)
    return world.org("Supplier", now=now)


@pytest.fixture
def cleared(buyer, supplier, now):
    """Two jobs on two nodes, and one that waits."""
    nodes = [world.agent(supplier, now=now, gpus=2) for _ in range(2)]
    jobs = [world.job(buyer, now=now, gpus_min=2, gpus_max=2) for _ in range(2)]
    waits = world.job(buyer, now=now, limits={"h100-sxm": 1000})
    assert clearing.clear_market(now=now) == 2
    return nodes, jobs, waits


def released(round):
    """Its two files, as they lie in storage."""
    keys = archive.file_keys(round.record)
    files = [io.BytesIO(b"".join(storage.read(key))) for key in keys.values()]
    return read_released(*files)


def test_a_round_is_kept_with_its_hashes_and_proven_by_a_worker(cleared, s3, now):
    record = Record.objects.select_related("round").get()
    assert record.raw
    assert len(record.matches_sha256) == 64
    assert record.dropped_jobs == 0
    assert record.decided == record.round.welfare
    assert archive.publish() == 1
    record.refresh_from_db()
    assert record.raw is None
    assert len(record.root) == 64
    assert record.leaves == 5
    found = released(Round.objects.get())
    assert books.digest(found.book) == record.round.book_sha256
    assert not found.dropped.any()
    assert archive.publish() == 0


def test_while_storage_is_away_the_round_stands_and_its_files_wait(cleared, s3, settings, now):
    right = settings.S3_ENDPOINT_URL
    settings.S3_ENDPOINT_URL = "http://127.0.0.1:9"
    storage._client.cache_clear()
    try:
        assert archive.publish() == 0
        record = Record.objects.get()
        assert record.root
        assert record.raw
        assert archive.release(now=now + 2 * WEEK) == 0
        # Each party has its proof all the same.
        assert proofs.holds(proving.of_job(cleared[1][0]).proof)
    finally:
        settings.S3_ENDPOINT_URL = right
        storage._client.cache_clear()
    assert archive.publish() == 1
    assert archive.release(now=now + 2 * WEEK) == 1


def test_each_party_proves_its_own_row_and_what_came_of_it(cleared, s3, now):
    (node, _), (job, _), waits = cleared
    with pytest.raises(Conflict, match="being made"):
        proving.of_job(job)
    archive.publish()
    root = Record.objects.get().root
    mine = proving.of_job(job).proof
    assert proofs.holds(mine)
    assert mine.root == root
    row = json.loads(mine.row)
    assert row["job_gpus_max"] == 2
    assert [match[1] for match in row["matches"]] == [2]
    theirs = json.loads(proving.of_node(node.node).proof.row)
    assert theirs["node_gpus"] == 2
    assert len(theirs["matches"]) == 1
    idle = json.loads(proving.of_job(waits).proof.row)
    assert idle["matches"] == []
    assert idle["level"] == -1
    with pytest.raises(Missing, match="not in the book"):
        proving.of_job(world.job(job.org, now=now))


def test_a_round_is_released_after_a_week_and_checked_by_the_public_command(cleared, s3, now):
    archive.publish()
    assert archive.release(now=now + WEEK - timedelta(seconds=1)) == 0
    assert not Record.objects.released().exists()
    with pytest.raises(Conflict, match="released"):
        proving.want_check(Record.objects.get(), now=now)
    assert archive.release(now=now + WEEK) == 1
    assert proving.check(now=now + WEEK)
    record = Record.objects.get()
    assert record.is_right, record.found
    assert record.found.startswith("right; root " + record.root)
    assert record.checker == VERSION
    assert not proving.check(now=now + WEEK)
    proving.want_check(record, now=now + WEEK)
    assert not proving.check(now=now + WEEK), "the same rules say the same"


def test_a_book_that_was_changed_in_storage_is_found(cleared, s3, now):
    archive.publish()
    record = Record.objects.get()
    found = released(Round.objects.get())
    arrays = found.book.as_arrays()
    arrays["job_limit"] = arrays["job_limit"] * 2
    file = io.BytesIO()
    np.savez(file, **arrays)
    storage.put(archive.file_keys(record)[archive.BOOK], file.getvalue())
    archive.release(now=now + WEEK)
    proving.check(now=now + WEEK)
    record.refresh_from_db()
    assert record.is_right is False
    assert "book_sha256 is" in record.found
    assert "root is" in record.found


def test_what_is_lost_in_storage_keeps_nobody_else_waiting(cleared, s3, now):
    archive.publish()
    archive.release(now=now + WEEK)
    record = Record.objects.get()
    storage.delete(archive.file_keys(record).values())
    assert not proving.check(now=now + WEEK + timedelta(minutes=1))
    record.refresh_from_db()
    assert record.checked_at is None
    assert record.wanted_at == now + WEEK + timedelta(minutes=1)


def test_a_match_that_was_dropped_counts_neither_in_the_rounds_welfare_nor_its_gpus(
    buyer, supplier, s3, now, monkeypatch
):
    gone = world.agent(supplier, now=now)
    world.agent(supplier, now=now, gpus=2)
    world.job(buyer, now=now)
    job = world.job(buyer, now=now, gpus_min=2, gpus_max=2)
    read = snapshots.read

    def read_then_close(at):
        snapshot = read(at)
        Offer.objects.filter(node=gone.node).update(state="closed")
        return snapshot

    monkeypatch.setattr(snapshots, "read", read_then_close)
    assert clearing.clear_market(now=now) == 1
    round = Round.objects.get()
    assert (round.matched_jobs, round.matched_gpus) == (1, 2)
    assert round.record.dropped_jobs == 1
    assert 0 < round.welfare < round.record.decided <= round.bound * (1 + 1e-9)
    archive.publish()
    found = released(Round.objects.get())
    assert found.dropped.sum() == 1
    row = json.loads(proving.of_node(gone.node).proof.row)
    assert [match[3] for match in row["matches"]] == [True]
    assert json.loads(proving.of_job(job).proof.row)["dropped"] is False
    archive.release(now=now + WEEK)
    proving.check(now=now + WEEK)
    record = Record.objects.get()
    assert record.is_right, record.found


def test_no_number_and_no_order_links_two_rounds(buyer, supplier, s3, now):
    for _ in range(12):
        world.agent(supplier, now=now, ask=9 * MICRO)
        world.job(buyer, now=now)
    one, other = (snapshots.read(now + timedelta(seconds=s)).book for s in (0, 5))
    for name in ("job_id", "node_id"):
        both = np.concatenate([getattr(one, name), getattr(other, name)])
        assert len(np.unique(both)) == 24
        assert (np.diff(getattr(one, name).astype(object)) > 0).all()
    first, second = snapshots.read(now), snapshots.read(now)
    assert [job.pk for job in first.jobs] != [job.pk for job in second.jobs]
    assert first.secret != second.secret


def test_files_are_forgotten_in_the_end_and_hashes_are_not(cleared, s3, now):
    archive.publish()
    archive.release(now=now + WEEK)
    assert archive.forget(now=now + timedelta(days=89)) == 0
    record = Record.objects.get()
    keys = list(archive.file_keys(record).values())
    assert all(storage.stat(key) for key in keys)
    assert archive.forget(now=now + timedelta(days=90)) == 1
    assert not any(storage.stat(key) for key in keys)
    record.refresh_from_db()
    assert record.root
    with pytest.raises(Missing, match="no longer kept"):
        proving.of_job(cleared[1][0], round=record.pk)


def test_the_command_agrees_with_what_a_party_is_given(cleared, s3, now, tmp_path):
    archive.publish()
    proof = tmp_path / "proof.json"
    proof.write_text(json.dumps(proving.of_job(cleared[1][0]).as_json()))
    root = Record.objects.get().root

    def prove(*more):
        told = [sys.executable, "-m", "scheduler.matching", "prove", str(proof), *more]
        return subprocess.run(told, capture_output=True, text=True)

    right = prove("--root", root)
    assert right.returncode == 0, right.stderr
    assert "job_limit" in right.stdout
    assert prove("--root", "0" * 64).returncode == 1
    proof.write_text(proof.read_text().replace('\\"job_level\\":0', '\\"job_level\\":1'))
    assert prove().returncode == 1


@pytest.mark.parametrize(("buyers", "told"), [(4, False), (5, True)])
def test_curves_hide_each_among_five(supplier, s3, now, buyers, told):
    for number in range(buyers):
        org = world.org(f"Buyer {number}", now=now, wallet=100 * MICRO)
        world.job(org, now=now, limits={"h100-sxm": (2 + number) * MICRO})
    world.agent(supplier, now=now)
    clearing.clear_market(now=now)
    archive.publish()
    (curve,) = Record.objects.get().curves
    assert curve["gpu_class"] == "h100-sxm"
    assert curve["supply"] == [], "one supplier is nobody to hide among"
    assert curve["demand"] == ([{"price": 2 * MICRO, "gpus": 5}] if told else [])
