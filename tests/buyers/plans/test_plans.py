"""What a buyer asks for is checked before it costs anything."""

from datetime import timedelta

import pytest

from buyers.models import Artifact, Dataset, Job
from marketplace.core import specs
from marketplace.core.errors import Invalid, NotEnoughMoney
from marketplace.core.money import MICRO
from scheduler import jobs
from tests import world
from tests.buyers.plans.conftest import folder

pytestmark = pytest.mark.django_db


def test_a_plan_fills_in_what_was_left_open(plan, base, pairs):
    found = plan(parameters={"steps": "16"})
    assert (found.base, found.dataset, found.script) == (base, pairs, None)
    assert found.parameters["steps"] == 16
    assert found.parameters["rank"] == 16
    assert found.memory_bytes > 0
    assert found.bytes_in == 40
    assert found.seconds_on("h100-sxm") > 0


def test_rows_are_about_as_long_as_their_bytes_say(plan, base, pairs):
    assert plan().row_tokens is None, "nobody has counted them"
    # The demo's pairs, as measured: 135 bytes are 60 tokens in the chat's format.
    pairs.manifest = [{"path": "train.jsonl", "bytes": 135 * 3768, "sha256": "0" * 64},
                      {"path": "heldout.jsonl", "bytes": 0, "sha256": "0" * 64}]  # fmt: skip
    pairs.rows = 3768
    pairs.save()
    assert plan().row_tokens == pytest.approx(60, abs=1)


def test_memory_that_the_buyer_knows_is_taken_as_it_is(plan, base, pairs):
    assert plan(memory_gib=3).memory_bytes == 3 * 2**30


@pytest.mark.parametrize(
    ("asked", "field", "why"),
    [
        ({"recipe": "alchemy"}, "recipe", "there are "),
        ({"parameters": {"stepz": 3}}, "parameters.stepz", "did you mean 'steps'"),
        ({"parameters": {"steps": 0}}, "parameters.steps", "whole number from 1"),
        ({"parameters": {"rank": "NaN"}}, "parameters.rank", "whole number"),
        ({"base": "huge"}, "base", "no base 'huge' that you may use; there are tiny"),
        ({"base": None}, "base", "needs a base"),
        ({"dataset": "nothing"}, "dataset", "no dataset 'nothing'"),
        ({"dataset": "pairs@2"}, "dataset", "no dataset 'pairs@2'"),
        ({"dataset": "pairs@two"}, "dataset", "a version is a number"),
        ({"script": "code"}, "script", "reads no script"),
        ({"gpus": 2, "recipe": "prompt"}, "gpus", "runs on one GPU"),
        ({"gpus": 2, "parameters": {"batch_size": 1}}, "gpus", "raise batch_size"),
        ({"gpus": 3, "recipe": "dpo"}, "gpus", "can't be cut into even parts for 3 GPUs"),
        ({"gpus": 2, "level": "any"}, "level", "several sites can't be run yet"),
        ({"gpus": 2, "gpus_max": 4, "recipe": "dpo"}, "gpus_max", "even parts for 3 GPUs"),
        ({"gpus": 2, "gpus_max": 1}, "gpus_max", "2"),
        ({"gpus": 2, "gpus_max": 200}, "gpus_max", "at most 128"),
        ({"gpus": 200}, "gpus", "at most 128"),
        ({"environment": "f" * 64}, "environment", "no node offers"),
    ],
)
def test_what_cannot_run_is_refused_with_its_field(plan, base, pairs, code, asked, field, why):
    with pytest.raises(Invalid) as refused:
        plan(**asked)
    assert refused.value.field == field
    assert why in str(refused.value)


def test_a_deadline_in_the_past_is_refused(plan, base, pairs, now):
    with pytest.raises(Invalid, match="already passed"):
        plan(deadline=(now - timedelta(seconds=1)).isoformat())
    assert plan(deadline=(now + timedelta(hours=1)).isoformat())


def test_an_environment_that_a_node_offers_may_be_demanded(plan, base, pairs, now):
    world.agent(world.org(now=now), now=now, environment="f" * 64)
    assert plan(environment="f" * 64)


def test_a_dataset_is_found_by_its_id_its_name_or_a_version_of_it(plan, base, pairs, org, now):
    newer = folder(
        Dataset, "train.jsonl", "heldout.jsonl", now=now, org=org, name="pairs", version=2
    )
    folder(Dataset, "train.jsonl", now=now, org=org, name="pairs", version=3, committed_at=None)
    assert plan().dataset == newer
    assert plan(dataset="pairs@1").dataset == pairs
    assert plan(dataset=str(pairs.pk)).dataset == pairs


def test_what_is_another_orgs_looks_like_nothing(plan, base, pairs, now):
    other = world.org(now=now)
    theirs = folder(Dataset, "train.jsonl", now=now, org=other, name="theirs", version=1)
    model = folder(Artifact, "config.json", now=now, org=other, name="model")
    for reference in ("theirs", str(theirs.pk)):
        with pytest.raises(Invalid, match="you have no dataset"):
            plan(dataset=reference)
    for reference in ("model", str(model.pk)):
        with pytest.raises(Invalid, match="there is no base"):
            plan(base=reference)


