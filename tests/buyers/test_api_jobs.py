"""The REST API of a job: what it tells while it runs, and when it rests."""

import re
from dataclasses import replace
from datetime import timedelta

import pytest
from django.urls import reverse

from agent.recipes import catalog
from buyers.models import Dataset, MetricPoint
from marketplace.core.ids import uuid7
from marketplace.core.money import MICRO
from scheduler import metering
from scheduler.models import Assignment
from tests import world
from tests.buyers.conftest import folder
from tests.buyers.test_api import get, post

pytestmark = pytest.mark.usefixtures("valkey")


def test_a_running_job_tells_where_it_is_what_it_costs_and_what_it_left(api, ran, node):
    job = get(api, f"jobs/{ran.job.pk}/").json()
    assert (job["state"], job["step"], job["total_steps"]) == ("running", 2, 4)
    assert job["lease"]["price_micros"] == 2 * MICRO
    assert job["nodes"][0]["supplier"] == "Lab"
    assert job["artifact"] == str(ran.artifact.pk)
    assert set(job["may"]) == {"cancel", "stop"}
    assert (job["service"], job["premium_bps"], job["held"]) == ("protected", 0, None)
    rows = get(api, "jobs/", state="running").json()["results"]
    assert [row["id"] for row in rows] == [str(ran.job.pk)]
    assert get(api, "jobs/", state="failed").json()["results"] == []

    story = get(api, f"jobs/{ran.job.pk}/story/").json()
    assert [line["target"] for line in story] == ["placed", "running"]
    kept = get(api, f"jobs/{ran.job.pk}/checkpoints/").json()
    assert [row["step"] for row in kept] == [2]
    files = get(api, f"jobs/{ran.job.pk}/checkpoints/{ran.checkpoint.pk}/").json()["files"]
    assert files[0]["url"].startswith("http")
    assert get(api, f"jobs/{ran.job.pk}/artifact/").json()["files"][0]["sha256"] == "0" * 64


def test_curves_come_whole_and_then_only_what_is_new(api, ran, today):
    path = f"jobs/{ran.job.pk}/metrics/"
    whole = get(api, path).json()
    assert [point["step"] for point in whole["points"]] == [0, 1, 2]
    MetricPoint.objects.create(
        job=ran.job, epoch=ran.lease.epoch, step=3, values={"loss": 2.0}, at=today
    )
    more = get(api, path, after=whole["next"]).json()
    assert [point["step"] for point in more["points"]] == [2, 3]
    assert get(api, path, after="nonsense").json()["next"] == more["next"]


def test_a_later_attempt_replaces_the_steps_that_it_repeats(api, ran, today):
    MetricPoint.objects.create(
        job=ran.job, epoch=ran.lease.epoch + 1, step=1, values={"loss": 9.0}, at=today
    )
    points = get(api, f"jobs/{ran.job.pk}/metrics/").json()["points"]
    assert [point["values"].get("loss") for point in points] == [None, 9.0, 2.5]


def test_a_long_run_is_thinned_and_keeps_its_evaluations(api, ran, today):
    epoch = ran.lease.epoch
    MetricPoint.objects.bulk_create(
        MetricPoint(job=ran.job, epoch=epoch, step=step, values={"loss": 1.0}, at=today)
        for step in range(3, 5000)
    )
    MetricPoint.objects.filter(step=4999).update(values={"loss": 1.0, "heldout_loss": 2.0})
    MetricPoint.objects.filter(step=4997).update(values={"loss": 1.0, "heldout_accuracy": 0.5})
    points = get(api, f"jobs/{ran.job.pk}/metrics/").json()["points"]
    assert 1500 < len(points) <= 2001
    assert [point["step"] for point in points[-3:]] == [4997, 4998, 4999]


def test_the_log_is_its_end(api, ran):
    from marketplace import telemetry

    path = f"jobs/{ran.job.pk}/log/"
    assert get(api, path).json() == {"text": ""}
    telemetry.keep_log(ran.job.pk, ran.lease.epoch, [("stdout", 0, "one\n"), ("stdout", 4, "two")])
    assert get(api, path).json() == {"text": "one\ntwo"}


def test_a_log_of_long_ago_is_read_from_storage(api, ran, s3):
    from buyers.models import RunLog
    from marketplace import storage

    text = b"x" * 40_000 + b"the end"
    storage.put(storage.file_key("logs/", "0" * 64), text)
    files = [{"path": "stdout.log", "bytes": len(text), "sha256": "0" * 64}]
    RunLog.objects.create(
        **folder(job=ran.job, epoch=ran.lease.epoch, rank=0, prefix="logs/", manifest=files)
    )
    found = get(api, f"jobs/{ran.job.pk}/log/").json()["text"]
    assert found.endswith("the end")
    assert len(found) < 20_000


