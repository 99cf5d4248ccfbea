"""What a job reads is there, and what its recipe reads, before anything is paid."""

from dataclasses import asdict

import pytest

from buyers.models import Artifact, Dataset
from marketplace.core.errors import Invalid
from marketplace.core.shapes import BaseShape
from scheduler import specs as sent
from tests import tiny_base, world
from tests.buyers.plans.conftest import folder

pytestmark = pytest.mark.django_db


def test_rows_of_another_kind_than_the_recipe_reads_are_refused_with_both(plan, base, pairs):
    pairs.kinds = ["preferences", "prompts"]
    pairs.save()
    with pytest.raises(Invalid, match=r"sft reads rows of answers .*pairs v1 are preferences or"):
        plan()
    pairs.kinds = ["answers", "prompts"]
    pairs.save()
    assert plan().dataset == pairs


def test_each_training_of_a_recipe_is_held_against_the_rows_that_it_reads(
    plan, base, pairs, org, now
):
    pairs.kinds = ["answers", "prompts"]
    pairs.save()
    texts = ("train.txt", "heldout.txt")
    folder(Dataset, *texts, now=now, org=org, name="books", version=1, kinds=["text"])
    stages = [{"recipe": "sft"}, {"recipe": "dpo"}]
    space = {"rank": [4, 8]}
    for asked, field in [
        ({"recipe": "chain", "parameters": {"stages": stages}}, "dataset"),
        ({"recipe": "sweep", "parameters": {"recipe": "dpo", "space": space}}, "dataset"),
        ({"recipe": "prompt", "parameters": {"method": "dpo"}}, "dataset"),
        ({"recipe": "arithmetic", "other": "tiny", "dataset": "books"}, "dataset"),
        ({"recipe": "sft", "mix": "books", "parameters": {"mix": 0.5}}, "mix"),
    ]:
        with pytest.raises(Invalid, match="reads rows of") as refused:
            plan(**asked)
        assert refused.value.field == field
    stages[1]["folder"] = "doubts"
    with pytest.raises(Invalid, match=r"has no doubts/train.jsonl"):
        plan(recipe="chain", parameters={"stages": stages})


def test_what_is_larger_than_the_booked_disk_is_refused_with_both_figures(plan, base, pairs):
    pairs.bytes = 30 * 2**30
    pairs.save()
    with pytest.raises(Invalid, match=r"30.00 GiB \(pairs v1 alone 30.00\).*books 20 GiB") as no:
        plan()
    assert no.value.field == "disk_gib"
    assert plan(disk_gib=40).dataset == pairs


SMALL = {"steps": 4, "answers": 0}


def test_files_may_be_jsonl_parquet_or_text(plan, base, org, now):
    folder(Dataset, "train.txt", "heldout.parquet", now=now, org=org, name="books", version=1)
    assert plan(recipe="continue", dataset="books").total_steps == 100
    folder(Dataset, "train.txt", "train.jsonl", now=now, org=org, name="twice", version=1)
    with pytest.raises(Invalid, match=r"both train.jsonl and train.txt; keep one"):
        plan(recipe="continue", dataset="twice")


def test_a_chain_finds_each_stages_rows(plan, base, org, now):
    stages = [
        {"recipe": "continue", "folder": "books", "parameters": SMALL},
        {"recipe": "sft", "parameters": SMALL},
    ]
    paths = ["train.jsonl", "heldout.jsonl", "books/train.txt", "books/heldout.txt"]
    folder(Dataset, *paths, now=now, org=org, name="all", version=1)
    found = plan(recipe="chain", dataset="all", parameters={"stages": stages})
    assert found.total_steps == 8
    alone = plan(recipe="sft", dataset="all", parameters=SMALL)
    assert found.seconds_on("h100-sxm") > alone.seconds_on("h100-sxm")
    assert found.memory_bytes >= alone.memory_bytes
    folder(Dataset, *paths[:3], now=now, org=org, name="less", version=1)
    with pytest.raises(Invalid, match=r"has no books/heldout.jsonl"):
        plan(recipe="chain", dataset="less", parameters={"stages": stages})


def test_a_reward_must_come_with_grpo_and_with_nothing_else(plan, base, pairs, code, org, now):
    with pytest.raises(Invalid, match="needs a script"):
        plan(recipe="grpo")
    with pytest.raises(Invalid, match=r"name a script that has reward.py"):
        plan(recipe="grpo", script="code")
    with pytest.raises(Invalid, match=r"name a script that has reward.py"):
        plan(parameters={"method": "grpo"})
    with pytest.raises(Invalid, match="reads no script, but by the method grpo"):
        plan(script="code")
    folder(Dataset, "reward.py", now=now, org=org, name="judge", version=1)
    assert plan(recipe="grpo", script="judge").script.name == "judge"
    assert plan(script="judge", parameters={"method": "grpo"}).script.name == "judge"


