"""The REST API: all that a buyer does, as programs do it."""

from datetime import timedelta

import pytest

from buyers.models import Dataset, Job, Quote, RepeatableCall
from marketplace.core.money import MICRO
from tests import world
from tests.buyers import folders

pytestmark = pytest.mark.usefixtures("valkey")


def post(client, path, body=None, **headers):
    return client.post(
        f"/api/v1/{path}", body if body is not None else {}, "application/json", headers=headers
    )


def get(client, path, **params):
    return client.get(f"/api/v1/{path}", params)


def test_the_wallet_tells_what_is_free_and_what_is_held(api, ran):
    assert get(api, "wallet/").json() == {
        "currency": "USD",
        "balance_micros": 100 * MICRO - held(ran),
        "held_micros": held(ran),
    }
    lines = get(api, "wallet/statement/").json()["results"]
    assert {line["kind"]: line["change_micros"] for line in lines} == {
        "escrow": -held(ran),
        "top_up": 100 * MICRO,
    }


def held(ran):
    from marketplace.ledger import services as ledger

    return ledger.balance(ledger.escrow(ran.job.pk))


@pytest.mark.parametrize("amount", ["0", "-5", "NaN", "1e3", "0.001", "0.5", "1000000", None, 5.0])
def test_a_top_up_of_no_sane_amount_is_refused_before_any_page_is_made(api, amount):
    answer = post(api, "top-ups/", {"amount": amount})
    assert (answer.status_code, answer.json()["field"]) == (400, "amount")
    assert get(api, "top-ups/").json()["results"] == []


def test_a_dataset_is_declared_sent_committed_and_read_back(api, s3):
    import httpx

    files = [
        {"path": file.path, "bytes": file.bytes, "sha256": file.sha256}
        for file in folders.declared(folders.TRAINING)
    ]
    begun = post(api, "datasets/", {"name": "pairs", "files": files})
    assert begun.status_code == 201
    made = begun.json()
    assert get(api, f"datasets/{made['id']}/").status_code == 404, "not before it is committed"
    assert post(api, f"datasets/{made['id']}/commit/").status_code == 409
    for path, put in made["puts"].items():
        httpx.put(put["url"], headers=put["headers"], content=folders.TRAINING[path])
    done = post(api, f"datasets/{made['id']}/commit/").json()
    assert (done["rows"], done["files"], done["version"]) == (7, 2, 1)

    listed = get(api, f"datasets/{made['id']}/").json()
    for file in listed["files"]:
        assert httpx.get(file["url"]).content == folders.TRAINING[file["path"]]
    assert [row["name"] for row in get(api, "datasets/", name="pairs").json()["results"]] == [
        "pairs"
    ]


@pytest.mark.parametrize(
    "body",
    [[], "x", {"name": "x"}, {"name": "x", "files": {}}, {"files": []}, {"name": 3, "files": 4}],
)
def test_a_dataset_of_another_shape_is_refused(api, body):
    answer = post(api, "datasets/", body)
    assert answer.status_code == 400
    assert answer.json()["message"]


@pytest.mark.parametrize("text", ["\\u0000", "\\ud800"])
@pytest.mark.parametrize(
    "body", ['{"name": "%s"}', '{"recipe": "x", "%s": 1}', '{"limits": {"a%s": "1"}}',
             '{"files": [{"path": "%s"}]}', '{"parameters": {"args": [["%s"]]}}']
)  # fmt: skip
def test_text_that_no_database_could_hold_is_refused(api, text, body):
    for path in ("jobs/", "quotes/", "datasets/"):
        answer = api.post(f"/api/v1/{path}", body.replace("%s", text), "application/json")
        assert answer.status_code == 400, (path, answer.content)
    assert api.get("/api/v1/datasets/?name=%00").status_code == 400
    assert api.get("/api/v1/jobs/?state=%00").status_code == 400


@pytest.mark.parametrize("body", ["[" * 100_000, '{"a": NaN}', "{", b"\xff", '{"a": 1e999}'])
def test_what_is_no_json_is_refused(api, body):
    for path in ("jobs/", "datasets/", "top-ups/"):
        answer = api.post(f"/api/v1/{path}", body, "application/json")
        assert answer.status_code == 400, answer.content
        assert answer.json()["message"]


