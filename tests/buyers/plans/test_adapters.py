"""Jobs that start from an adapter: what they read, and which of them can't."""

import pytest

from buyers import modelview
from buyers.models import Artifact
from marketplace.core.errors import Invalid
from scheduler import specs
from tests import world
from tests.buyers.plans.conftest import folder

pytestmark = pytest.mark.django_db

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def adapter(base, org, now):
    def adapter(name="mine", **job):
        made_by = world.job(org, now=now, **{"base": base, "recipe": "lora", **job})
        return folder(Artifact, *ADAPTER, now=now, org=org, name=name, job=made_by)

    return adapter


def named(job):
    return [(name, str(folder)) for name, folder, _ in specs.inputs_of(job)]


def test_an_adapter_comes_with_the_model_that_it_goes_with(plan, base, pairs, org, adapter, now):
    first = adapter()
    second = adapter("more", base=first)
    for start in (first, second):
        found = plan(base=start.name)
        assert found.shape == plan().shape
        assert found.bytes_in == plan().bytes_in + 20
        job = world.job(org, now=now, base=start, recipe="dpo")
        assert named(job) == [("base", "tiny"), ("adapter", start.name)]


def test_a_script_gets_the_adapter_that_it_named(org, adapter, now):
    job = world.job(org, now=now, base=adapter(), recipe="script")
    assert named(job) == [("base", "mine")]


def test_what_starts_from_whole_models_says_how_to_come_by_one(plan, base, pairs, adapter, org):
    adapter()
    for asked in ({"recipe": "reward"}, {"recipe": "arithmetic", "other": "mine", "dataset": None}):
        with pytest.raises(
            Invalid, match=r"starts from whole models only: take tiny, or"
        ) as refused:
            plan(base="mine", **asked)
        assert refused.value.field == "base"


@pytest.mark.parametrize("job", [{"recipe": "reward"}, {"parameters": {"method": "reward"}}])
def test_an_adapter_that_scores_is_no_start(plan, base, pairs, adapter, job, org, now):
    scores = adapter(**job)
    with pytest.raises(Invalid, match="an adapter that scores"):
        plan(base="mine")
    assert not modelview.look(scores, org).may_continue


def test_an_adapter_of_an_unknown_model_is_no_start(plan, pairs, org, now):
    folder(Artifact, *ADAPTER, now=now, org=org, name="found")
    with pytest.raises(Invalid, match="no model that training can start from"):
        plan(base="found")
