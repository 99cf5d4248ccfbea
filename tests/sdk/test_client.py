"""A program against the market, with PostgreSQL, Valkey and S3 behind it."""

import hashlib
import json
from datetime import timedelta

import pytest
from django.db import transaction

from buyers.models import Artifact, Job, MetricPoint
from buyers.sdk import Client, GridloomError, MarketRefused, Unreachable
from marketplace import storage, telemetry
from marketplace.core.money import MICRO
from scheduler import clearing, metering
from tests import world
from tests.buyers import folders
from tests.sdk.stub import serving


def test_from_a_quote_to_a_running_job(client, wanted, node):
    assert client.wallet().balance_micros == 100 * MICRO
    quote = client.quote(**wanted)
    assert quote.best is quote.options[0]
    assert quote.best.node == node.node.name
    job = client.take(quote, quote.best.index)
    assert (job.state, job.nodes[0].supplier, job.lease.gpu_class) == ("placed", "Lab", "h100-sxm")
    assert [row.id for row in client.jobs()] == [job.id]
    assert client.job(str(job.id)) == client.job(job)
    assert [change.target for change in client.story(job)] == ["placed"]
    assert client.wallet().held_micros > 0
    assert {line.kind for line in client.statement()} == {"top_up", "escrow"}


def test_a_bid_is_stopped_resumed_and_cancelled(client, wanted, node):
    job = client.bid(**wanted, name="patient")
    assert (job.state, job.name, job.rests) == ("queued", "patient", False)
    assert client.stop(job).rests
    assert client.wait(job).state == "stopped"
    assert client.resume(job, budget="7").budget_micros == 7 * MICRO
    assert client.cancel(job).state == "cancelled"


def test_a_no_comes_with_its_code_its_words_and_its_field(client, wanted, node):
    with pytest.raises(MarketRefused, match="budget must be more than zero") as refused:
        client.bid(**{**wanted, "budget": "0"})
    assert (refused.value.code, refused.value.field, refused.value.status) == (
        "invalid", "budget", 400,
    )  # fmt: skip
    with pytest.raises(MarketRefused) as refused:
        client.job("01a20b55-0000-7000-8000-000000000000")
    assert refused.value.status == 404
    with pytest.raises(GridloomError, match="no job's id"):
        client.job("my job")
    with pytest.raises(GridloomError, match="can't be sent"):
        client.bid(**{**wanted, "seed": object()})


def test_a_key_that_is_none_is_told_what_to_do(site, key):
    with Client(site, "glk_wrong") as client, pytest.raises(MarketRefused, match="gridloom login"):
        client.wallet()
    with pytest.raises(GridloomError, match="API key is needed"):
        Client(site, "")
    with pytest.raises(GridloomError, match="address is like https"):
        Client("market.example", key)


def test_a_job_is_watched_until_it_rests(client, ran, node, today):
    seen = client.watch(ran.job.pk, every_s=0)
    first = next(seen)
    assert [point.get("loss") for point in first.points] == [None, 3.5, 2.5]
    MetricPoint.objects.create(
        job=ran.job, epoch=ran.lease.epoch, step=3, values={"loss": 2.0}, at=today
    )
    second = next(seen)
    assert second.points == [{"loss": 2.0, "step": 3, "epoch": ran.lease.epoch}]
    Job.objects.filter(pk=ran.job.pk).update(state="succeeded")
    (last,) = seen
    assert last.job.rests
    assert last.points == []


def test_a_waiting_job_tells_why_and_what_would_place_it_and_takes_a_change(
    client, node, buyer, today, valkey
):
    waits = world.job(buyer, now=today, limits={"h100-sxm": 2_000_000})
    assert client.job(waits.pk).told is None, "no round has looked at it"
    clearing.clear_market(now=today)
    told = client.job(waits.pk).told
    assert (told.why, [change.term for change in told.changes]) == ("dear", ["limit"])
    after = client.accept(waits.pk, told.changes[0])
    assert after.told is None
    assert clearing.clear_market(now=today) == 1


