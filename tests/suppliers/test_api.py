"""The REST API of supply: everything the pages do, with an API key."""

from datetime import datetime, timedelta

import pytest
from django.test import Client
from django.utils import timezone

from marketplace import accounts
from marketplace.models import Scope
from scheduler.models import LeasedGpu
from suppliers import services
from suppliers.models import EnrolmentToken, Node, Offer, Site
from tests import world
from tests.suppliers.conftest import make_ready, prove
from tests.suppliers.machine import Machine

ROOT = "/api/v1"


@pytest.fixture
def now() -> datetime:
    """The server reads the real clock."""
    return timezone.now()


@pytest.fixture
def api(org, owner, now, valkey):
    """A client with a key of the supplier's."""
    _, secret = accounts.create_key(org, name="test", scopes=[Scope.SUPPLY], by=owner, now=now)
    return Client(headers={"Authorization": f"Bearer {secret}"})


def post(api, path, body=None):
    return api.post(f"{ROOT}{path}", body or {}, content_type="application/json")


def test_from_nothing_to_a_node_on_offer(api, now):
    made = post(api, "/sites/", {"name": "Cellar", "region": "eu-west", "tariff_per_kwh": "0"})
    assert made.status_code == 201, made.content
    site = made.json()
    assert (site["trust"], site["network"], site["tariff_per_kwh"]) == (
        "community",
        "ethernet",
        "0.00",
    )
    token = post(api, f"/sites/{site['id']}/tokens/")
    assert token.status_code == 201
    assert token["Cache-Control"] == "no-store"
    machine = Machine()
    from suppliers import enrolment

    reply = enrolment.enrol(machine.enrol_request(token.json()["secret"]), now=now)
    node = api.get(f"{ROOT}/nodes/").json()["results"][0]
    assert (node["id"], node["state"], node["proof"], node["offer"]) == (
        str(reply.node), "pending", None, None,
    )  # fmt: skip
    path = f"/nodes/{node['id']}"
    assert post(api, f"{path}/confirm/", {"fingerprint": "0000"}).status_code == 400
    assert post(api, f"{path}/confirm/", {"fingerprint": reply.fingerprint}).json()["confirmed_at"]
    prove(Node.objects.get(), now=now)
    offer = post(api, f"{path}/offers/", {"ask": "0.000001", "windows": [[0, 600]]})
    assert offer.status_code == 201
    assert offer.json()["warning"] == ""
    node = api.get(f"{ROOT}{path}/").json()
    assert (node["state"], node["proof"]["passed"]) == ("ready", True)
    assert node["gpus"][0]["gpu_class"] == "cpu-epyc-9654"
    assert node["offer"]["ask_micros"] == 1


def test_an_offer_below_its_power_is_made_and_warned_of(api, enrol):
    node, _ = enrol()
    offer = post(api, f"/nodes/{node.pk}/offers/", {"ask": "0.000001"}).json()
    assert "less than its power costs" in offer["warning"]
    assert offer["floor_micros"] > 1


def test_offers_pause_resume_and_close(api, enrol):
    node, _ = enrol()
    pk = post(api, f"/nodes/{node.pk}/offers/", {"ask": "1.25"}).json()["id"]
    states = [post(api, f"/offers/{pk}/{verb}/").json()["state"] for verb in
              ("pause", "resume", "close")]  # fmt: skip
    assert states == ["paused", "open", "closed"]
    again = post(api, f"/offers/{pk}/resume/")
    assert (again.status_code, again.json()["code"]) == (409, "invalid_transition")
    assert api.get(f"{ROOT}/offers/{pk}/").json()["state"] == "closed"
    assert len(api.get(f"{ROOT}/offers/").json()["results"]) == 1
    assert len(api.get(f"{ROOT}/nodes/{node.pk}/offers/").json()["results"]) == 1


def test_a_node_drains_returns_and_retires(api, enrol, owner, now):
    node, machine = enrol()
    make_ready(node, machine, by=owner, now=now)
    assert post(api, f"/nodes/{node.pk}/drain/").json()["state"] == "draining"
    assert post(api, f"/nodes/{node.pk}/undrain/").json()["state"] == "ready"
    assert post(api, f"/nodes/{node.pk}/rekey/").status_code == 201
    assert EnrolmentToken.objects.filter(node=node).count() == 1
    assert post(api, f"/nodes/{node.pk}/retire/").json()["state"] == "retired"
    assert post(api, f"/nodes/{node.pk}/drain/").status_code == 409


