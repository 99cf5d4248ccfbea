"""Memory estimates hold against what was measured on processors and on a GPU.

On processors the resident set after three steps of rows of full length (torch 2.13.0, a Zen 4
core), on the GPU `torch.cuda.max_memory_allocated` (an H200; `benchmarks/gpu.py`);
`tests/recipes/test_memory.py` measures again what a processor can tell.
"""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.recipes import catalog
from marketplace.core.memory import needed
from marketplace.core.shapes import BaseShape
from tests.core.test_estimates import SMOLLM2, TINY

LLAMA_1B = BaseShape.from_config(
    {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
)
GB = 1e9


def parameters(recipe: str, **raw: object) -> Mapping[str, object]:
    return catalog.as_json(catalog.validate(recipe, raw))


LONG = {"batch_size": 4, "max_length": 2048}
PAIRS = {"batch_size": 4, "max_length": 1024}


@pytest.mark.parametrize(
    ("base", "recipe", "raw", "allocated_gb", "used_gb"),
    [
        (SMOLLM2, "sft", LONG, 7.156, 9.138),
        (SMOLLM2, "full", LONG, 9.969, 11.778),
        (LLAMA_1B, "sft", LONG, 17.257, 18.883),
        (LLAMA_1B, "sft", {**LONG, "activations": "recompute"}, 4.447, 6.195),
        (LLAMA_1B, "full", {"batch_size": 8, "max_length": 512}, 26.990, 29.637),
        (LLAMA_1B, "continue", LONG, 17.263, 18.883),
        (LLAMA_1B, "dpo", PAIRS, 17.442, 19.034),
        (LLAMA_1B, "dpo", {**PAIRS, "max_length": 512, "weights": "full"}, 32.728, 36.560),
        (LLAMA_1B, "reward", PAIRS, 17.229, 19.223),
        (LLAMA_1B, "distill", PAIRS, 12.884, 14.611),
    ],
)
def test_memory_on_a_gpu_is_told_within_a_tenth_and_suffices(
    base: BaseShape, recipe: str, raw: Mapping[str, object], allocated_gb: float, used_gb: float
) -> None:
    """`used_gb`: what the card had less of, the context and the allocator's gaps included."""
    found = needed(recipe, parameters(recipe, precision="bf16", **raw), base)
    assert found.allocated / GB == pytest.approx(allocated_gb, rel=0.1)
    assert used_gb <= found.on("h200-sxm") / GB <= 1.12 * used_gb


@pytest.mark.parametrize(
    ("base", "recipe", "precision", "batch_size", "max_length", "measured_mb"),
    [
        (TINY, "lora", "bf16", 1, 16, 540),
        (TINY, "full", "bf16", 16, 256, 589),
        (SMOLLM2, "lora", "bf16", 1, 16, 862),
        (SMOLLM2, "lora", "bf16", 8, 128, 2392),
        (SMOLLM2, "lora", "bf16", 4, 512, 3717),
        (SMOLLM2, "lora", "fp32", 8, 128, 3204),
        (SMOLLM2, "lora", "fp32", 4, 256, 3320),
        (SMOLLM2, "full", "bf16", 4, 64, 3002),
        (SMOLLM2, "full", "bf16", 8, 128, 4019),
        (SMOLLM2, "full", "fp32", 8, 128, 4434),
    ],
)
def test_memory_suffices_and_is_not_wasted(
    base: BaseShape, recipe: str, precision: str, batch_size: int, max_length: int, measured_mb: int
) -> None:
    wanted = parameters(recipe, precision=precision, batch_size=batch_size, max_length=max_length)
    found = needed(recipe, wanted, base).on("cpu-epyc") / 1e6
    assert measured_mb <= found <= 1.2 * measured_mb


def test_adapting_every_layer_takes_more_than_adapting_attention() -> None:
    some = needed("lora", parameters("lora"), SMOLLM2)
    every = needed("lora", parameters("lora", targets=["all-linear"]), SMOLLM2)
    assert every.allocated > some.allocated


def test_making_activations_again_saves_most_of_them() -> None:
    long = {"batch_size": 8, "max_length": 2048, "precision": "bf16"}
    kept = needed("lora", parameters("lora", **long), LLAMA_1B)
    made = needed("lora", parameters("lora", activations="recompute", **long), LLAMA_1B)
    assert made.allocated < kept.allocated / 3


def test_the_gpus_of_a_gang_share_its_batch() -> None:
    wanted = parameters("sft", precision="bf16", batch_size=32)
    alone, eight = (needed("sft", wanted, SMOLLM2, world=world) for world in (1, 8))
    fourth = parameters("sft", precision="bf16", batch_size=4)
    assert eight == needed("sft", fourth, SMOLLM2)
    assert eight.allocated < alone.allocated / 3


def test_each_stage_of_zero_shards_more() -> None:
    wanted = parameters("full", precision="bf16", batch_size=1, max_length=512)
    stages = [needed("full", wanted, LLAMA_1B, world=8, zero=zero).allocated for zero in range(4)]
    assert stages == sorted(stages, reverse=True)
    # Adam's moments are 8 of the 14 bytes of each weight: stage 1 leaves an eighth of them.
    assert stages[0] - stages[1] == pytest.approx(LLAMA_1B.parameters * 8 * 7 / 8, rel=0.01)


@given(
    recipe=st.sampled_from(["lora", "full", "sft", "dpo", "reward"]),
    batch_size=st.integers(1, 511),
    max_length=st.integers(16, 4096),
)
def test_more_of_anything_never_takes_less(recipe: str, batch_size: int, max_length: int) -> None:
    less = parameters(recipe, batch_size=batch_size, max_length=max_length)
    more = parameters(recipe, batch_size=batch_size + 1, max_length=max_length + 1)
    small, large = (needed(recipe, p, SMOLLM2) for p in (less, more))
    assert small.allocated <= large.allocated
    assert small.on_gpu <= large.on_gpu
    assert small.on_cpu <= large.on_cpu


def test_a_chain_needs_what_its_largest_stage_does() -> None:
    stages = [{"recipe": "sft", "parameters": {}}, {"recipe": "full", "parameters": {}}]
    chain = parameters("chain", stages=stages)
    whole = needed("chain", chain, TINY)
    assert whole == needed("full", parameters("full"), TINY)


def test_a_sweep_needs_what_the_largest_of_its_combinations_does() -> None:
    space = {"batch_size": ["2", 32], "weights": ["lora", "full"], "learning_rate": [1e-4, 1e-3]}
    sweep = catalog.as_json(catalog.validate("sweep", {"recipe": "sft", "space": space}))
    largest = parameters("sft", batch_size=32, weights="full")
    assert needed("sweep", sweep, SMOLLM2) == needed("sft", largest, SMOLLM2)


def test_a_teacher_counts_with_its_own_size() -> None:
    wanted = parameters("distill", precision="bf16")
    alike, larger = (
        needed("distill", wanted, SMOLLM2, teacher=teacher) for teacher in (SMOLLM2, LLAMA_1B)
    )
    assert alike == needed("distill", wanted, SMOLLM2)
    more = LLAMA_1B.parameters - SMOLLM2.parameters
    assert larger.allocated - alike.allocated == pytest.approx(2 * more, rel=0.01)
