"""No org can flood the market: not with requests, nor jobs, nor uploads that it never finishes."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from agent import protocol
from buyers import datasets
from buyers.models import Dataset, Job
from marketplace import storage, telemetry, throttles
from marketplace.core import specs
from marketplace.core.errors import Conflict
from scheduler import jobs
from tests.buyers import folders
from tests.buyers.conftest import client_of, key_of

MINUTE = 29_000_000 * 60.0


@pytest.fixture
def clock(monkeypatch):
    """The throttles' clock, which stands still, `clock[0]` seconds into a minute of its own."""
    at = [12.0]
    monkeypatch.setattr(throttles.time, "time", lambda: MINUTE + at[0])
    return at


@pytest.fixture
def caps(settings):
    def caps(**numbers):
        settings.POLICY = replace(settings.POLICY, **numbers)

    return caps


def ask(client, path="quotes/", **headers):
    return client.post(f"/api/v1/{path}", {}, "application/json", headers=headers)


def test_the_quote_too_many_is_told_when_to_go_on(valkey, member, stranger, settings, clock):
    settings.THROTTLES = {"quotes": 2, "writes": 3}
    assert [ask(member).status_code for _ in range(3)] == [400, 400, 429]
    answer = ask(member)
    assert answer.json() == {
        "code": "throttled",
        "message": "that was more than 2 quotes in a minute; go on in 48 s",
        "field": "",
    }
    assert answer.headers["Retry-After"] == "48"
    # Other writes are counted apart, other people too, and reading is free.
    assert [ask(member, "jobs/").status_code for _ in range(4)] == [400, 400, 400, 429]
    assert ask(client_of(stranger)).status_code == 400
    assert member.get("/api/v1/jobs/").status_code == 200
    clock[0] += 48
    assert ask(member).status_code == 400


def test_another_key_is_no_way_around(valkey, buyer, client, settings, clock):
    settings.THROTTLES = {"quotes": 2, "writes": 3}
    clock[0] += 60
    keys = [key_of(buyer) for _ in range(3)]
    codes = [ask(client, authorization=f"Bearer {key}").status_code for key in keys]
    assert codes == [400, 400, 429]


def test_nobody_is_held_up_while_valkey_is_away(member, settings, caplog):
    settings.THROTTLES = {"quotes": 1, "writes": 1}
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    telemetry._redis.cache_clear()
    try:
        assert [ask(member).status_code for _ in range(3)] == [400, 400, 400]
    finally:
        telemetry._redis.cache_clear()
    assert "was not counted" in caplog.text


@pytest.mark.parametrize("value", ["0", "many", "-1", "1.5"])
def test_a_limit_that_is_none_stops_the_start(value):
    run = subprocess.run(
        [sys.executable, "-c", "import marketplace.settings"],
        env={**os.environ, "DEBUG": "true", "THROTTLE_QUOTES": value},
        capture_output=True,
        text=True,
    )
    assert "THROTTLE_QUOTES must be a whole number above 0" in run.stderr


def test_an_org_has_only_so_many_live_jobs(buyer, node, wanted, caps, today):
    caps(live_jobs=1)

    def submit():
        return jobs.submit(buyer, specs.parse(wanted), by=buyer.members.get(), now=today)

    first = submit()
    with pytest.raises(Conflict, match="has 1 jobs waiting or running.*or cancel one"):
        submit()
    jobs.cancel(first, by=buyer.members.get(), now=today)
    submit()
    assert Job.objects.of(buyer).live().count() == 1


def test_uploads_that_nobody_finishes_are_finite(buyer, stranger, caps, s3, today):
    caps(uncommitted_bytes=10)

    def begin(name, size, org=buyer):
        file = protocol.File(path="a", bytes=size, sha256=f"{size:064}")
        return datasets.start(org, name=name, files=[file], by=org.members.get(), now=today)[0]

    first = begin("one", 6)
    assert begin("one", 6) == first, "the same again is no more"
    with pytest.raises(Conflict, match=r"begun 5.588e-09 GiB .*DELETE /api/v1/datasets/<id>/"):
        begin("two", 5)
    begin("two", 5, org=stranger)
    begin("three", 4)
    first.committed_at = today
    first.save()
    begin("two", 5)


def test_what_was_begun_can_be_discarded_and_what_is_committed_can_not(api, buyer, s3, today):
    done = folders.upload(buyer, "pairs", folders.TRAINING, now=today)
    begun, puts = datasets.start(
        buyer,
        name="code",
        files=folders.declared(folders.SCRIPT),
        by=buyer.members.get(),
        now=today,
    )
    path, data = next((path, data) for path, data in folders.SCRIPT.items() if data)
    assert folders.send(puts[path], data) == 200
    keys = [storage.file_key(begun.prefix, entry["sha256"]) for entry in begun.manifest]
    assert any(map(storage.stat, keys))
    assert api.delete(f"/api/v1/datasets/{begun.pk}/").status_code == 204
    assert not any(map(storage.stat, keys))
    assert api.delete(f"/api/v1/datasets/{begun.pk}/").status_code == 404
    assert api.delete(f"/api/v1/datasets/{done.pk}/").status_code == 409
    assert [each.pk for each in Dataset.objects.of(buyer)] == [done.pk]


def test_a_stranger_discards_nothing(buyer, stranger, s3, today):
    files = folders.declared(folders.SCRIPT)
    begun, _ = datasets.start(buyer, name="c", files=files, by=buyer.members.get(), now=today)
    assert client_of(stranger).delete(f"/api/v1/datasets/{begun.pk}/").status_code == 404
    assert Dataset.objects.of(buyer).get() == begun