def test_training_without_the_files_it_reads_is_refused(plan, base, org, now):
    folder(Dataset, "data.csv", now=now, org=org, name="table", version=1)
    folder(Dataset, "train.jsonl", now=now, org=org, name="half", version=1)
    with pytest.raises(Invalid, match=r"has no train.jsonl"):
        plan(dataset="table")
    with pytest.raises(Invalid, match=r"has no heldout.jsonl.*evaluate_samples"):
        plan(dataset="half")
    assert plan(dataset="half", parameters={"evaluate_samples": 0, "answers": 0})


def test_a_model_of_ones_own_has_the_size_of_what_it_was_made_from(plan, base, pairs, org, now):
    made_by = world.job(org, now=now, base=base)
    folder(Artifact, "config.json", "model.safetensors", now=now, org=org, name="mine", job=made_by)
    assert plan(base="mine").shape == plan().shape
    folder(Artifact, "config.json", "model.safetensors", now=now, org=org, name="unknown")
    with pytest.raises(Invalid, match="size of this base is not known"):
        plan(base="unknown")
    with pytest.raises(Invalid, match="size of this base is not known"):
        plan(base="unknown", memory_gib=4)
    assert plan(base="unknown", memory_gib=4, hours=1).seconds_on("h100-sxm") == 3600


def script(plan, **asked):
    wanted = {
        "recipe": "script", "base": None, "dataset": None, "script": "code", "memory_gib": 2,
        "hours": 1, "parameters": {"entry": "main.py"}, **asked,
    }  # fmt: skip
    return plan(**wanted)


def test_a_script_runs_in_the_nodes_environment_for_as_long_as_its_buyer_thinks(plan, code):
    found = script(plan)
    assert found.script == code
    assert found.seconds_on("anything") == 3600
    command = ["bash", "run.sh", "--fast"]
    assert script(plan, parameters={"command": command}).parameters["command"] == command


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"parameters": {"entry": "other.py"}}, "parameters.entry"),
        ({"parameters": {"entry": "../main.py"}}, "parameters.entry"),
        ({"parameters": {}}, "parameters.entry"),
        ({"memory_gib": None}, "memory_gib"),
        ({"hours": None}, "hours"),
        ({"script": None}, "script"),
    ],
)
def test_a_script_says_what_it_needs(plan, code, asked, field):
    with pytest.raises(Invalid) as refused:
        script(plan, **asked)
    assert refused.value.field == field


def test_packages_that_nobody_resolved_are_never_passed_over(plan, org, now):
    folder(Dataset, "main.py", "requirements.txt", now=now, org=org, name="needy", version=1)
    with pytest.raises(Invalid, match="not been resolved"):
        script(plan, script="needy")
    assert script(plan, script="needy", packages="none").packages is None


@pytest.mark.parametrize(
    "amount",
    ["0", "-1", "NaN", "Infinity", "1e9", "1000001", "0.0000001", True, 2.5, "", None, "five",
     [], "1_0", "١"],
)  # fmt: skip
@pytest.mark.parametrize("field", ["budget", "limit"])
def test_an_amount_that_is_none_is_refused(amount, field):
    raw = {"recipe": "lora", "budget": "5", "limit": "1", field: amount}
    if field == "limit" and amount in ("", None):
        assert specs.parse(raw).limit_micros == 0
        return
    with pytest.raises(Invalid) as refused:
        specs.parse(raw)
    assert refused.value.field == field


@pytest.fixture
def bid(org, base, pairs, now):
    def bid(**asked):
        wanted = {"recipe": "lora", "base": "tiny", "dataset": "pairs", "budget": "5", **asked}
        by = org.members.get()
        return jobs.submit(org, specs.parse(wanted), by=by, now=now)

    return bid


def test_a_bid_waits_with_its_limits(bid, now):
    world.agent(world.org(now=now), now=now)
    job = bid(limit="2", name="first", seed=7)
    job.refresh_from_db()
    assert (job.state, job.order, job.name, job.seed) == ("queued", "bid", "first", 7)
    assert job.limits == {"h100-sxm": 2 * MICRO}
    assert job.budget_micros == 5 * MICRO
    assert job.total_steps == 100


def test_a_bid_into_an_empty_market_is_refused(bid):
    with pytest.raises(Invalid, match="no GPU class that you accept"):
        bid()


def test_a_budget_that_pays_for_no_checkpoint_is_refused(bid, now):
    world.agent(world.org(now=now), now=now)
    with pytest.raises(Invalid, match="does not even pay for saving") as refused:
        bid(budget="0.01", limit="36")
    assert refused.value.field == "budget"
    assert not Job.objects.exists()


def test_too_little_money_is_refused_and_leaves_no_job(base, now):
    poor = world.org(now=now, wallet=1000)
    folder(Dataset, "train.jsonl", "heldout.jsonl", now=now, org=poor, name="pairs", version=1)
    world.agent(world.org(now=now), now=now)
    asked = specs.parse({"recipe": "lora", "base": "tiny", "dataset": "pairs", "budget": "5"})
    with pytest.raises(NotEnoughMoney, match="top it up"):
        jobs.submit(poor, asked, by=poor.members.get(), now=now)
    assert not Job.objects.exists()
