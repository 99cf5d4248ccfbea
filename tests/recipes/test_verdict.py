"""Forgetting shows as a verdict."""

import msgspec
import pytest

from agent.recipes import verdict
from agent.recipes.verdict import Evaluation, Figure, Measure, Training


@pytest.mark.parametrize(
    ("measure", "before", "after", "wanted"),
    [
        ("loss", 2.0, 2.09, "kept"),
        ("loss", 2.0, 2.11, "dropped"),
        ("loss", 2.0, 1.0, "kept"),
        ("accuracy", 0.9, 0.86, "kept"),
        ("accuracy", 0.9, 0.84, "dropped"),
        ("reward", 0.0, -0.04, "kept"),
        ("reward", -10.0, -10.6, "dropped"),
        ("loss", None, 3.0, "kept"),
    ],
)
def test_what_gets_worse_by_more_than_its_margin_was_dropped(
    measure: Measure, before: float | None, after: float, wanted: str
) -> None:
    assert verdict.judge(measure, before, after, margin=0.05) == wanted


def test_an_evaluation_names_what_was_dropped_and_comes_back_as_it_was() -> None:
    law = verdict.domain(
        "law", "loss", 0.05,
        Figure(rows=2, tokens=9, value=1.0), Figure(rows=2, tokens=9, value=2.0),
    )  # fmt: skip
    training = Training(steps=1, tokens=2, loss=3.0, seconds={})
    evaluation = Evaluation(domains=[law], answers=[], training=training)
    assert evaluation.dropped == ["law"]
    assert verdict.read(msgspec.json.encode(evaluation)) == evaluation
    with pytest.raises(ValueError, match="can't be read"):
        verdict.read(b"[]")
