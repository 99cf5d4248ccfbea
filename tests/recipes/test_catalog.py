"""Parameters hold their bounds, whoever sends them, and refusals say what would do."""

import subprocess
import sys

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.recipes import catalog
from agent.recipes.catalog import ParameterError
from agent.recipes.parameters import (
    FineTuning,
    LoraParameters,
    ScriptParameters,
    SweepParameters,
    why_not_on,
)

# What has no default.
NEEDED: dict[str, dict[str, object]] = {
    "script": {"entry": "train.py"},
    "chain": {"stages": [{"recipe": "sft"}, {"recipe": "dpo", "parameters": {"steps": 7}}]},
    "sweep": {"space": {"rank": [4, 8], "learning_rate": ["1e-3", 1e-4]}, "rungs": 2},
}


@pytest.mark.parametrize(
    ("recipe", "raw", "field", "says"),
    [
        ("lora", {"steps": 0}, "steps", "from 1 to 1,000,000, not 0"),
        ("lora", {"steps": True}, "steps", "whole number"),
        ("lora", {"steps": "many"}, "steps", "not 'many'"),
        ("lora", {"steps": None}, "steps", "whole number"),
        ("lora", {"steps": 10**400}, "steps", "whole number"),
        ("lora", {"steps": 2.5}, "steps", "whole number"),
        ("lora", {"learning_rate": float("nan")}, "learning_rate", "not nan"),
        ("lora", {"learning_rate": "inf"}, "learning_rate", "from 0 to 1"),
        ("lora", {"learning_rate": -1}, "learning_rate", "from 0 to 1"),
        ("lora", {"learning_rate": 10**400}, "learning_rate", "from 0 to 1"),
        ("lora", {"max_grad_norm": 0}, "max_grad_norm", "above 0, at most 1000"),
        ("lora", {"stepz": 1}, "stepz", "did you mean 'steps'"),
        ("full", {"rank": 8}, "rank", "full has no parameter 'rank'"),
        ("lora", {"precision": "fp8"}, "precision", "one of auto, bf16, fp32"),
        ("lora", {"targets": "q_proj"}, "targets", "a list of"),
        ("lora", {"targets": []}, "targets", "a list of"),
        ("lora", {"targets": ["../x"]}, "targets", "a list of"),
        ("lora", {"targets": [True]}, "targets", "a list of"),
        ("lora", {"targets": ["all-linear", "q_proj"]}, "targets", "stands alone"),
        ("lora", {"targets": ["q_proj", "q_proj"]}, "targets", "twice"),
        ("script", {}, "entry", "entry is missing"),
        ("script", {"entry": "../train.py"}, "entry", "inside the project"),
        ("script", {"entry": "/etc/train.py"}, "entry", "inside the project"),
        ("script", {"entry": "a/./train.py"}, "entry", "inside the project"),
        ("script", {"entry": "train.sh"}, "entry", ".py file"),
        ("script", {"entry": "tr\nain.py"}, "entry", "inside the project"),
        ("script", {"entry": "train.py", "args": ["a\0b"]}, "args", "NUL"),
        ("script", {"entry": "train.py", "args": [1]}, "args", "a list of"),
        ("script", {"entry": "train.py", "command": ["sh"]}, "entry", "not both"),
        ("script", {"command": ["sh"], "args": ["x"]}, "args", "add them to command"),
        ("script", {"command": ["sh", "a\0b"]}, "command", "NUL"),
        ("sft", {"method": "dpo"}, "method", "sft has no parameter 'method'"),
        ("sft", {"batch_size": 2, "accumulate": 3}, "accumulate", "raise batch_size"),
        ("dpo", {"batch_size": 8, "accumulate": 3}, "accumulate", "even parts for one GPU"),
        ("grpo", {"batch_size": 6}, "batch_size", "a multiple of generations"),
        ("lora", {"method": "grpo", "batch_size": 6}, "batch_size", "a multiple of generations"),
        ("grpo", {"completion_length": 512}, "completion_length", "below max_length"),
        ("chain", {}, "stages", "stages is missing"),
        ("chain", {"stages": []}, "stages", "a list of at most 8"),
        ("chain", {"stages": [{"recipe": "sft", "x": 1}]}, "stages", "a list of at most 8"),
        ("chain", {"stages": [{"recipe": "reward"}]}, "stages", "no model to go on from"),
        ("chain", {"stages": [{"recipe": "distill"}]}, "stages", "needs a second model"),
        ("chain", {"stages": [{"recipe": "dpo", "parameters": {"beta": -1}}]}, "beta", "from 0"),
        ("sweep", {"space": {"rank": [8, 0]}}, "space", "space: rank must be a whole number"),
        ("sweep", {"space": {"steps": [8, 9]}}, "space", "the same for all trials"),
        ("sweep", {"space": {"mix": [0.1, 0.2]}}, "space", "the same for all trials"),
        ("prompt", {"shots": 2, "method": "dpo"}, "shots", "leave it out for dpo"),
        ("pretrain", {}, "recipe", "there are prompt, sft, dpo"),
    ],
)
def test_a_bad_parameter_is_named_with_what_would_do(
    recipe: str, raw: dict[str, object], field: str, says: str
) -> None:
    with pytest.raises(ParameterError) as refusal:
        catalog.validate(recipe, raw)
    assert refusal.value.field == field
    assert says in str(refusal.value)


