"""Models: what they can do, where they come from, and which one is current."""

import re

import pytest
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from buyers import promotion, references
from buyers.models import Artifact
from marketplace.core.errors import Conflict, Invalid
from tests import world
from tests.buyers.conftest import folder

pytestmark = pytest.mark.usefixtures("valkey")

WHOLE = [
    {"path": path, "bytes": 10, "sha256": "0" * 64} for path in ("config.json", "model.safetensors")
]


def measured(*, dropped: bool = False) -> dict[str, object]:
    """An evaluation as a recipe writes it; `dropped`: poems were forgotten."""
    return {
        "domains": [
            {"name": "target", "measure": "loss", "rows": 64, "tokens": 900, "before": 2.5,
             "after": 1.25, "margin": 0.05, "verdict": "kept"},
            {"name": "poems", "measure": "loss", "rows": 32, "tokens": 500, "before": 2.0,
             "after": 2.5 if dropped else 2.05, "margin": 0.05,
             "verdict": "dropped" if dropped else "kept"},
        ],
        "answers": [{"prompt": "2+2?", "expected": "4", "before": "<b>five</b>", "after": "4"}],
        "training": {"steps": 4, "tokens": 900, "loss": 1.2, "seconds": {"training": 3.0}},
    }  # fmt: skip


@pytest.fixture
def model(ran):
    ran.artifact.evaluation = measured()
    ran.artifact.lineage = {"recipe": "lora"}
    ran.artifact.manifest = WHOLE
    ran.artifact.save()
    return ran.artifact


@pytest.fixture
def forgetful(model):
    model.evaluation = measured(dropped=True)
    model.save()
    return model


def page_of(client, artifact):
    answer = client.get(reverse("model", args=[artifact.pk]))
    assert answer.status_code == 200
    return answer.content.decode()


def again(model, now):
    """A second model of the same name, by a job that continued the first."""
    job = world.job(model.org, now=now, name="Our model", base=model)
    return Artifact.objects.create(**folder(org=model.org, job=job, name="Our model"))


def test_a_models_page_tells_what_it_can_do_what_made_it_and_what_that_took(
    member, ran, model, django_assert_num_queries: DjangoAssertNumQueries
):
    base = Artifact.objects.create(**folder(name="Base", public=True, licence="mit"))
    type(ran.job).objects.filter(pk=ran.job.pk).update(base=base)
    # Who asks: 4 (session, user, and the org twice) and once more for the page. The model with
    # its org: 1. Its job with what it read: 1. The receipt: shares, slices, credits: 3. The
    # family: up, down, jobs, models: 4. Its story: 1.
    with django_assert_num_queries(5 + 1 + 1 + 3 + 4 + 1):
        page = page_of(member, model)
    for expected in (
        "target", "2.500", "1.250", "−50.0 %", "poems", "lower is better", "kept", "&lt;b&gt;five",
        "pairs v1", "GPU-seconds", "kWh", "g CO₂", "Base", "model.safetensors", "LINEAGE.md",
        "Continue from this", "Promote", "lease",
    ):  # fmt: skip
        assert expected in page, expected
    assert "<b>five" not in page


def test_what_dropped_is_red_and_asks_for_a_reason(member, forgetful):
    page = page_of(member, forgetful)
    assert re.search(r'<tr class="dropped">\s*<th scope="row">poems', page)
    assert "got worse by more than its margin in: poems" in page
    assert 'name="reason"' in page


def test_a_model_that_dropped_is_promoted_only_with_a_reason_that_is_kept(member, forgetful):
    path = reverse("promote", args=[forgetful.pk])
    refused = member.post(path, {"reason": " "}).content.decode()
    assert "got worse by more than its margin in: poems" in refused
    forgetful.refresh_from_db()
    assert forgetful.state == "kept"
    assert member.post(path, {"reason": "nobody asks it for poems"}).status_code == 302
    forgetful.refresh_from_db()
    assert forgetful.state == "current"
    (line,) = forgetful.story()
    assert line.reason == "although poems dropped: nobody asks it for poems"
    assert "nobody asks it for poems" in page_of(member, forgetful)


def test_one_model_of_a_name_is_current_and_the_name_means_it(model, today):
    newer, by = again(model, today), model.org.members.get()
    assert references.base(model.org, "Our model") == newer
    promotion.promote(model, reason="", by=by, now=today)
    assert references.base(model.org, "Our model") == model, "the promoted one counts"
    promotion.promote(newer, reason="", by=by, now=today)
    model.refresh_from_db()
    assert (model.state, newer.state) == ("kept", "current")
    assert [line.event for line in model.story()] == ["promote", "retire"]
    assert newer.story().get().reason == "nothing was measured"
    with pytest.raises(Conflict, match="is the current one already"):
        promotion.promote(newer, reason="", by=by, now=today)


def test_a_base_is_nobodys_to_promote(buyer, today):
    base = Artifact.objects.create(**folder(name="Base", public=True))
    with pytest.raises(Invalid, match="is a base"):
        promotion.promote(base, reason="", by=buyer.members.get(), now=today)


