"""Buyers' pages: plain, true, and cheap to show."""

from datetime import timedelta

import pytest
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from buyers.models import Artifact, Dataset, Job, MetricPoint, Quote
from marketplace.core.ids import uuid7
from marketplace.core.money import MICRO
from tests import world
from tests.buyers.conftest import folder

pytestmark = pytest.mark.usefixtures("valkey")

HTMX = {"HX-Request": "true"}


@pytest.fixture
def quote(member, code):
    """The page of a quote that has just been asked for."""

    def quote(**more):
        form = {
            "recipe": "script", "script": str(code.pk), "p-entry": "main.py",
            "budget": "5", "gpus": "1", "memory_gib": "2", "hours": "0.5", "disk_gib": "5",
            "trust": "community", **more,
        }  # fmt: skip
        return member.post(reverse("new_job"), {**form, "quote": ""}, follow=True)

    return quote


def text_of(answer):
    assert answer.status_code == 200, answer
    return answer.content.decode()


def test_a_buyer_who_has_nothing_is_told_how_to_begin(member):
    page = text_of(member.get(reverse("buy")))
    assert "Ask for a quote" in page
    assert "$100.00" in page


def test_the_start_page_lists_jobs_money_datasets_and_models(member, ran):
    page = text_of(member.get(reverse("buy")))
    for expected in ("Our model", "pairs v1", "running", "2 / 4", "held for jobs"):
        assert expected in page
    rows = text_of(member.get(reverse("buy"), headers=HTMX))
    assert f'id="job-{ran.job.pk}"' in rows
    assert "<html" not in rows, "htmx gets the fragment alone"


def test_the_start_page_asks_as_often_for_a_thousand_jobs_as_for_one(
    member, ran, buyer, today, django_assert_num_queries: DjangoAssertNumQueries
):
    Job.objects.bulk_create(
        Job(
            id=uuid7(), org=buyer, name=f"job {number}", created_by=buyer.members.get(),
            created_at=today, recipe="script", parameters={}, order="bid", memory_bytes=1,
            disk_bytes=1, limits={}, budget_micros=MICRO, queued_at=today, state="succeeded",
            state_since=today,
        )
        for number in range(1000)
    )  # fmt: skip
    # Who asks: session, user, and the org twice (for the view and for the page's frame).
    # What there is: the live jobs with wallet and escrows (2), datasets, models, how many jobs
    # there are, and one page of them.
    with django_assert_num_queries(4 + 2 + 2 + 2):
        member.get(reverse("buy"))


def test_a_jobs_page_tells_everything_and_asks_a_fixed_number_of_times(
    member, ran, django_assert_num_queries: DjangoAssertNumQueries
):
    # Who asks: 4, as above. The job: 1. Its view: lease, shares, and for its words the lease,
    # twice the shares again, and its pace; checkpoints, artifact, story, last point, evaluations:
    # 11. The receipt: shares, slices, credits: 3. The log: what was kept, as Valkey has none: 1.
    # The curve: how far it goes, and its points: 2. Whether a script had run before: 1.
    with django_assert_num_queries(4 + 1 + 11 + 3 + 1 + 2 + 1):
        page = text_of(member.get(reverse("job", args=[ran.job.pk])))
    for expected in (
        "Our model", "running on", "step 2 of 4", "2.500 at step 2", "310 tokens/s", "4.500",
        "per GPU-hour", "Lab", "model.safetensors", "placed → running", 'id="points"',
        "Save and stop", "Cancel", f"/buy/jobs/{ran.job.pk}/socket",
    ):  # fmt: skip
        assert expected in page, expected


@pytest.mark.parametrize("measure", ["loss", "accuracy", "reward"])
def test_what_was_measured_on_held_out_rows_is_shown_by_its_name(member, ran, measure):
    MetricPoint.objects.filter(step=0).update(values={f"heldout_{measure}": 0.625})
    page = text_of(member.get(reverse("job", args=[ran.job.pk])))
    assert f"{measure.capitalize()} on held-out rows</dt><dd>0.625" in page


def test_what_strangers_wrote_is_shown_and_never_run(member, ran):
    from marketplace import telemetry

    evil = "<script>alert(1)</script>"
    telemetry.keep_log(ran.job.pk, ran.lease.epoch, [("stdout", 0, evil)])
    ran.lease.assignments.update(detail=evil)
    Job.objects.update(name=evil)
    page = text_of(member.get(reverse("job", args=[ran.job.pk])))
    assert evil not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3


def test_a_quote_shows_what_fits_with_its_cost_and_what_does_not_with_its_reason(
    quote, node, today
):
    world.agent(world.org("Small", now=today), now=today, gpu_memory=2**30)
    page = text_of(quote())
    for expected in (
        "GPU time", "Storage", "Transfer", "Cost in all", "kWh", "g CO₂", "Notice", "Take",
        "These prices hold until", "needs 2.0 GiB on each GPU",
    ):  # fmt: skip
        assert expected in page, expected


def test_taking_an_option_leads_to_the_job(member, quote, node):
    text_of(quote())
    made = Quote.objects.get()
    answer = member.post(reverse("take", args=[made.pk]), {"option": "0"})
    job = Job.objects.get()
    assert answer.headers["Location"] == reverse("job", args=[job.pk])
    assert "Taken" in text_of(member.get(reverse("quote", args=[made.pk])))