def test_numbers_may_come_as_text_as_forms_send_them() -> None:
    found = catalog.validate("lora", {"steps": "20", "learning_rate": "1e-3"})
    assert isinstance(found, LoraParameters)
    assert (found.steps, found.learning_rate) == (20, 1e-3)


@pytest.mark.parametrize("recipe", catalog.names())
def test_what_was_validated_validates_again(recipe: str) -> None:
    once = catalog.validate(recipe, NEEDED.get(recipe, {}))
    assert catalog.validate(recipe, catalog.as_json(once)) == once


@pytest.mark.parametrize("recipe", catalog.names())
def test_the_schema_accepts_what_validate_returns(recipe: str) -> None:
    plain = catalog.as_json(catalog.validate(recipe, NEEDED.get(recipe, {})))
    jsonschema.validate(plain, catalog.schema(recipe))
    for spec in catalog.schema(recipe)["properties"].values():
        assert spec["description"], "a form shows it"


# Making the first examples is slow where many tests share the machine.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*LoraParameters.__struct_fields__, "other"]),
        st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none(),
                  st.lists(st.text(), max_size=3)),
    )
)  # fmt: skip
def test_anything_else_either_fits_the_schema_or_is_refused(raw: dict[str, object]) -> None:
    try:
        found = catalog.validate("lora", raw)
    except ParameterError:
        return
    jsonschema.validate(catalog.as_json(found), catalog.schema("lora"))


@pytest.mark.parametrize(
    ("recipe", "raw", "gpus", "fits"),
    [
        ("sft", {"batch_size": 8}, 3, True),
        ("sft", {"batch_size": 8, "accumulate": 2}, 3, True),
        ("sft", {"batch_size": 8, "accumulate": 3}, 3, False),
        ("sft", {"batch_size": 8}, 9, False),
        ("dpo", {"batch_size": 8}, 3, False),
        ("reward", {"batch_size": 12, "accumulate": 2}, 3, True),
        ("lora", {"batch_size": 8, "method": "dpo"}, 3, False),
        ("grpo", {"batch_size": 8, "generations": 4}, 2, True),
        ("grpo", {"batch_size": 8, "generations": 4}, 4, False),
        ("grpo", {"batch_size": 12, "generations": 4, "accumulate": 3}, 3, False),
    ],
)
def test_whether_a_step_can_be_cut_up_for_a_gang_is_known_beforehand(
    recipe: str, raw: dict[str, object], gpus: int, fits: bool
) -> None:
    found = catalog.validate(recipe, raw)
    assert isinstance(found, FineTuning)
    assert bool(why_not_on(found, gpus)) is not fits


def test_a_script_runs_as_its_author_would_run_it() -> None:
    found = catalog.validate("script", {"entry": "src/train.py", "args": ["--epochs", "3"]})
    assert isinstance(found, ScriptParameters)
    assert catalog.command("script", found) == [
        "python", "/job/work/src/train.py", "--epochs", "3",
    ]  # fmt: skip


def test_a_command_runs_in_the_projects_copy_word_for_word() -> None:
    found = catalog.validate("script", {"command": '["python", "-m", "pkg.train", "--x", "$HOME"]'})
    assert catalog.command("script", found) == ["python", "-m", "pkg.train", "--x", "$HOME"]


def test_a_rate_that_nobody_gave_suits_the_method_and_the_weights() -> None:
    rates = {
        (recipe, weights): catalog.validate(recipe, {"weights": weights}).learning_rate  # type: ignore[union-attr]
        for recipe in ("sft", "dpo")
        for weights in ("lora", "full")
    }
    assert rates["sft", "lora"] > rates["sft", "full"] > rates["dpo", "full"] > 0
    assert catalog.validate("sft", {"learning_rate": 0.1}).learning_rate == 0.1  # type: ignore[union-attr]


def test_steps_are_counted_over_all_stages_and_trials() -> None:
    chain = catalog.validate("chain", NEEDED["chain"])
    assert catalog.total_steps(chain) == 107
    sweep = catalog.validate("sweep", NEEDED["sweep"])
    assert isinstance(sweep, SweepParameters)
    assert catalog.sweep_rungs(sweep) == [(4, 50), (2, 50)]
    assert catalog.total_steps(sweep) == 300
    trials = catalog.sweep_trials(sweep, seed=3)
    assert trials == catalog.sweep_trials(sweep, seed=3)
    assert len({(trial["rank"], trial["learning_rate"]) for trial in trials}) == 4
    assert catalog.total_steps(catalog.validate("script", NEEDED["script"])) == 0


def test_a_sweeps_space_holds_numbers_however_they_were_sent() -> None:
    sweep = catalog.validate("sweep", {"space": {"rank": ["4", 8], "learning_rate": ["1e-3"]}})
    assert isinstance(sweep, SweepParameters)
    assert sweep.space == {"rank": [4, 8], "learning_rate": [1e-3]}


def test_a_recipe_of_ours_runs_from_its_job_file() -> None:
    argv = catalog.command("lora", catalog.validate("lora", {}))
    assert argv == ["python", "-m", "agent.recipes", "/job/job.json"]
    assert [entry.name for entry in catalog.inputs("lora") if entry.required] == ["base", "dataset"]


def test_the_catalogue_needs_nothing_heavy() -> None:
    """The site and the daemon import it; neither has torch."""
    blocked = "torch transformers peft numpy django"
    program = (
        "import sys\n"
        f"for name in {blocked.split()!r}: sys.modules[name] = None\n"
        "import agent.recipes.catalog"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
