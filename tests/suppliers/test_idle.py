"""What the supplier of an idle node reads and asks for: why it was not let, and what would let it."""

import pytest
from django.test import Client
from django.utils import timezone

from marketplace import accounts
from marketplace.core.money import MICRO
from marketplace.models import Scope
from scheduler import clearing, explaining
from suppliers.models import Offer
from tests import world

pytestmark = pytest.mark.django_db
PATH = "/supply/nodes/{}/"


@pytest.fixture
def idle(org, site, monkeypatch):
    """A node at $3 that a round has left just now, for another at $1."""
    monkeypatch.setattr(explaining, "_CLEAR_S", 1e9)
    now = timezone.now()
    cheap = world.agent(world.org("Rival", now=now), now=now, ask=1 * MICRO)
    node = world.agent(org, now=now, site=site, ask=3 * MICRO).node
    world.job(world.org("Buyer", now=now, wallet=100 * MICRO), now=now)
    assert clearing.clear_market(now=now) == 1
    assert cheap.node.assignments.exists()
    return node


@pytest.fixture
def member(client, owner, org, valkey):
    client.force_login(owner)
    return client


def test_the_page_says_why_and_offers_the_ask_that_would_have_let_it(member, idle):
    page = member.get(PATH.format(idle.pk)).content.decode()
    assert "Its ask was above what its like was let for, 1.00; at " in page
    assert "it would have been let" in page
    form = member.get(f"{PATH.format(idle.pk)}offer/?ask=0.95").content.decode()
    assert 'value="0.95"' in form


def test_the_api_says_it_too(org, owner, idle, now, valkey):
    _, secret = accounts.create_key(org, name="test", scopes=[Scope.SUPPLY], by=owner, now=now)
    api = Client(headers={"Authorization": f"Bearer {secret}"})
    told = api.get(f"/api/v1/nodes/{idle.pk}/").json()["told"]
    assert told["why"] == "dear"
    assert 0 < told["let_at_micros"] <= 1 * MICRO
    assert told["lowest_tried_micros"] is None
    assert "it would have been let" in told["words"]
    Offer.objects.update(state="paused")
    assert api.get(f"/api/v1/nodes/{idle.pk}/").json()["told"] is None