def test_the_family_shows_what_was_continued_and_only_to_its_org(member, model, stranger, today):
    base = Artifact.objects.create(**folder(name="Base", public=True))
    type(model.job).objects.filter(pk=model.job_id).update(base=base)
    child = again(model, today)
    grandchild = world.job(model.org, now=today, name="going on", base=child)
    theirs = world.job(stranger, now=today, name="theirs", base=base)
    page = page_of(member, child)
    for pk in (base.pk, model.pk, model.job_id, child.job_id, grandchild.pk):
        assert str(pk) in page
    seen = page_of(member, base)
    assert str(child.pk) in seen
    assert str(theirs.pk) not in seen


def test_the_family_knows_all_models_and_rows_that_a_job_read(member, model, today):
    base, third = (
        Artifact.objects.create(**folder(name=name, public=True)) for name in ("Base", "Third")
    )
    merging = world.job(model.org, now=today, name="Merged", base=base, other=model, third=third,
                        mix=model.job.dataset)  # fmt: skip
    merged = Artifact.objects.create(**folder(org=model.org, job=merging, name="Merged"))
    further = world.job(model.org, now=today, name="further", base=base, other=merged)
    for seen in (model, base, third):
        page = page_of(member, seen)
        assert page.count(reverse("model", args=[merged.pk])) == 1, "by two ways, but once"
        assert str(further.pk) in page
    page = page_of(member, merged)
    for expected in ("<dt>Other</dt>", "<dt>Third</dt>", "<dt>Mix</dt>", str(model.job_id)):
        assert expected in page
    card = member.get(reverse("model_card", args=[merged.pk])).content.decode()
    for expected in ("| Other |", "| Third |", "| Mix | pairs v1", "g CO₂ |"):
        assert expected in card


def test_going_on_from_a_model_opens_the_form_as_its_job_was(member, model):
    job = type(model.job).objects.get(pk=model.job_id)
    job.recipe, job.parameters = "lora", {"steps": 77, "rank": 5}
    job.save()
    page = member.get(reverse("new_job"), {"base": str(model.pk)}).content.decode()
    assert re.search(r'name="p-steps" value="77"', page)
    assert re.search(rf'<option value="{model.pk}" selected', page)
    assert re.search(rf'<option value="{job.dataset_id}" selected', page)


def test_going_on_keeps_what_else_the_job_read_and_where_it_ran(member, ran, model):
    job = type(model.job).objects.get(pk=model.job_id)
    teacher = Artifact.objects.create(**folder(name="Teacher", public=True))
    job.recipe, job.parameters, job.other, job.mix = "distill", {"mix": 0.2}, teacher, job.dataset
    job.level, job.trust, job.egress = 1, 1, ["wandb.ai", "huggingface.co"]
    job.secrets, job.regions = [ran.secret.name], ["eu-west"]
    job.save()
    page = member.get(reverse("new_job"), {"base": str(model.pk)}).content.decode()
    for value in (teacher.pk, "site", "verified", ran.secret.name, "eu-west"):
        assert re.search(rf'<option value="{value}" selected', page), value
    assert page.count(f'<option value="{job.dataset_id}" selected') == 2
    assert 'value="wandb.ai huggingface.co"' in page
    asked = {"base": str(model.pk), "regions": ["us-east"]}
    said = member.get(reverse("new_job"), asked).content.decode()
    assert '<option value="us-east" selected' in said
    assert '<option value="eu-west" selected' not in said


def test_an_adapter_says_what_can_be_done_with_it(member, model):
    model.manifest = [{"path": "adapter_config.json", "bytes": 1, "sha256": "0" * 64}]
    model.save()
    page = page_of(member, model)
    assert "This is an adapter" in page
    assert "Continue from this" not in page  # nobody knows to what

    model.job.base = Artifact.objects.create(**folder(manifest=WHOLE, public=True))
    model.job.save()
    assert "Continue from this" in page_of(member, model)


def test_the_card_says_what_the_run_took_and_leaves_the_manifest_alone(member, api, model):
    answer = member.get(reverse("model_card", args=[model.pk]))
    text = answer.content.decode()
    assert answer.headers["Content-Type"].startswith("text/markdown")
    for expected in ("| Cost | $", "kWh", "| Leases |", "| poems | loss", "pairs v1", model.sha256):
        assert expected in text
    said = api.get(f"/api/v1/artifacts/{model.pk}/model/").json()
    assert said["card"] == text
    assert [row["name"] for row in said["measured"]] == ["target", "poems"]


def test_promoting_by_the_api_is_the_same(api, forgetful):
    path = f"/api/v1/artifacts/{forgetful.pk}/promote/"
    refused = api.post(path, {}, "application/json")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    done = api.post(path, {"reason": "still good"}, "application/json")
    assert (done.status_code, done.json()["state"]) == (200, "current")
