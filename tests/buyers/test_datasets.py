"""Uploading: what is declared is what is stored, or nothing is committed."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from agent import protocol
from buyers import datasets
from buyers.models import Dataset
from marketplace import storage
from marketplace.core.errors import Conflict, Invalid, TooLarge
from tests import world
from tests.buyers import folders

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("s3")]


@pytest.fixture
def org(now):
    return world.org("Buyer", now=now)


@pytest.fixture
def start(org, now):
    def start(files, name="pairs"):
        by = org.members.get()
        return datasets.start(org, name=name, files=files, by=by, now=now)

    return start


def _key(dataset, path):
    (entry,) = [entry for entry in dataset.manifest if entry["path"] == path]
    return storage.file_key(dataset.prefix, entry["sha256"])


def file(path="a.txt", size=1, sha256="0" * 64):
    return protocol.File(path=path, bytes=size, sha256=sha256)


def test_a_version_is_committed_once_all_of_it_has_arrived(org, now):
    dataset = folders.upload(org, "pairs", folders.TRAINING, now=now)
    assert (dataset.version, dataset.rows, dataset.committed_at) == (1, 7, now)
    assert [entry["path"] for entry in dataset.manifest] == ["heldout.jsonl", "train.jsonl"]
    stored = b"".join(storage.read(_key(dataset, "train.jsonl")))
    assert stored == folders.TRAINING["train.jsonl"]


def test_folders_of_code_may_hold_empty_files_and_folders(org, now):
    dataset = folders.upload(org, "code", folders.SCRIPT, now=now)
    assert dataset.committed_at
    assert dataset.rows == 0


def test_what_changed_is_a_new_version_and_what_did_not_is_the_same(org, start, now):
    first = folders.upload(org, "pairs", folders.TRAINING, now=now)
    again, puts = start(folders.declared(folders.TRAINING))
    assert again == first
    assert not puts
    changed = {**folders.TRAINING, "train.jsonl": folders.ROW}
    second = folders.upload(org, "pairs", changed, now=now)
    assert second.version == 2
    first.refresh_from_db()
    assert first.rows == 7, "a version never changes"


def test_a_file_that_is_missing_is_named_and_nothing_is_committed(start, now):
    dataset, puts = start(folders.declared(folders.TRAINING))
    folders.send(puts["heldout.jsonl"], folders.TRAINING["heldout.jsonl"])
    with pytest.raises(Conflict, match=r"train.jsonl has not arrived"):
        datasets.commit(dataset, now=now)
    dataset.refresh_from_db()
    assert dataset.committed_at is None


def test_a_begun_version_is_gone_on_with_by_declaring_it_again(start, now):
    dataset, _ = start(folders.declared(folders.TRAINING))
    with pytest.raises(Conflict):
        datasets.commit(dataset, now=now)
    same, puts = start(folders.declared(folders.TRAINING))
    assert same == dataset
    assert set(puts) == set(folders.TRAINING)
    for path, put in puts.items():
        folders.send(put, folders.TRAINING[path])
    assert datasets.commit(same, now=now).committed_at


def test_bytes_that_are_not_what_was_declared_are_not_taken(start, now):
    data = folders.TRAINING["train.jsonl"]
    dataset, puts = start(folders.declared({"train.jsonl": data}))
    other = data.replace(b"adds", b"ADDS")
    assert len(other) == len(data)
    assert folders.send(puts["train.jsonl"], other) >= 400
    assert folders.send(puts["train.jsonl"], data + b"more") >= 400
    with pytest.raises(Conflict, match=r"train.jsonl has not arrived"):
        datasets.commit(dataset, now=now)


def test_a_wrong_hash_in_storage_is_found_even_if_the_storage_let_it_in(start, now):
    data = folders.TRAINING["train.jsonl"]
    dataset, _ = start(folders.declared({"train.jsonl": data}))
    storage.put(_key(dataset, "train.jsonl"), data.replace(b"adds", b"ADDS"))
    with pytest.raises(Conflict, match=r"train.jsonl has another hash"):
        datasets.commit(dataset, now=now)
    storage.put(_key(dataset, "train.jsonl"), data[:-1])
    with pytest.raises(Conflict, match=r"has \d+ bytes instead of \d+"):
        datasets.commit(dataset, now=now)


def test_committing_twice_changes_nothing(org, now):
    dataset = folders.upload(org, "pairs", folders.TRAINING, now=now)
    stale = Dataset.objects.get(pk=dataset.pk)
    stale.committed_at = None
    assert datasets.commit(stale, now=now.replace(year=2030)).committed_at == now


def test_a_bad_row_is_refused_by_file_and_line_and_the_version_stays_open(start, now):
    files = {**folders.TRAINING, "heldout.jsonl": folders.ROW + b'{"prompt": "x"}\n'}
    dataset, puts = start(folders.declared(files))
    for path, put in puts.items():
        assert folders.send(put, files[path]) == 200
    with pytest.raises(Invalid, match=r"heldout.jsonl line 2: give prompt and completion"):
        datasets.commit(dataset, now=now)
    dataset.refresh_from_db()
    assert dataset.committed_at is None


def test_a_training_file_without_rows_is_refused(start, now):
    with pytest.raises(Invalid, match=r"train.jsonl has no rows"):
        start(folders.declared({"train.jsonl": b""}))
    dataset, puts = start(folders.declared({"train.jsonl": b"\n\n"}))
    assert folders.send(puts["train.jsonl"], b"\n\n") == 200
    with pytest.raises(Invalid, match="no rows"):
        datasets.commit(dataset, now=now)


@pytest.mark.parametrize(
    "path",
    ["../up", "a/../../b", "/etc/passwd", "a//b", "./a", "a/", "a\\b", "C:\\x", "a\nb", "a\0b",
     "a\x7fb", "..", "x" * 401],
)  # fmt: skip
def test_a_path_that_could_leave_its_folder_is_refused(start, path):
    with pytest.raises(Invalid, match="path"):
        start([file(path)])


def test_two_files_of_one_path_and_a_file_that_is_a_folder_too_are_refused(start):
    with pytest.raises(Invalid, match="twice"):
        start([file("a"), file("a", size=2)])
    with pytest.raises(Invalid, match="both a file and a folder"):
        start([file("a/b"), file("a/b/c/d")])


def test_limits_are_told_with_their_size(start, settings):
    with pytest.raises(Invalid, match="no files"):
        start([])
    with pytest.raises(TooLarge, match="10,000 files"):
        start([file(str(number)) for number in range(10_001)])
    with pytest.raises(TooLarge, match="5 GiB"):
        start([file(size=5 * 2**30 + 1)])
    with pytest.raises(TooLarge, match="50 GiB"):
        start([file(str(number), size=5 * 2**30) for number in range(11)])


@pytest.mark.parametrize("name", ["", "  ", "a@2", "a/b", "é", "-x", "x" * 101, "a\0b"])
def test_a_name_that_could_not_be_named_in_a_job_is_refused(start, name):
    with pytest.raises(Invalid, match="name"):
        start([file()], name=name)


@pytest.mark.parametrize(
    "raw",
    [None, "x", [1], [{}], [{"path": "a", "bytes": -1, "sha256": "0" * 64}],
     [{"path": "a", "bytes": 1.5, "sha256": "0" * 64}],
     [{"path": "a", "bytes": 1, "sha256": "0" * 63}],
     [{"path": "a", "bytes": 1, "sha256": "0" * 63 + "G"}],
     [{"path": "a", "bytes": 1, "sha256": "0" * 64, "mode": 7}]],
)  # fmt: skip
def test_a_manifest_of_another_shape_is_refused(raw):
    with pytest.raises(Invalid, match="files must be a list"):
        datasets.manifest(raw)


@pytest.mark.django_db(transaction=True)
def test_two_uploads_at_once_become_two_versions(now):
    org = world.org(now=now)
    by = org.members.get()

    def begin(number):
        try:
            made, _ = datasets.start(org, name="x", files=[file(size=number)], by=by, now=now)
            return made.version
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(begin, range(4))) == [1, 2, 3, 4]


def test_the_manifest_is_hashed_alike_in_any_order(start):
    files = folders.declared(folders.TRAINING)
    one, _ = start(files)
    two, _ = start(files[::-1])
    assert one == two
    assert one.sha256 == protocol.manifest_sha256(files)
    assert hashlib.sha256(b"").hexdigest() != one.sha256
