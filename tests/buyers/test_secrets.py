"""Secrets: sealed, never shown, and given to a job on a site that is trusted enough."""

from dataclasses import replace

import pytest
from cryptography.fernet import Fernet
from django.core.management import call_command

from agent import protocol
from buyers import control, secrets
from buyers.own_models import Secret
from marketplace import vault
from marketplace.core import specs
from marketplace.core.errors import Conflict, Forbidden, Invalid, Missing, Unavailable
from marketplace.core.hardware import Trust
from marketplace.core.money import MICRO
from scheduler import assignments, clearing
from scheduler.models import Lease
from suppliers.models import Site
from tests import world
from tests.buyers.conftest import client_of

pytestmark = pytest.mark.django_db
VALUE = "hf_0123456789abcdef"


@pytest.fixture
def org(now):
    return world.org("Buyer", now=now, wallet=100 * MICRO)


@pytest.fixture
def keep(org, now):
    def keep(name="HF_TOKEN", value=VALUE, **changes):
        return secrets.keep(org, name=name, value=value, by=org.members.get(), now=now, **changes)

    return keep


def test_a_secret_lies_sealed_and_a_new_value_takes_the_olds_place(keep, org):
    first = keep()
    assert VALUE.encode() not in bytes(Secret.objects.get().sealed)
    assert vault.unseal(bytes(first.sealed)) == VALUE
    again = keep(value="another-value", trust=Trust.COMMUNITY)
    assert again.pk == first.pk
    assert secrets.open_for(org, ["HF_TOKEN"], site_trust=3, now=first.set_at) == {
        "HF_TOKEN": "another-value"
    }


@pytest.mark.parametrize(
    "name", ["", "hf_token", "1A", "A-B", "A" * 65, "PATH", "LD_PRELOAD", "PYTHONPATH",
             "GRIDLOOM_JOB", "CUDA_VISIBLE_DEVICES", "HTTPS_PROXY", "NO_PROXY", "HOME", "A\n"],
)  # fmt: skip
def test_a_name_that_would_change_the_sandbox_is_refused(keep, name):
    with pytest.raises(Invalid) as refused:
        keep(name)
    assert refused.value.field == "name"


@pytest.mark.parametrize("value", ["", "short", "x" * 8193, "nul\0nul\0nul"])
def test_a_value_that_can_not_be_kept_or_masked_is_refused(keep, value):
    with pytest.raises(Invalid) as refused:
        keep(value=value)
    assert refused.value.field == "value"
    assert "nul" not in str(refused.value)


def test_an_org_keeps_so_many_and_no_more(keep, monkeypatch):
    monkeypatch.setattr(secrets, "MOST", 1)
    keep()
    keep(value="the same one again")
    with pytest.raises(Conflict):
        keep("OTHER")


def test_keys_are_changed_without_losing_anything(keep, settings):
    kept = keep()
    old, new = settings.VAULT_KEYS[0], Fernet.generate_key().decode()
    settings.VAULT_KEYS = [new, old]
    call_command("rotate_secrets")
    settings.VAULT_KEYS = [new]
    kept.refresh_from_db()
    assert vault.unseal(bytes(kept.sealed)) == VALUE
    settings.VAULT_KEYS = [Fernet.generate_key().decode()]
    with pytest.raises(Unavailable):
        vault.unseal(bytes(kept.sealed))


def test_no_page_and_no_answer_shows_a_value(keep, org):
    client = client_of(org)
    page = client.post("/buy/secrets/", {"name": "WANDB_API_KEY", "value": VALUE, "trust": "known"})
    assert page.status_code == 302
    answer = client.post(
        "/api/v1/secrets/", {"name": "HF_TOKEN", "value": VALUE}, "application/json"
    )
    assert answer.status_code == 201
    listed = client.get("/api/v1/secrets/")
    assert [(one["name"], one["trust"]) for one in listed.json()] == [
        ("HF_TOKEN", "verified"), ("WANDB_API_KEY", "known"),
    ]  # fmt: skip
    refused = client.post("/buy/secrets/", {"name": "PATH", "value": VALUE, "trust": "known"})
    shown = client.get("/buy/secrets/")
    assert b"HF_TOKEN" in shown.content
    for response in (answer, listed, refused, shown):
        assert VALUE.encode() not in response.content
    assert client.delete(f"/api/v1/secrets/{answer.json()['id']}/").status_code == 204
    assert Secret.objects.count() == 1


