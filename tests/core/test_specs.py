"""What a buyer asks for is checked at the boundary, by name."""

import json

import pytest

from marketplace.core.errors import Invalid
from marketplace.core.hardware import Level, Trust
from marketplace.core.specs import GIB, JobRequest, parse

LEAST = {"recipe": "lora", "budget": "5"}


def test_a_request_needs_a_recipe_and_a_budget():
    request = parse(LEAST)
    assert (request.recipe, request.budget_micros, request.name) == ("lora", 5_000_000, "lora")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recipe", ""), ("recipe", 3), ("name", "x" * 101), ("name", "a\nb"), ("budget", "0"),
        ("budget", "-5"), ("budget", "NaN"), ("budget", 5.5), ("limit", "0"), ("limit", "1e9"),
        ("limit", "1001"), ("limit", True), ("gpus", 0), ("gpus", 1.5), ("gpus", "many"),
        ("gpus", float("nan")), ("gpus", True), ("gpus_max", 0), ("memory_gib", -1),
        ("memory_gib", float("inf")), ("level", "moon"), ("trust", 9), ("trust", True),
        ("regions", "eu-west"), ("regions", ["atlantis"]), ("kappa", 2), ("parameters", []),
        ("parameters", "x"), ("limits", {"h100-sxm": "0"}), ("deadline", "tomorrow"),
        ("deadline", "2026-12-01T18:00:00"), ("hours", -1), ("seed", -1), ("colour", "red"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_the_fields_name(field, value):
    with pytest.raises(Invalid) as refused:
        parse({**LEAST, field: value})
    assert field in refused.value.field


def test_names_and_numbers_mean_the_same():
    request = parse({**LEAST, "level": "site", "trust": 1, "memory_gib": "24", "gpus": "2"})
    assert (request.level, request.trust) == (Level.SITE, Trust.VERIFIED)
    assert (request.memory_bytes, request.gpus_min, request.gpus_max) == (24 * GIB, 2, 2)


def test_a_request_survives_being_kept_as_json():
    request = parse(
        {
            **LEAST,
            "parameters": {"steps": 3},
            "limits": {"h100-sxm": "2.50"},
            "regions": ["eu-west", "eu-west"],
            "deadline": "2026-12-01T18:00:00+00:00",
        }
    )
    assert JobRequest.from_json(json.loads(json.dumps(request.as_json()))) == request


def test_a_job_lists_whom_it_must_reach():
    asked = parse({**LEAST, "egress": ["HuggingFace.co", ".wandb.ai", "pypi.example:8443"]})
    assert asked.egress == ("huggingface.co", ".wandb.ai", "pypi.example:8443")
    assert parse({**LEAST, "egress": "a.example, b.example"}).egress == ("a.example", "b.example")
    assert JobRequest.from_json(asked.as_json()) == asked


@pytest.mark.parametrize(
    "names",
    [["*"], ["localhost"], ["10.0.0.1"], ["169.254.169.254:80"], ["http://a.example"], [7],
     ["a.example:99999"], ["a.example:25"], ["a b.example"], [f"n{n}.example" for n in range(33)], 5],
)  # fmt: skip
def test_what_is_no_name_of_the_internet_is_refused(names):
    with pytest.raises(Invalid) as refused:
        parse({**LEAST, "egress": names})
    assert refused.value.field == "egress"
