"""A stranger sees none of it: every address of buying, walked from the tables of addresses."""

from uuid import UUID

import pytest
from django.test import Client
from django.urls import URLPattern

from buyers import urls
from buyers.hub_models import Fetch
from buyers.models import Artifact, Dataset, Job, Quote
from buyers.own_models import Secret
from marketplace.core.ids import uuid7
from marketplace.models import Scope
from tests.buyers.conftest import Ran, client_of, key_of

OF_ONE = [
    (prefix, str(pattern.pattern))
    for prefix, patterns in (("/buy/", urls.page_urls), ("/api/v1/", urls.api_urls))
    for pattern in patterns
    if isinstance(pattern, URLPattern) and "<uuid:pk>" in str(pattern.pattern)
]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

pytestmark = pytest.mark.usefixtures("valkey")


def address(prefix: str, pattern: str, ids: dict[str, UUID]) -> str:
    """The pattern, filled in with ids by its first word."""
    pk = ids[pattern.split("/", maxsplit=1)[0]]
    path = pattern.replace("<uuid:pk>", str(pk)).replace("<uuid:round>", str(uuid7()))
    return prefix + path.replace("<uuid:checkpoint>", str(ids["checkpoint"]))


def ids_of(ran: Ran) -> dict[str, UUID]:
    return {
        "jobs": ran.job.pk, "quotes": ran.quote.pk, "datasets": ran.dataset.pk,
        "artifacts": ran.artifact.pk, "checkpoint": ran.checkpoint.pk, "fetches": ran.fetch.pk,
        "secrets": ran.secret.pk,
    }  # fmt: skip


def walk_all(
    client: Client, ids: dict[str, UUID], *, prefix: str = "/"
) -> dict[str, dict[str, int]]:
    """Every method on every address: path → method → status."""
    paths = [address(*row, ids) for row in OF_ONE if row[0].startswith(prefix)]
    return {path: walk(client, path) for path in paths}


def walk(client: Client, path: str) -> dict[str, int]:
    return {
        method: client.generic(method, path, b'{"option": 0}', "application/json").status_code
        for method in METHODS
    }


def state() -> list[object]:
    rows = [
        model.objects.order_by("pk").values()
        for model in (Job, Quote, Dataset, Artifact, Fetch, Secret)
    ]
    return [list(each) for each in rows]


def test_there_is_something_to_walk():
    assert len(OF_ONE) > 24


def test_a_stranger_gets_404_whatever_they_try(stranger, ran):
    before = state()
    found = walk_all(client_of(stranger), ids_of(ran))
    for path, statuses in found.items():
        assert 404 in statuses.values(), path
        assert set(statuses.values()) <= {404, 405}, (path, statuses)
    assert state() == before


def test_a_strangers_key_gets_404_too(stranger, ran):
    client = Client(headers={"Authorization": f"Bearer {key_of(stranger)}"})
    for path, statuses in walk_all(client, ids_of(ran), prefix="/api/v1/").items():
        assert set(statuses.values()) <= {404, 405}, (path, statuses)


def test_an_id_of_nothing_looks_the_same(member):
    ids = dict.fromkeys(
        ("jobs", "quotes", "datasets", "artifacts", "checkpoint", "fetches", "secrets"), uuid7()
    )
    for path, statuses in walk_all(member, ids).items():
        assert set(statuses.values()) <= {404, 405}, (path, statuses)


def test_nobody_gets_in_without_saying_who_they_are(ran):
    for path, statuses in walk_all(Client(), ids_of(ran)).items():
        expected = {302, 405} if path.startswith("/buy/") else {401, 403, 405}
        assert set(statuses.values()) <= expected, (path, statuses)


def test_a_key_without_the_scope_is_refused(buyer, ran):
    client = Client(headers={"Authorization": f"Bearer {key_of(buyer, Scope.SUPPLY)}"})
    for path, statuses in walk_all(client, ids_of(ran), prefix="/api/v1/").items():
        assert set(statuses.values()) <= {403, 405}, (path, statuses)


def test_one_jobs_checkpoint_is_not_found_under_another_job(api, ran, buyer, today):
    from tests import world

    other = world.job(buyer, now=today)
    path = f"/api/v1/jobs/{other.pk}/checkpoints/{ran.checkpoint.pk}/"
    assert api.get(path).status_code == 404
