"""What is uploaded is looked through: small things at once, large ones and Parquet by a worker."""

import time
from dataclasses import replace

import pyarrow as pa
import pytest
from django.utils import timezone
from pyarrow import parquet as pq

from buyers import checking, datasets, parquet, rows
from buyers.models import Dataset
from marketplace.core.errors import Invalid, TooLarge
from scheduler import tasks
from tests import world
from tests.buyers import folders

pytestmark = pytest.mark.django_db

PAIRS = [{"prompt": f"{n}+1", "completion": f"is {n + 1}"} for n in range(20)]


@pytest.fixture
def org(now):
    return world.org("Buyer", now=now)


@pytest.fixture(autouse=True)
def scratch(settings, tmp_path):
    settings.SCRATCH_DIR = tmp_path / "scratch"
    return settings.SCRATCH_DIR


def table(found, **options):
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(found), out, **options)
    return out.getvalue().to_pybytes()


def read(tmp_path, data, *, for_s=60.0):
    file = tmp_path / "x.parquet"
    file.write_bytes(data)
    until = time.monotonic() + for_s
    found = parquet.rows(file, "train.parquet", until=until)
    return rows.check(found, "train.parquet", until=until)


@pytest.mark.usefixtures("s3")
def test_parquet_is_left_to_a_worker_and_then_ready_with_its_first_rows(org, scratch, now):
    files = {"train.parquet": table(PAIRS, row_group_size=8), "heldout.jsonl": folders.ROW}
    dataset = folders.upload(org, "pairs", files, now=now)
    assert (dataset.state, dataset.committed_at) == ("checking", None)
    assert datasets.commit(dataset, now=now).state == "checking", "again changes nothing"
    tasks.check_datasets()
    dataset.refresh_from_db()
    assert (dataset.state, dataset.rows) == ("ready", 21)
    assert dataset.kinds == ["answers", "prompts"]
    assert checking.as_json(dataset)["train"]["first"][:2] == PAIRS[:2]
    assert list(checking.as_json(dataset)) == ["train", "heldout"]
    assert not list(scratch.iterdir())


@pytest.mark.usefixtures("s3")
def test_what_is_large_is_left_to_a_worker_who_refuses_it_with_the_reason(org, settings, now):
    settings.POLICY = replace(settings.POLICY, check_bytes=100)
    files = {"train.jsonl": folders.ROW * 9 + b'{"prompt": 1}\n'}
    dataset = folders.upload(org, "pairs", files, now=now)
    assert dataset.state == "checking"
    checking.work(timezone.now)
    dataset.refresh_from_db()
    assert dataset.state == "refused"
    assert "train.jsonl line 10: give prompt and completion" in dataset.detail
    assert dataset not in Dataset.objects.committed()
    assert [line.event for line in dataset.story()] == ["check", "refuse"]


@pytest.mark.usefixtures("s3")
def test_files_that_never_arrived_are_found_by_the_worker_too(org, settings, now):
    settings.POLICY = replace(settings.POLICY, check_bytes=1)
    made, _ = datasets.start(
        org, name="x", files=folders.declared(folders.TRAINING), by=org.members.get(), now=now
    )
    assert datasets.commit(made, now=now).state == "checking"
    checking.work(timezone.now)
    made.refresh_from_db()
    assert made.state == "refused"
    assert "has not arrived" in made.detail
    again, puts = datasets.start(
        org, name="x", files=folders.declared(folders.TRAINING), by=org.members.get(), now=now
    )
    assert again == made, "what is missing can be sent, and looked at again"
    for path, put in puts.items():
        folders.send(put, folders.TRAINING[path])
    datasets.commit(again, now=now)
    checking.work(timezone.now)
    again.refresh_from_db()
    assert again.state == "ready"


@pytest.mark.usefixtures("s3")
def test_all_files_of_a_dataset_hold_rows_of_one_kind(org, now):
    files = {"train.jsonl": folders.ROW, "domains/poems.jsonl": b'{"text": "Roses are red"}\n'}
    with pytest.raises(Invalid, match=r"train.jsonl has rows of answers or prompts.*of text"):
        folders.upload(org, "mixed", files, now=now)
    good = {**files, "domains/poems.jsonl": folders.ROW}
    assert folders.upload(org, "good", good, now=now).parts == {"train": 1, "domains/poems": 1}


@pytest.mark.usefixtures("s3")
def test_one_discarded_while_it_is_looked_at_is_left_alone(org, settings, now):
    settings.POLICY = replace(settings.POLICY, check_bytes=1)
    dataset = folders.upload(org, "pairs", folders.TRAINING, now=now)
    found = checking.look(dataset, datasets.manifest(dataset.manifest))
    datasets.discard(dataset)
    with pytest.raises(Exception, match="moved on"):
        checking.settle(dataset, found, now=now)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"train.jsonl": 1, "train.parquet": 1}, "both train.jsonl and train.parquet"),
        ({f"domains/{n}.jsonl": 1 for n in range(33)}, "at most 32 are measured"),
        ({"heldout.txt": 0}, "heldout.txt has no rows"),
    ],
)
def test_files_that_no_check_would_pass_are_refused_before_they_are_sent(org, now, files, why):
    from agent import protocol

    declared = [
        protocol.File(path=path, bytes=size, sha256="0" * 64) for path, size in files.items()
    ]
    with pytest.raises(Invalid, match=why):
        datasets.start(org, name="x", files=declared, by=org.members.get(), now=now)


def test_a_parquet_file_that_is_too_large_is_refused_with_both_figures(settings):
    from agent import protocol

    settings.POLICY = replace(settings.POLICY, parquet_bytes=2**30)
    file = protocol.File(path="train.parquet", bytes=2**31, sha256="0" * 64)
    with pytest.raises(TooLarge, match=r"at most 1 GiB, train.parquet has 2; send it as .jsonl"):
        checking.require_fit([file])


def test_a_wrong_row_of_parquet_is_named_by_its_row_group(tmp_path):
    data = table([*PAIRS, {"prompt": "x", "completion": None}], row_group_size=8)
    with pytest.raises(Invalid, match=r"train.parquet row group 2 row 4: give prompt and compl"):
        read(tmp_path, data)


def test_parquet_with_other_columns_is_told_which_it_has(tmp_path):
    with pytest.raises(Invalid, match=r"row group 0 row 0: give prompt.*it has answer, question"):
        read(tmp_path, table([{"question": "a", "answer": "b"}]))


def test_conversations_may_be_columns_of_parquet(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert read(tmp_path, table([{"messages": turns}])).kinds == {"answers"}


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(60) + b"PAR1", b"{}\n" * 50])
def test_what_is_no_parquet_is_said(tmp_path, data):
    with pytest.raises(Invalid, match="train.parquet is no readable Parquet file"):
        read(tmp_path, data)


def test_a_parquet_reader_is_not_waited_for_for_ever(tmp_path):
    with pytest.raises(Invalid, match="takes too long to read"):
        read(tmp_path, table(PAIRS), for_s=0)