def test_a_body_that_is_too_large_is_refused_unread(api):
    answer = api.post("/api/v1/datasets/", b" " * (8 * 2**20 + 1), content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_quote_is_taken_and_the_job_stands(api, wanted, node):
    quote = post(api, "quotes/", wanted)
    assert quote.status_code == 201
    options = quote.json()["options"]
    assert [option["fits"] for option in options] == [True]
    assert {line["label"] for line in options[0]["lines"]} == {"GPU time", "Storage", "Transfer"}

    taken = post(api, f"quotes/{quote.json()['id']}/take/", {"option": 0})
    assert taken.status_code == 201
    job = taken.json()
    assert (job["state"], job["order"]) == ("placed", "take")
    assert job["nodes"][0]["node"] == node.node.name
    assert job["may"]
    assert job["words"]
    assert get(api, f"quotes/{quote.json()['id']}/").json()["job"] == job["id"]

    again = post(api, f"quotes/{quote.json()['id']}/take/", {"option": 0})
    assert (again.status_code, again.json()["code"]) == (409, "conflict")


def test_a_quote_does_not_hold_for_ever(api, wanted, node, today):
    quote = post(api, "quotes/", wanted).json()
    Quote.objects.update(expires_at=today - timedelta(seconds=1))
    answer = post(api, f"quotes/{quote['id']}/take/", {"option": 0})
    assert (answer.status_code, answer.json()["code"]) == (409, "expired")
    assert not Job.objects.exists()


@pytest.mark.parametrize("option", [-1, "x", None, 1.5, 99])
def test_an_option_that_is_none_is_refused(api, wanted, node, option):
    quote = post(api, "quotes/", wanted).json()
    assert post(api, f"quotes/{quote['id']}/take/", {"option": option}).status_code == 400


def test_a_bid_waits_and_can_be_cancelled(api, wanted, node):
    made = post(api, "jobs/", {**wanted, "name": "patient"})
    assert made.status_code == 201
    job = made.json()
    assert (job["state"], job["name"], job["limits"]) == (
        "queued", "patient", {"h100-sxm": 3 * MICRO},
    )  # fmt: skip
    ended = post(api, f"jobs/{job['id']}/cancel/")
    assert (ended.status_code, ended.json()["state"]) == (200, "cancelled")
    again = post(api, f"jobs/{job['id']}/cancel/")
    assert (again.status_code, again.json()["code"]) == (409, "invalid_transition")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("budget", "0"), ("budget", "-1"), ("budget", "NaN"), ("budget", "1e99"),
        ("budget", "1000001"), ("budget", True), ("budget", 2.5), ("budget", None),
        ("budget", "0.0000001"), ("limit", "0"), ("limit", "-0.01"), ("limit", "Infinity"),
        ("limit", "1001"), ("limit", True), ("gpus", 0), ("gpus", 1.5), ("gpus", True),
        ("memory_gib", "NaN"), ("memory_gib", -1), ("hours", "x"), ("recipe", ""),
        ("recipe", ["lora"]), ("name", "a\0b"), ("regions", ["atlantis"]), ("trust", "blind"),
        ("deadline", "tomorrow"), ("deadline", "2020-01-01T00:00:00+00:00"), ("surprise", 1),
        ("parameters", []), ("parameters", {"entry": "../x.py"}), ("script", "nothing"),
        ("environment", "f" * 64), ("dataset", "a\nb"),
    ],
)  # fmt: skip
def test_a_job_that_makes_no_sense_is_refused_with_its_field(api, wanted, node, field, value):
    for path in ("jobs/", "quotes/"):
        answer = post(api, path, {**wanted, field: value})
        assert answer.status_code == 400, answer.json()
        assert answer.json()["field"].partition(".")[0] == field
    assert not Job.objects.exists()
    assert not Quote.objects.exists()


def test_too_little_money_is_said_with_its_own_status(wanted, buyer, node, today):
    from django.test import Client

    from tests.buyers.conftest import key_of

    poor = world.org(now=today, wallet=10)
    Dataset.objects.update(org=poor)
    api = Client(headers={"Authorization": f"Bearer {key_of(poor)}"})
    answer = post(api, "jobs/", wanted)
    assert (answer.status_code, answer.json()["code"]) == (402, "not_enough_money")
    quote = post(api, "quotes/", wanted).json()
    answer = post(api, f"quotes/{quote['id']}/take/", {"option": 0})
    assert answer.status_code == 402
    assert not Job.objects.exists()


def test_a_post_sent_twice_under_one_key_is_done_once(api, wanted, node):
    first = post(api, "jobs/", wanted, **{"Idempotency-Key": "a"})
    second = post(api, "jobs/", wanted, **{"Idempotency-Key": "a"})
    assert (second.status_code, second.json()) == (201, first.json())
    assert Job.objects.count() == 1
    other = post(api, "jobs/", {**wanted, "name": "x"}, **{"Idempotency-Key": "a"})
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert post(api, "jobs/", wanted, **{"Idempotency-Key": "b"}).json() != first.json()
    assert post(api, "jobs/", wanted, **{"Idempotency-Key": "x" * 101}).status_code == 400


def test_a_refused_post_may_be_tried_again_under_its_key(api, wanted, node):
    refused = post(api, "jobs/", {**wanted, "budget": "0"}, **{"Idempotency-Key": "a"})
    assert refused.status_code == 400
    assert not RepeatableCall.objects.exists()
    assert post(api, "jobs/", wanted, **{"Idempotency-Key": "a"}).status_code == 201


def test_keys_of_two_orgs_never_meet(api, stranger, wanted, node):
    from django.test import Client

    from tests.buyers.conftest import key_of

    first = post(api, "jobs/", wanted, **{"Idempotency-Key": "a"})
    theirs = Client(headers={"Authorization": f"Bearer {key_of(stranger)}"})
    answer = post(theirs, "jobs/", wanted, **{"Idempotency-Key": "a"})
    assert answer.status_code == 400, "it is judged by itself: they have no such script"
    assert first.status_code == 201


@pytest.mark.django_db(transaction=True)
def test_one_post_sent_by_two_at_once_is_done_once(wanted, buyer, node):
    from concurrent.futures import ThreadPoolExecutor

    from django.db import connection
    from django.test import Client

    from tests.buyers.conftest import key_of

    key = key_of(buyer)

    def bid(number):
        try:
            client = Client(headers={"Authorization": f"Bearer {key}"})
            return post(client, "jobs/", wanted, **{"Idempotency-Key": "a"}).json()["id"]
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(bid, range(4)))) == 1
    assert Job.objects.count() == 1


def test_answers_are_forgotten_after_a_day(api, wanted, node, today):
    post(api, "jobs/", wanted, **{"Idempotency-Key": "a"})
    RepeatableCall.objects.update(at=today - timedelta(days=2))
    post(api, "jobs/", wanted, **{"Idempotency-Key": "b"})
    assert list(RepeatableCall.objects.values_list("key", flat=True)) == ["b"]