def test_a_node_with_jobs_is_retired_only_when_told_at_once(api, org, site, now):
    worker = world.agent(org, now=now, site=site)
    job = world.job(world.org(now=now, wallet=1_000_000_000), now=now)
    lease = world.lease(job, worker, now=now)
    refused = post(api, f"/nodes/{worker.node.pk}/retire/")
    assert refused.status_code == 409
    assert "drain it first" in refused.json()["message"]
    assert post(api, f"/nodes/{worker.node.pk}/retire/", {"at_once": True}).status_code == 200
    lease.refresh_from_db()
    assert (lease.state, lease.end_reason) == ("ended", "reclaimed")
    # Nobody will ever report them gone, and the devices may come back as another node's.
    assert not LeasedGpu.objects.filter(released_at=None).exists()


def test_draining_takes_the_machine_back_within_its_notice(api, org, site, now):
    worker = world.agent(org, now=now, site=site, notice_s=90)
    job = world.job(world.org(now=now, wallet=1_000_000_000), now=now)
    share = world.lease(job, worker, now=now).assignments.get()
    assert post(api, f"/nodes/{worker.node.pk}/drain/").json()["running"] == 1
    share.refresh_from_db()
    assert share.drain_at is not None
    assert share.drain_grace_s == 90


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/sites/", {"region": "eu-west"}, "name"),
        ("/sites/", {"name": "A", "region": "moon"}, "region"),
        ("/sites/", {"name": "A", "region": "uk", "pue": 0.5}, "pue"),
        ("/sites/", {"name": "A", "region": "uk", "tariff_per_kwh": "-1"}, "tariff_per_kwh"),
        ("/nodes/{node}/offers/", {"ask": "NaN"}, "ask"),
        ("/nodes/{node}/offers/", {"ask": "-1"}, "ask"),
        ("/nodes/{node}/offers/", {"ask": "1", "notice_s": -1}, "notice_s"),
        ("/nodes/{node}/offers/", {"ask": "1", "windows": [[1, 0]]}, "windows"),
        ("/nodes/{node}/confirm/", {"fingerprint": "abcd"}, "fingerprint"),
    ],
)
def test_bad_input_is_refused_by_field(api, enrol, path, body, field):
    node, _ = enrol()
    answer = post(api, path.format(node=node.pk), body)
    assert (answer.status_code, answer.json()["field"]) == (400, field), answer.content
    assert answer.json()["message"]


def test_a_key_of_another_scope_is_refused(org, owner, now):
    _, secret = accounts.create_key(org, name="b", scopes=[Scope.BUY], by=owner, now=now)
    buyer = Client(headers={"Authorization": f"Bearer {secret}"})
    assert buyer.get(f"{ROOT}/sites/").status_code == 403


def test_nobody_is_asked_to_log_in(client, db):
    assert client.get(f"{ROOT}/nodes/").status_code == 401


def test_a_site_is_edited_whole(api, site):
    answer = api.put(
        f"{ROOT}/sites/{site.pk}/", {"name": "Attic", "region": "uk"}, "application/json"
    )
    assert answer.json()["name"] == "Attic"
    assert Site.objects.get().region == "uk"


def test_lists_come_in_pages(api, org, now):
    for number in range(53):
        services.create_site(
            org, services.SiteFacts(name=f"Site {number:02}", region="uk"), now=now
        )
    first = api.get(f"{ROOT}/sites/").json()
    assert len(first["results"]) == 50
    assert len(api.get(first["next"]).json()["results"]) == 3


def test_the_document_of_the_api_knows_every_address(client, db):
    document = client.get("/api/schema/?format=json").json()
    assert f"{ROOT}/nodes/{{id}}/confirm/" in document["paths"]
    assert Offer.Audience.OWN_ORG in str(document)


def test_a_token_for_a_cluster_lives_as_long_as_asked(api, site, now):
    token = post(api, f"/sites/{site.pk}/tokens/", {"nodes": 8, "seconds": 86_400}).json()
    assert token["nodes_left"] == 8
    expires = datetime.fromisoformat(token["expires_at"])
    assert timedelta(hours=23) < expires - now < timedelta(hours=25)