@pytest.fixture
def job(org, now, keep):
    """A recipe's job that asks for a secret, as submitted."""
    keep()
    return world.job(org, now=now, secrets=["HF_TOKEN"])


def test_a_job_with_a_secret_is_placed_where_it_may_be_seen_and_given_it_once(job, now):
    supplier = world.org("Supplier", now=now)
    world.agent(supplier, now=now, ask=MICRO // 2)  # of a community site
    trusted = world.agent(supplier, now=now, trust=Trust.VERIFIED)
    assert clearing.clear_market(now=now) == 1
    share = Lease.objects.get().assignments.get()
    assert share.node == trusted.node
    spec = protocol.decode(bytes(share.spec), protocol.AssignmentSpec)
    assert spec.secrets == ["HF_TOKEN"]
    assert VALUE.encode() not in bytes(share.spec)
    assert assignments.secret_values(trusted.node, share.pk, now=now) == {"HF_TOKEN": VALUE}
    assert Secret.objects.get().used_at == now
    trusted.says(world.status(share, "running", running_ms=1), now=now)
    with pytest.raises(Conflict, match="start only"):
        assignments.secret_values(trusted.node, share.pk, now=now)


def test_a_site_that_has_lost_its_trust_and_a_stranger_are_given_nothing(job, now):
    supplier = world.org("Supplier", now=now)
    trusted = world.agent(supplier, now=now, trust=Trust.VERIFIED)
    stranger = world.agent(supplier, now=now, trust=Trust.VERIFIED, gpu_class="l4")
    clearing.clear_market(now=now)
    share = Lease.objects.get().assignments.get()
    with pytest.raises(Missing):
        assignments.secret_values(stranger.node, share.pk, now=now)
    Site.objects.filter(pk=trusted.node.site_id).update(trust=Trust.COMMUNITY)
    trusted.node.refresh_from_db()
    with pytest.raises(Forbidden, match="at least verified"):
        assignments.secret_values(trusted.node, share.pk, now=now)


def test_a_secret_that_is_tightened_keeps_a_waiting_job_from_sites_it_may_not_see(
    job, keep, org, now
):
    keep(trust=Trust.KNOWN)
    world.agent(world.org("Supplier", now=now), now=now, trust=Trust.KNOWN)
    keep(trust=Trust.VERIFIED)
    assert clearing.clear_market(now=now) == 0
    keep(trust=Trust.KNOWN)
    assert clearing.clear_market(now=now) == 1


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_a_site_that_may_not_see_the_secrets_costs_the_job_its_place_and_not_its_life(
    job, now, is_forgotten
):
    trusted = world.agent(world.org("Supplier", now=now), now=now, trust=Trust.VERIFIED)
    clearing.clear_market(now=now)
    share = Lease.objects.get().assignments.get()
    if is_forgotten:
        Secret.objects.all().delete()
    exit = world.exited(None, "secret")
    trusted.says(world.status(share, "gone", exit=exit, settled=True), now=now)
    job.refresh_from_db()
    share.refresh_from_db()
    assert not share.at_fault
    avoided = [] if is_forgotten else [str(trusted.node.pk)]
    assert (job.state, job.avoid_nodes) == ("failed" if is_forgotten else "queued", avoided)


def test_a_secret_that_is_not_there_or_may_not_go_there_is_said_before_anybody_pays(org, now, keep):
    supplier = world.org("Supplier", now=now)
    world.agent(supplier, now=now)
    asked = specs.parse(
        {"recipe": "script", "script": "code", "budget": "50", "memory_gib": 1, "hours": 1,
         "parameters": {"entry": "main.py"}, "secrets": ["HF_TOKEN"]}
    )  # fmt: skip
    from tests.buyers.plans.conftest import Dataset, folder

    folder(Dataset, "main.py", now=now, org=org, name="code", version=1)
    with pytest.raises(Invalid, match="gridloom secret set") as refused:
        control.quote(org, asked, now=now)
    assert refused.value.field == "secrets"
    keep()
    [option] = control.quote(org, asked, now=now).options
    assert option["why"] == "the site is less trusted than the job's secrets allow"
    keep(trust=Trust.COMMUNITY)
    [option] = control.quote(org, replace(asked), now=now).options
    assert option["fits"]
