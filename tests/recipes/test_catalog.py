"""Parameters hold their bounds, whoever sends them, and refusals say what would do."""

import subprocess
import sys

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.recipes import catalog
from agent.recipes.catalog import LoraParameters, ParameterError, ScriptParameters


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
        ("lora", {"learning_rate": "inf"}, "learning_rate", "above 0, at most 1"),
        ("lora", {"learning_rate": 0}, "learning_rate", "above 0"),
        ("lora", {"learning_rate": 10**400}, "learning_rate", "above 0"),
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
        ("pretrain", {}, "recipe", "there are lora, full, script"),
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


@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_what_was_validated_validates_again(recipe: str) -> None:
    once = catalog.validate(recipe, {"steps": 7})
    assert catalog.validate(recipe, catalog.as_json(once)) == once


@pytest.mark.parametrize("recipe", catalog.names())
def test_the_schema_accepts_what_validate_returns(recipe: str) -> None:
    raw = {"entry": "train.py"} if recipe == "script" else {}
    plain = catalog.as_json(catalog.validate(recipe, raw))
    jsonschema.validate(plain, catalog.schema(recipe))
    for spec in catalog.schema(recipe)["properties"].values():
        assert spec["description"], "a form shows it"


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


def test_a_script_runs_as_its_author_would_run_it() -> None:
    found = catalog.validate("script", {"entry": "src/train.py", "args": ["--epochs", "3"]})
    assert isinstance(found, ScriptParameters)
    assert catalog.command("script", found) == [
        "python", "/job/work/src/train.py", "--epochs", "3",
    ]  # fmt: skip


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
