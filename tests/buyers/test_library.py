"""The pages and the API of datasets and bases."""

import pytest
from django.urls import reverse
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from buyers import fetching
from buyers.hub_models import Fetch
from buyers.models import Dataset
from tests.buyers import hub as hubs
from tests.buyers.conftest import folder
from tests.buyers.hub import Repository

pytestmark = pytest.mark.usefixtures("valkey")

HTMX = {"HX-Request": "true"}


@pytest.fixture
def hub(settings, tmp_path, s3):
    with hubs.serving() as hub:
        settings.HUBS = {"huggingface": hub.url}
        settings.SCRATCH_DIR = tmp_path / "scratch"
        hub.repos["makers/tiny"] = Repository(hubs.model(tmp_path))
        yield hub


def test_a_datasets_page_shows_its_first_rows_its_kind_and_its_files(
    member, ran, django_assert_num_queries: DjangoAssertNumQueries
):
    # Who asks: 4 (session, user, and the org twice); the version: 1.
    with django_assert_num_queries(4 + 1):
        page = member.get(reverse("dataset", args=[ran.dataset.pk])).content.decode()
    for expected in ("2+2?", "It is 4.", "answers", "3 rows", "Train on it", "model.safetensors"):
        assert expected in page


def test_a_refused_version_says_why_and_can_be_discarded(member, buyer, s3):
    facts = folder(org=buyer, name="bad", version=1, created_by="me", committed_at=None)
    made = Dataset.objects.create(
        **facts, state="refused", detail="train.jsonl line 3: give prompt and completion"
    )
    page = member.get(reverse("dataset", args=[made.pk])).content.decode()
    assert "train.jsonl line 3" in page
    assert member.post(reverse("discard_dataset", args=[made.pk])).status_code == 302
    assert not Dataset.objects.filter(pk=made.pk).exists()


def test_a_version_that_is_looked_at_refreshes_itself(member, buyer):
    facts = folder(org=buyer, name="big", version=1, created_by="me", committed_at=None)
    made = Dataset.objects.create(**facts, state="checking")
    piece = member.get(reverse("dataset", args=[made.pk]), headers=HTMX).content.decode()
    assert "<html" not in piece
    assert "hx-trigger" in piece
    made.state = "ready"
    made.committed_at = timezone.now()
    made.save()
    piece = member.get(reverse("dataset", args=[made.pk]), headers=HTMX).content.decode()
    assert "hx-trigger" not in piece


def test_the_report_tells_a_program_the_same(api, ran):
    said = api.get(f"/api/v1/datasets/{ran.dataset.pk}/report/").json()
    assert (said["state"], said["kinds"]) == ("ready", ["answers"])
    assert said["parts"]["train"]["first"] == [{"prompt": "2+2?", "completion": "It is 4."}]


def test_a_base_is_added_watched_and_its_licence_accepted_on_one_page(
    member, buyer, hub, django_assert_num_queries: DjangoAssertNumQueries
):
    path = reverse("bases")
    assert member.post(path, {"repo": "makers/tiny", "hub": "huggingface"}).status_code == 302
    assert "asked" in member.get(path).content.decode()
    assert "HX-Refresh" not in member.get(path, headers=HTMX).headers
    fetching.work(timezone.now)
    assert member.get(path, headers=HTMX).headers["HX-Refresh"] == "true"
    # Who asks: 4, and twice more for what is on the way and for the page. What is on the way,
    # the bases, and the licences accepted: 3.
    with django_assert_num_queries(4 + 1 + 3):
        page = member.get(path).content.decode()
    assert "Accept it for your organisation" in page
    base = Fetch.objects.get().artifact
    done = member.post(reverse("accept_licence", args=[base.pk]), {"licence": "apache-2.0"})
    assert done.status_code == 302
    page = member.get(path).content.decode()
    assert "accepted</span>" in page
    shown = member.get(reverse("model", args=[base.pk])).content.decode()
    for expected in ("huggingface:makers/tiny", base.commit, "accepted by", "Train on it"):
        assert expected in shown


def test_a_wrong_wish_is_said_at_its_field(member, hub):
    page = member.post(reverse("bases"), {"repo": "http://x", "hub": "huggingface"})
    assert "organisation/model" in page.content.decode()


def test_a_refused_fetch_is_shown_with_its_reason(member, hub):
    member.post(reverse("bases"), {"repo": "makers/nothing", "hub": "huggingface"})
    fetching.work(timezone.now)
    assert "the hub has no makers/nothing" in member.get(reverse("bases")).content.decode()


def test_programs_add_bases_too(api, hub):
    def post(path, body):
        return api.post(f"/api/v1/{path}", body, "application/json")

    made = post("fetches/", {"repo": "makers/tiny"})
    assert (made.status_code, made.json()["state"]) == (201, "asked")
    fetching.work(timezone.now)
    done = api.get(f"/api/v1/fetches/{made.json()['id']}/").json()
    assert (done["state"], done["bytes_done"]) == ("ready", done["bytes_total"])
    (base,) = api.get("/api/v1/bases/").json()
    assert (base["licence"], base["accepted"]) == ("apache-2.0", False)
    accepted = post(f"artifacts/{base['id']}/licence/", {"licence": "apache-2.0"})
    assert accepted.json()["accepted"] is True
    assert post("fetches/", {"repo": "x" * 300}).status_code == 400
    assert post("fetches/", {"repo": "a/b", "hub": "elsewhere"}).json()["field"] == "hub"
    other = post("fetches/", {"repo": "makers/other"}).json()
    assert post(f"fetches/{other['id']}/cancel/", {}).json()["state"] == "refused"
    assert post(f"fetches/{other['id']}/cancel/", {}).status_code == 409
