"""The page and the JSON of a round, and each party's own proof: what is public when."""

import json
import subprocess
import sys
from datetime import timedelta

import httpx
import pytest
from django.conf import settings
from django.test import Client

from buyers.models import Job
from marketplace.core.money import MICRO
from marketplace.models import Scope
from scheduler import archive, clearing, proving
from scheduler.matching import proofs
from scheduler.models import Round
from scheduler.record_models import Record
from tests import world
from tests.buyers.conftest import client_of, key_of

pytestmark = pytest.mark.django_db
WEEK = timedelta(days=7)


@pytest.fixture
def round(now, s3, valkey):
    """Six buyers with a job each, six suppliers with a node each, of $1 to $6."""
    world.listening(now)
    for number in range(1, 7):
        buyer = world.org(f"Buyer {number}", now=now, wallet=100 * MICRO)
        world.job(buyer, now=now, limits={"h100-sxm": (number + 1) * MICRO})
        world.agent(world.org(f"Supplier {number}", now=now), now=now, ask=number * MICRO)
    assert clearing.clear_market(now=now)
    archive.publish()
    return Round.objects.get()


def of(round):
    return f"/market/rounds/{round.pk}/"


def told(round):
    return Client().get(f"/api/v1/market/rounds/{round.pk}/").json()


def test_at_once_hashes_root_and_curves_are_public_and_no_row_is(round):
    record = Record.objects.get()
    page = Client().get(of(round)).content.decode()
    said = told(round)
    for text in (page, json.dumps(said)):
        for shown in (round.book_sha256, record.matches_sha256, record.root):
            assert shown in text
    assert "are public from 1 Dec 2026, 12:00 UTC on" in page
    assert said["record"]["files"] is None
    assert said["record"]["salting_key"] == ""
    assert said["prices"][0]["gpu_class"] == "h100-sxm"
    secret = bytes(record.secret).hex()
    assert archive.salting_key_of(record) not in page + json.dumps(said)
    assert secret not in page + json.dumps(said)
    for name in (archive.BOOK, archive.MATCHES):
        refused = Client().get(of(round) + name)
        assert refused.status_code == 404
        assert b"are public from" in refused.content
    assert Client().post(of(round) + "check/").status_code == 409


def test_no_single_limit_or_ask_is_in_the_curves(round):
    (curve,) = told(round)["record"]["curves"]
    # Six asks of $1 to $6 net, six limits of $2 to $7: each told with at least four others.
    assert curve["supply"] == [{"price": 8_000_000, "gpus": 6}]
    assert curve["demand"] == [{"price": 2_000_000, "gpus": 6}]


def test_a_week_later_anybody_verifies_it_with_three_files(round, now, tmp_path):
    archive.release(now=now + WEEK)
    said = told(round)
    (tmp_path / "ROUND.json").write_text(json.dumps(said))
    for name, file in said["record"]["files"].items():
        body = httpx.get(file["url"]).content
        assert len(body) == file["bytes"]
        (tmp_path / name).write_bytes(body)
    # The page leads to the same bytes.
    there = Client().get(of(round) + "BOOK.npz").headers["Location"]
    assert httpx.get(there).content == (tmp_path / "BOOK.npz").read_bytes()

    def verify():
        files = [str(tmp_path / name) for name in ("ROUND.json", "BOOK.npz", "MATCHES.npz")]
        told = [sys.executable, "-m", "scheduler.matching", "verify", *files]
        return subprocess.run(told, capture_output=True, text=True)

    right = verify()
    assert right.returncode == 0, right.stdout + right.stderr
    assert said["record"]["root"] in right.stdout
    said["record"]["root"] = "0" * 64
    (tmp_path / "ROUND.json").write_text(json.dumps(said))
    wrong = verify()
    assert wrong.returncode == 1
    assert "root is" in wrong.stdout
    (tmp_path / "ROUND.json").write_text("{}")
    assert verify().returncode == 2


def test_the_page_checks_a_released_round_and_says_what_was_found(round, now):
    archive.release(now=now + WEEK)
    Record.objects.update(wanted_at=None)
    page = Client().get(of(round)).content.decode()
    assert f"gridloom rounds verify {round.pk} --market {settings.SITE_URL}" in page
    assert "Check it here now" in page
    answer = Client().post(of(round) + "check/", headers={"HX-Request": "true"})
    assert b"Being checked here" in answer.content
    assert b'hx-trigger="every 3s"' in answer.content
    proving.check(now=now + WEEK)
    Record.objects.update(wanted_at=now)
    part = Client().get(of(round), headers={"HX-Request": "true"}).content.decode()
    assert part.lstrip().startswith("<section")
    assert ">right</span>" in part
    assert "Check it here now" not in part
    assert told(round)["record"]["check"]["is_right"] is True


def test_a_check_that_found_something_says_so_on_the_page(round, now):
    archive.release(now=now + WEEK)
    Round.objects.update(welfare=1.0)
    proving.check(now=now + WEEK)
    page = Client().get(of(round)).content.decode()
    assert ">wrong</span>" in page
    assert "the round says 1.000000" in page


def test_each_party_has_its_own_proof_and_nobody_elses(round, now):
    job = Job.objects.exclude(leases=None).first()
    node = job.leases.get().assignments.get().node
    buyer, supplier = job.org, node.site.org
    root = Record.objects.get().root
    for org, scope, path in (
        (buyer, Scope.BUY, f"/api/v1/jobs/{job.pk}/proof/"),
        (supplier, Scope.SUPPLY, f"/api/v1/nodes/{node.pk}/proof/"),
    ):
        api = Client(headers={"Authorization": f"Bearer {key_of(org, scope)}"})
        proof = proofs.read(api.get(path).json())
        assert proofs.holds(proof)
        assert proof.root == root
        assert api.get(f"{path}{round.pk}/").json()["index"] == proof.index
        assert api.get(f"{path}{job.pk}/").status_code == 404
        other = world.org(f"Stranger {scope}", now=now)
        stranger = Client(headers={"Authorization": f"Bearer {key_of(other, scope)}"})
        assert stranger.get(path).status_code == 404
        assert Client().get(path).status_code in (401, 403)
    saved = client_of(buyer).get(f"/buy/jobs/{job.pk}/proof/")
    assert saved.headers["Content-Disposition"].endswith(f'proof-{round.pk}.json"')
    assert saved.json()["root"] == root
    assert client_of(supplier).get(f"/supply/nodes/{node.pk}/proof/").json()["root"] == root
    assert client_of(supplier).get(f"/buy/jobs/{job.pk}/proof/").status_code == 404
    assert (
        f"/buy/jobs/{job.pk}/proof/"
        in client_of(buyer).get(f"/buy/jobs/{job.pk}/").content.decode()
    )


def test_rounds_are_listed_for_programs_and_those_without_a_record_are_shown(round):
    assert [each["id"] for each in Client().get("/api/v1/market/rounds/").json()["results"]] == [
        str(round.pk)
    ]
    Record.objects.all().delete()
    assert b"Of this round only the hash" in Client().get(of(round)).content
    assert told(round)["record"] is None
    assert Client().get(of(round) + "BOOK.npz").status_code == 404
    assert Client().post(of(round) + "check/").status_code == 404


def test_a_round_whose_root_is_being_made_says_so(round):
    Record.objects.update(root="", raw=b"as before", curves=[])
    page = Client().get(of(round)).content.decode()
    assert "is being made" in page
    assert "The curves are being made" in page
