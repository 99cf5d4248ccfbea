"""What a waiting job's buyer reads, presses and asks for: what would place it."""

import json

import pytest
from django.urls import reverse

from marketplace.core.money import MICRO
from scheduler import clearing
from tests import world
from tests.buyers.conftest import client_of, key_of

pytestmark = pytest.mark.django_db(transaction=True)
H100 = "h100-sxm"


@pytest.fixture
def waits(buyer, node, today):
    """A job whose limit lies under the only node's ask, told so by a round."""
    job = world.job(buyer, now=today, limits={H100: 2 * MICRO})
    assert clearing.clear_market(now=today) == 0
    return job


def page_of(client, job) -> str:
    return client.get(reverse("job", args=[job.pk])).content.decode()


def test_the_page_says_why_it_waits_and_what_would_place_it(member, waits):
    page = page_of(member, waits)
    assert "waiting: h100-sxm costs 2.173914 a GPU-hour, and its limit is 2.00" in page
    assert "Raise the limit on h100-sxm to 2.176: 1 × h100-sxm, 2.17 an hour" in page
    assert 'value="limit 2176000 h100-sxm"' in page


def test_a_press_makes_the_change_and_the_next_round_places_it(member, waits, today, valkey):
    htmx = {"HX-Request": "true"}
    path = reverse("accept_change", args=[waits.pk])
    part = member.post(path, {"change": "limit 2176000 h100-sxm"}, headers=htmx).content.decode()
    assert 'id="job-waiting"' in part
    assert "hidden" in part
    page = page_of(member, waits)
    assert "waiting for the next round" in page
    assert "its limit on h100-sxm is 2.176 a GPU-hour, it was 2.00" in page
    assert clearing.clear_market(now=today) == 1
    assert "What would place it" in page_of(member, waits), "the piece stays, hidden"


@pytest.mark.parametrize("change", ["", "limit", "limit x y z", "window 0 ", "owner 1 h100-sxm"])
def test_a_press_of_nonsense_is_refused_in_words(member, waits, change):
    answer = member.post(reverse("accept_change", args=[waits.pk]), {"change": change})
    assert answer.status_code == 400
    waits.refresh_from_db()
    assert waits.limits == {H100: 2 * MICRO}


def test_a_job_that_does_not_wait_shows_nothing_of_it(member, ran):
    page = page_of(member, ran.job)
    assert 'id="job-waiting" aria-labelledby="waiting-title" hidden' in page


def test_the_page_asks_once_for_what_a_job_was_told(member, waits, django_assert_max_num_queries):
    # Who asks: 4. The job: 1. Told, lease, the words' lease, checkpoints, artifact, story, last
    # point, evaluations: 8. The receipt: 3. The curve: 2. The market itself is not read.
    with django_assert_max_num_queries(4 + 1 + 8 + 3 + 2):
        page_of(member, waits)


def test_the_api_says_the_same_and_takes_a_change(api, waits, today, valkey):
    path = reverse("api:job", args=[waits.pk])
    told = api.get(path).json()["told"]
    assert told == {
        "why": "dear",
        "words": "h100-sxm costs 2.173914 a GPU-hour, and its limit is 2.00",
        "changes": [
            {
                "term": "limit", "to": "2176000", "gpu_class": H100, "gpus": 1, "level": "node",
                "hourly_micros": 2_173_914, "cost_micros": 2_173_914,
                "words": "raise the limit on h100-sxm to 2.176: 1 × h100-sxm, 2.17 an hour",
            }
        ],
    }  # fmt: skip
    change = {name: told["changes"][0][name] for name in ("term", "to", "gpu_class")}
    answer = api.post(f"{path}accept/", json.dumps(change), content_type="application/json")
    assert answer.status_code == 200, answer.content
    assert answer.json()["told"] is None
    assert answer.json()["limits"] == {H100: 2_176_000}
    assert clearing.clear_market(now=today) == 1


def test_the_api_refuses_what_is_no_change(api, waits):
    path = reverse("api:accept_change", args=[waits.pk])
    for body in ({}, {"term": "owner", "to": "1"}, {"term": "tier", "to": "best"}):
        answer = api.post(path, json.dumps(body), content_type="application/json")
        assert answer.status_code == 400, answer.content


def test_a_stranger_changes_nothing(stranger, waits):
    body = {"change": "limit 9000000 h100-sxm"}
    path = reverse("accept_change", args=[waits.pk])
    assert client_of(stranger).post(path, body).status_code == 404
    key = {"Authorization": f"Bearer {key_of(stranger)}"}
    api_path = reverse("api:accept_change", args=[waits.pk])
    answer = client_of(stranger).post(
        api_path, '{"term": "tier", "to": "unproven"}', content_type="application/json", headers=key
    )
    assert answer.status_code == 404
