"""Estimates hold against what was measured, grow with what they should, and say when they can't."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.recipes import catalog
from marketplace.core.estimates import class_tflops, estimate
from marketplace.core.shapes import BaseShape, trainings
from tests import tiny_base

SMOLLM2 = BaseShape.from_config(
    {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
)
TINY = BaseShape.from_config(tiny_base.CONFIG)


def parameters(recipe: str, **raw: object) -> Mapping[str, object]:
    return catalog.as_json(catalog.validate(recipe, raw))


def test_a_bases_weights_are_counted_from_its_config() -> None:
    assert SMOLLM2.parameters == 134_515_008
    assert TINY.parameters == sum(weights.size for weights in tiny_base.weights().values())


def test_a_config_without_sizes_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="hidden_size"):
        BaseShape.from_config({"vocab_size": 10})
    with pytest.raises(ValueError, match="vocab_size"):
        BaseShape.from_config({**tiny_base.CONFIG, "vocab_size": "many"})


@given(
    recipe=st.sampled_from(["lora", "full"]),
    batch_size=st.integers(1, 511),
    max_length=st.integers(16, 4096),
    steps=st.integers(1, 10_000),
)
def test_more_of_anything_never_takes_less(
    recipe: str, batch_size: int, max_length: int, steps: int
) -> None:
    less = parameters(recipe, batch_size=batch_size, max_length=max_length, steps=steps)
    more = parameters(recipe, batch_size=batch_size + 1, max_length=max_length + 1, steps=steps + 1)
    small, large = (estimate(recipe, p, SMOLLM2, tflops=0.1) for p in (less, more))
    assert small.flops < large.flops
    assert small.seconds < large.seconds
    assert 0 < small.seconds_low < small.seconds < small.seconds_high


def test_a_faster_device_saves_arithmetic_but_not_the_start() -> None:
    wanted = parameters("lora", steps=1000)
    slow, fast = (estimate("lora", wanted, SMOLLM2, tflops=t).seconds for t in (0.1, 1.0))
    assert slow / 10 < fast < slow


def test_knowing_the_rows_narrows_the_range() -> None:
    wanted = parameters("lora", max_length=128)
    blind = estimate("lora", wanted, SMOLLM2, tflops=0.1)
    known = estimate("lora", wanted, SMOLLM2, tflops=0.1, row_tokens=58)
    assert known.seconds_high / known.seconds_low < blind.seconds_high / blind.seconds_low


def test_the_demos_job_takes_what_it_took() -> None:
    """66 s on one core of 0.08 TFLOP/s, 16 steps of batch 8."""
    wanted = parameters(
        "lora", steps=16, batch_size=8, max_length=128, evaluate_samples=48, answer_tokens=40
    )
    found = estimate("lora", wanted, SMOLLM2, tflops=0.08)
    assert found.seconds_low < 66 < found.seconds_high
    assert found.seconds == pytest.approx(66, rel=0.25)


def test_a_script_is_for_its_buyer_to_estimate() -> None:
    with pytest.raises(ValueError, match="buyer"):
        estimate("script", {"entry": "train.py"}, None, tflops=1)


@pytest.mark.parametrize("tflops", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(tflops: float) -> None:
    with pytest.raises(ValueError, match="TFLOP/s"):
        estimate("lora", parameters("lora"), SMOLLM2, tflops=tflops)


def test_a_sweep_takes_the_mean_of_its_combinations() -> None:
    def sweep(*sizes: int) -> float:
        space = {"batch_size": list(sizes), "learning_rate": [1e-4, 1e-3]}
        wanted = parameters("sweep", space=space, trials=4)
        return estimate("sweep", wanted, SMOLLM2, tflops=0.1).flops

    assert sweep(4, 12) == pytest.approx((sweep(4, 4) + sweep(12, 12)) / 2)


@given(trials=st.integers(2, 64), rungs=st.integers(1, 6), steps=st.integers(1, 200))
def test_a_sweep_is_charged_for_the_steps_that_it_takes(
    trials: int, rungs: int, steps: int
) -> None:
    """The agent may import nothing of ours, nor the core of the agent's: both count."""
    space = {"rank": [4, 8, 16], "dropout": [0.0, 0.1, 0.2]}
    raw = {"space": space, "trials": trials, "rungs": rungs, "parameters": {"steps": steps}}
    found = catalog.validate("sweep", raw)
    sizes = trainings("sweep", catalog.as_json(found), TINY)
    assert {one.steps for one in sizes} == {catalog.total_steps(found)}


def test_a_teacher_answers_as_slowly_as_it_is_large() -> None:
    wanted = parameters("distill", evaluate_samples=0)
    alike = estimate("distill", wanted, TINY, tflops=0.1).flops
    assert estimate("distill", wanted, TINY, tflops=0.1, teacher=TINY).flops == alike
    assert estimate("distill", wanted, TINY, tflops=0.1, teacher=SMOLLM2).flops > 10 * alike


def test_examples_are_a_second_evaluation() -> None:
    once, twice = (
        estimate("prompt", parameters("prompt", shots=shots), SMOLLM2, tflops=0.1)
        for shots in (0, 4)
    )
    assert twice.flops == 2 * once.flops


def test_arithmetic_reads_three_models_and_writes_one() -> None:
    silent = {"evaluate_samples": 0, "answers": 0}
    reads, merges = (
        estimate(recipe, parameters(recipe, **silent), SMOLLM2, tflops=100).seconds
        for recipe in ("prompt", "arithmetic")
    )
    stored = SMOLLM2.parameters * SMOLLM2.bytes_per_weight
    assert merges - reads == pytest.approx(stored * (2 / 500e6 + 1 / 200e6), rel=0.01)


def test_data_sheets_tell_classes_apart() -> None:
    assert class_tflops("h100-sxm") > class_tflops("h100-pcie") > class_tflops("l4")
    assert class_tflops("cpu-epyc-9654") < 1 < class_tflops("some-new-gpu")
