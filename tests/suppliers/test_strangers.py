"""A stranger sees none of it: every address of supply, walked from the table of addresses."""

from uuid import UUID

import pytest
from django.test import Client
from django.urls import URLPattern

from marketplace import accounts
from marketplace.core.ids import uuid7
from marketplace.models import Scope
from suppliers import offers, urls
from suppliers.models import Node, Offer, Site
from suppliers.offers import Terms

OF_ONE = [
    (prefix, str(pattern.pattern))
    for prefix, patterns in (("/supply/", urls.page_urls), ("/api/v1/", urls.api_urls))
    for pattern in patterns
    if isinstance(pattern, URLPattern) and "<uuid:pk>" in str(pattern.pattern)
]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@pytest.fixture
def rows(node: Node, site: Site, owner, now) -> dict[str, UUID]:
    """One of each thing that has an address, by the first word of it."""
    offer = offers.create_offer(node, Terms(ask="1"), by=owner, now=now)
    return {"sites": site.pk, "nodes": node.pk, "offers": offer.pk}


def walk(client: Client, prefix: str, pattern: str, pk: UUID) -> dict[str, int]:
    path = prefix + pattern.replace("<uuid:pk>", str(pk)).replace("<uuid:round>", str(uuid7()))
    return {
        method: client.generic(method, path, b"{}", "application/json").status_code
        for method in METHODS
    }


def test_there_is_something_to_walk():
    assert len(OF_ONE) > 20


@pytest.mark.parametrize(("prefix", "pattern"), OF_ONE)
def test_a_stranger_gets_404_whatever_they_try(stranger, rows, valkey, prefix, pattern):
    before = _state()
    client = Client()
    client.force_login(stranger)
    statuses = walk(client, prefix, pattern, rows[pattern.split("/")[0]])
    assert set(statuses.values()) <= {404, 405}, statuses
    assert 404 in statuses.values(), statuses
    assert _state() == before


@pytest.mark.parametrize(("prefix", "pattern"), [row for row in OF_ONE if row[0] == "/api/v1/"])
def test_a_strangers_key_gets_404_too(stranger, rows, now, valkey, prefix, pattern):
    org = stranger.memberships.get().org
    _, secret = accounts.create_key(org, name="k", scopes=[Scope.SUPPLY], by=stranger, now=now)
    client = Client(headers={"Authorization": f"Bearer {secret}"})
    statuses = walk(client, prefix, pattern, rows[pattern.split("/")[0]])
    assert set(statuses.values()) <= {404, 405}, statuses


@pytest.mark.parametrize(("prefix", "pattern"), OF_ONE)
def test_nobody_gets_nothing(rows, prefix, pattern):
    statuses = walk(Client(), prefix, pattern, rows[pattern.split("/")[0]])
    # A page sends them to log in, the API says 401.
    assert set(statuses.values()) <= ({302} if prefix == "/supply/" else {401}), statuses


# A proof needs a round: tests/scheduler/test_round_pages.py has one.
@pytest.mark.parametrize(("prefix", "pattern"), [row for row in OF_ONE if "/proof/" not in row[1]])
def test_the_owner_gets_something(owner, rows, valkey, prefix, pattern):
    client = Client()
    client.force_login(owner)
    statuses = walk(client, prefix, pattern, rows[pattern.split("/")[0]])
    assert set(statuses.values()) - {404, 405}, statuses


def test_lists_hold_ones_own_only(stranger, rows):
    client = Client()
    client.force_login(stranger)
    for name in ("sites", "nodes", "offers"):
        assert client.get(f"/api/v1/{name}/").json()["results"] == []
    page = client.get("/supply/").content.decode()
    assert "Cellar" not in page


def _state() -> list[object]:
    return [list(model.objects.order_by("pk").values()) for model in (Site, Node, Offer)]