def test_log_checkpoints_and_receipt_of_a_job(client, ran, node, today):
    telemetry.keep_log(ran.job.pk, ran.lease.epoch, [("stdout", 0, "hello\n")])
    assert client.log(ran.job.pk) == "hello\n"
    assert [kept.step for kept in client.checkpoints(ran.job.pk)] == [2]
    share, later = ran.lease.assignments.get(), today + timedelta(seconds=10)
    with transaction.atomic():
        node.says(world.status(share, "running", running_ms=11_000, step=3), now=later)
    metering.claim(node.node, node.claim(share, 11_000), now=later)
    metering.settle(now=later)
    receipt = client.receipt(ran.job.pk)
    (line,) = receipt.lines
    assert receipt.total_micros == line.charge_micros == line.fee_micros + line.earnings_micros
    assert receipt.total_micros > 0
    assert len(client.metrics(ran.job.pk).points) == 3


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name, data in folders.TRAINING.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_is_uploaded_and_a_changed_one_is_a_new_version(client, pairs, s3):
    told = []
    first = client.upload(pairs, "pairs", progress=told.append)
    assert (first.version, first.rows, first.files) == (1, 7, 2)
    assert sum(told) == first.bytes
    assert client.upload(pairs, "pairs") == first
    (pairs / "train.jsonl").write_bytes(folders.ROW)
    assert client.upload(pairs, "pairs").version == 2
    assert [row.version for row in client.datasets()] == [2, 1]


def test_a_bad_row_is_refused_with_its_line(client, pairs, s3):
    (pairs / "train.jsonl").write_bytes(folders.ROW + b"{}\n")
    with pytest.raises(MarketRefused, match=r"train.jsonl line 2"):
        client.upload(pairs, "pairs")


def test_what_a_job_made_is_downloaded_and_checked(client, ran, s3, tmp_path):
    files = {"model.safetensors": b"w" * 100_000, "tokenizer/vocab.json": b"{}", "empty": b""}
    manifest = []
    for path, data in files.items():
        digest = hashlib.sha256(data).hexdigest()
        storage.put(storage.file_key("made/", digest), data)
        manifest.append({"path": path, "bytes": len(data), "sha256": digest})
    Artifact.objects.update(manifest=manifest, prefix="made/")

    told = []
    folder = client.download(ran.job.pk, tmp_path / "model", progress=told.append)
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert found == files
    assert sum(told) == 100_002

    (folder / "model.safetensors").write_bytes(b"spoilt")
    client.download(ran.job.pk, folder)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]

    spoilt = hashlib.sha256(files["model.safetensors"]).hexdigest()
    storage.put(storage.file_key("made/", spoilt), b"x" * 100_000)
    with pytest.raises(GridloomError, match="not what its hash says"):
        client.download(ran.job.pk, tmp_path / "again")


def test_a_job_without_a_result_says_so(client, buyer, today, tmp_path):
    job = world.job(buyer, now=today)
    with pytest.raises(MarketRefused, match="no artifact"):
        client.download(job.pk, tmp_path)


def test_nobody_at_the_address_is_said_with_advice(key):
    with serving(lambda request: request.answer(200)) as server:
        url = server.url
    advice = pytest.raises(Unreachable, match="Check the address and your connection")
    with Client(url, key, patience_s=0) as client, advice:
        client.wallet()


def test_something_that_is_no_market_is_told_apart(key):
    page = serving(lambda request: request.answer(200, b"<html>"))
    said = pytest.raises(Unreachable, match="not like a market")
    with page as server, Client(server.url, key) as client, said:
        client.wallet()


WALLET = json.dumps({"currency": "USD", "balance_micros": 1, "held_micros": 0}).encode()


def test_a_market_that_is_restarted_is_waited_for(key):
    def script(request):
        match len(server.seen):
            case 1:
                request.hang_up()
            case 2:
                request.answer(503, b"starting")
            case _:
                request.answer(200, WALLET)

    with serving(script) as server, Client(server.url, key) as client:
        assert client.wallet().balance_micros == 1
        assert len(server.seen) == 3


def test_a_post_whose_answer_was_lost_is_sent_again_under_the_same_key(key):
    def script(request):
        if len(server.seen) == 1:
            request.hang_up()
        else:
            request.answer(409, b'{"code": "conflict", "message": "no"}')

    with serving(script) as server, Client(server.url, key) as client:
        with pytest.raises(MarketRefused):
            client.bid(recipe="lora")
        keys = [request.headers["Idempotency-Key"] for request in server.seen]
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_what_may_not_be_done_twice_is_not_sent_twice(key):
    with serving(lambda request: request.hang_up()) as server, Client(server.url, key) as client:
        with pytest.raises(Unreachable):
            client.top_up("5")
        assert len(server.seen) == 1