def test_a_receipt_adds_up(api, ran, node, today):
    share = ran.lease.assignments.get()
    later = today + timedelta(seconds=10)
    node.says(world.status(share, "running", running_ms=11_000, step=3), now=later)
    metering.claim(node.node, node.claim(share, 11_000), now=later)
    metering.settle(now=later)
    receipt = get(api, f"jobs/{ran.job.pk}/receipt/").json()
    (line,) = receipt["lines"]
    assert line["seconds"] == line["gpu_seconds"] == 10 or line["seconds"] == 11
    assert receipt["total_micros"] == line["charge_micros"] > 0
    assert line["fee_micros"] + line["earnings_micros"] == line["charge_micros"]
    assert receipt["estimated"]


def test_a_quote_a_job_and_its_receipt_tell_what_protection_costs(
    api, wanted, node, today, settings
):
    settings.POLICY = replace(settings.POLICY, premium_bps=1000)
    quote = post(api, "quotes/", wanted).json()
    option = quote["options"][0]
    assert (option["premium_bps"], option["premium_micros"]) == (1000, 217_392)
    assert option["lines"][1]["label"] == "Protection, 10 %"
    job = post(api, f"quotes/{quote['id']}/take/", {"option": 0}).json()
    assert (job["service"], job["premium_bps"]) == ("protected", 1000)
    assert job["lease"]["premium_micros"] == 217_392
    assert job["lease"]["price_micros"] == option["price_micros"] == 2_173_914 + 217_392
    share = Assignment.objects.select_related("lease").get()
    later = today + timedelta(seconds=10)
    node.says(world.status(share, "running", running_ms=9_000), now=later)
    metering.claim(node.node, node.claim(share, 9_000), now=later)
    metering.settle(now=later)
    receipt = get(api, f"jobs/{job['id']}/receipt/").json()
    (line,) = receipt["lines"]
    assert line["charge_micros"] == receipt["charged_micros"]
    assert 0 < line["premium_charged_micros"] == receipt["premium_charged_micros"]


def test_a_stopped_job_resumes_with_more_money(api, wanted, node):
    job = post(api, "jobs/", wanted).json()
    assert post(api, f"jobs/{job['id']}/stop/").json()["state"] == "stopped"
    refused = post(api, f"jobs/{job['id']}/resume/", {"budget": "-1"})
    assert (refused.status_code, refused.json()["field"]) == (400, "budget")
    resumed = post(api, f"jobs/{job['id']}/resume/", {"budget": "9"}).json()
    assert (resumed["state"], resumed["budget_micros"]) == ("queued", 9 * MICRO)


def test_a_job_without_a_result_says_so(api, buyer, today):
    job = world.job(buyer, now=today)
    answer = get(api, f"jobs/{job.pk}/artifact/")
    assert (answer.status_code, answer.json()["code"]) == (404, "missing")
    assert "no artifact" in answer.json()["message"]


def test_models_and_public_bases_are_listed_and_readable(api, ran, stranger):
    from buyers.models import Artifact

    public = Artifact.objects.create(**folder(name="Base", public=True, licence="mit"))
    Artifact.objects.create(**folder(name="Theirs", org=stranger))
    rows = get(api, "artifacts/").json()["results"]
    assert {row["name"] for row in rows} == {"Our model", "Base"}
    only = get(api, "artifacts/", public="1").json()["results"]
    assert [row["name"] for row in only] == ["Base"]
    assert get(api, f"artifacts/{public.pk}/").status_code == 200


def test_recipes_tell_their_inputs_and_parameters(api):
    recipes = get(api, "recipes/").json()
    assert set(recipes) == set(catalog.names())
    assert recipes["lora"]["parameters"]["properties"]["steps"]["minimum"] == 1


def test_every_address_is_in_the_openapi_document(api):
    from buyers import urls

    document = api.get(reverse("schema"), headers={"Accept": "application/json"}).json()
    for pattern in urls.api_urls:
        path = "/api/v1/" + str(pattern.pattern).replace("<uuid:pk>", "{id}")
        path = re.sub("<uuid:(.*?)>", r"{\1}", path)
        assert path in document["paths"], path


def test_a_dataset_list_is_cut_into_pages(api, buyer):
    Dataset.objects.bulk_create(
        Dataset(**folder(org=buyer, name="many", version=number, created_by="me", id=uuid7()))
        for number in range(1, 61)
    )
    first = get(api, "datasets/").json()
    assert len(first["results"]) == 50
    second = api.get(first["next"]).json()
    assert len(second["results"]) == 10
    assert second["next"] is None