def test_what_is_blended_in_is_named_and_used(plan, base, pairs, org, now):
    folder(Dataset, "train.jsonl", now=now, org=org, name="old", version=1)
    folder(Dataset, "heldout.jsonl", now=now, org=org, name="asked", version=1)
    with pytest.raises(Invalid, match=r"asked v1 has no train.jsonl") as refused:
        plan(mix="asked", parameters={"mix": 0.2})
    assert refused.value.field == "mix"
    with pytest.raises(Invalid, match="give its share as the parameter mix") as refused:
        plan(mix="old")
    assert refused.value.field == "mix"
    with pytest.raises(Invalid, match="name it as the input mix"):
        plan(parameters={"mix": 0.2})
    found = plan(mix="old", parameters={"mix": 0.2})
    assert found.mix.name == "old"
    assert found.bytes_in == plan().bytes_in + 10


def test_a_second_model_is_found_and_whole(plan, base, pairs, org, now):
    with pytest.raises(Invalid, match="needs an other: the teacher"):
        plan(recipe="distill")
    folder(Artifact, "README.md", now=now, org=org, name="empty")
    with pytest.raises(Invalid, match="has no weights"):
        plan(recipe="distill", other="empty")
    folder(Artifact, "adapter_config.json", "adapter_model.safetensors", now=now, org=org, name="a")
    for asked, why in [("a", "no whole model"), ("nobody", "there is no base 'nobody'")]:
        with pytest.raises(Invalid, match=why) as refused:
            plan(recipe="distill", other=asked)
        assert refused.value.field == "other"
    found = plan(recipe="arithmetic", other="a", dataset=None)
    assert (found.other.name, found.third, found.total_steps) == ("a", None, 0)
    assert found.memory_bytes > plan(recipe="prompt").memory_bytes


def test_a_licence_is_asked_for_where_its_model_is_named(plan, base, pairs, org, now):
    folder(Artifact, "config.json", "model.safetensors", now=now, org=org, name="gated",
           shape=base.shape, source="hub:a/b@1", licence="llama3")  # fmt: skip
    with pytest.raises(Invalid, match="has not accepted the licence of gated") as refused:
        plan(recipe="distill", other="gated")
    assert refused.value.field == "other"


def test_a_third_model_and_its_weight_come_together(plan, base, pairs):
    two = {"recipe": "arithmetic", "other": "tiny"}
    for asked in ({"third": "tiny"}, {"parameters": {"second": -1}}):
        with pytest.raises(Invalid) as refused:
            plan(**two, **asked)
        assert refused.value.field == "third"
    assert plan(**two, third="tiny", parameters={"second": -1}).third == base


def test_a_large_teacher_is_counted_and_one_of_unknown_size_asked_about(
    plan, base, pairs, org, now
):
    large = asdict(BaseShape.from_config({**tiny_base.CONFIG, "intermediate_size": 200_000}))
    whole = ("config.json", "model.safetensors")
    folder(Artifact, *whole, now=now, org=org, name="large", shape=large)
    alike = plan(recipe="distill", other="tiny")
    assert plan(recipe="distill", other="large").memory_bytes > alike.memory_bytes + 10**8
    folder(Artifact, *whole, now=now, org=org, name="unknown")
    with pytest.raises(Invalid, match="size of the teacher is not known") as refused:
        plan(recipe="distill", other="unknown")
    assert refused.value.field == "memory_gib"
    assert plan(recipe="distill", other="unknown", memory_gib=4, hours=1)


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [
        ("prompt", {"shots": 2}),
        ("sft", {"weights": "full"}),
        ("dpo", {"weights": "full"}),
        ("reward", {}),
        ("sweep", {"space": {"rank": [4, 8]}}),
    ],
)
def test_every_rung_can_be_quoted(plan, base, pairs, recipe, parameters):
    found = plan(recipe=recipe, parameters=parameters)
    assert found.memory_bytes > 10**8
    assert 0 < found.seconds_on("h100-sxm") < 10**6


def test_nodes_are_sent_all_that_a_job_reads(base, pairs, org, now):
    job = world.job(org, now=now, base=base)
    job.mix, job.other = pairs, base
    assert [name for name, _, _ in sent.inputs_of(job)] == ["base", "other", "mix"]