def test_by_htmx_it_leads_there_too_and_a_no_is_a_line_of_text(member, quote, node, today):
    text_of(quote())
    made = Quote.objects.get()
    path = reverse("take", args=[made.pk])
    wrong = member.post(path, {"option": "x"}, headers=HTMX)
    assert wrong.status_code == 400
    assert "choose one of" in wrong.content.decode()
    Quote.objects.update(expires_at=today - timedelta(seconds=1))
    late = member.post(path, {"option": "0"}, headers=HTMX)
    assert late.status_code == 409
    assert "no longer hold" in late.content.decode()
    assert "<html" not in late.content.decode()
    Quote.objects.update(expires_at=today + timedelta(minutes=1))
    taken = member.post(path, {"option": "0"}, headers=HTMX)
    assert taken.headers["HX-Redirect"] == reverse("job", args=[Job.objects.get().pk])


def test_an_old_quote_is_asked_for_again(member, quote, node, today):
    quote()
    old = Quote.objects.get()
    Quote.objects.update(expires_at=today - timedelta(seconds=1))
    assert "no longer hold" in text_of(member.get(reverse("quote", args=[old.pk])))
    page = member.post(reverse("quote_again", args=[old.pk]), follow=True)
    assert "These prices hold until" in text_of(page)
    assert Quote.objects.count() == 2


def test_a_quote_may_be_left_to_a_bid(member, quote, node):
    quote()
    path = reverse("bid", args=[Quote.objects.get().pk])
    assert "must be more than zero" in text_of(member.post(path, {"limit": "0"}))
    assert member.post(path, {"limit": "3.50"}).status_code == 302
    job = Job.objects.get()
    assert (job.order, job.limits) == ("bid", {"h100-sxm": 3_500_000})


def test_a_bid_needs_no_quote(quote, node):
    assert quote(bid="").status_code == 200
    assert Job.objects.get().order == "bid"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({"budget": "0"}, "budget must be more than zero"),
        ({"budget": "NaN"}, "plain decimal number"),
        ({"p-entry": "other.py"}, "there is no other.py"),
        ({"p-entry": "../x.py"}, "entry must be a .py file inside the project"),
        ({"hours": ""}, "how long it will about run"),
        ({"limit": "-1"}, "limit must be more than zero"),
        ({"recipe": "alchemy"}, "Select a valid choice"),
        ({"gpus": "0"}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_form_is_shown_again_with_the_reason_at_its_field(quote, node, typed, said):
    assert said in text_of(quote(**typed))
    assert not Job.objects.exists()
    assert not Quote.objects.exists()


def test_a_form_offers_only_what_is_the_orgs_own(member, stranger, code):
    Dataset.objects.create(**folder(org=stranger, name="theirs", version=1, created_by="x"))
    Artifact.objects.create(**folder(org=stranger, name="Their model"))
    Artifact.objects.create(**folder(name="Base", public=True))
    page = text_of(member.get(reverse("new_job")))
    assert "code v1" in page
    assert "Base" in page
    assert "theirs" not in page
    assert "Their model" not in page


def test_stop_cancel_and_resume_answer_with_the_state_as_it_now_is(member, buyer, node, today):
    job = world.job(buyer, now=today)
    path = {verb: reverse(f"{verb}_job", args=[job.pk]) for verb in ("stop", "resume", "cancel")}
    stopped = text_of(member.post(path["stop"], headers=HTMX))
    assert 'id="job-state"' in stopped
    assert "Resume from its last checkpoint" in stopped
    low = member.post(path["resume"], {"budget": "0.000001"}, headers=HTMX)
    assert low.status_code == 400
    assert "queued" in text_of(member.post(path["resume"], {"budget": "200"}, headers=HTMX))
    assert member.post(path["cancel"]).headers["Location"] == reverse("job", args=[job.pk])
    job.refresh_from_db()
    assert job.state == "cancelled"


def test_a_file_of_a_model_is_read_by_a_link_made_for_the_click(member, ran, s3):
    import httpx

    from marketplace import storage

    storage.put(storage.file_key(ran.artifact.prefix, "0" * 64), b"0123456789")
    path = reverse("artifact_file", args=[ran.artifact.pk])
    link = member.get(path, {"path": "model.safetensors"}).headers["Location"]
    answer = httpx.get(link)
    assert answer.content == b"0123456789"
    assert answer.headers["content-disposition"] == 'attachment; filename="model.safetensors"'
    assert member.get(path, {"path": "../secret"}).status_code == 404


def test_the_wallet_shows_its_statement_and_refuses_a_strange_amount(member, ran):
    page = text_of(member.get(reverse("wallet")))
    assert "escrow" in page
    assert "top_up" in page
    assert "a top-up is between" in text_of(member.post(reverse("wallet"), {"amount": "0.5"}))


def test_datasets_are_listed_with_an_upload_form(member, ran):
    page = text_of(member.get(reverse("datasets")))
    assert "pairs" in page
    assert "upload.js" in page
    assert reverse("api:datasets") in page


def test_pages_are_only_for_members(client, ran):
    for name in ("buy", "wallet", "datasets", "new_job"):
        assert client.get(reverse(name)).status_code == 302
