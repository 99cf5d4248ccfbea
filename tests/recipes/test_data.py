"""Rows are read strictly, ordered by (seed, step, shard) alone, and learnt only where they answer."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.recipes.catalog import Exit
from agent.recipes.data import TRAIN, Encoder, Message, Order, Row, read, spread
from agent.recipes.job import RecipeError
from tests import tiny_base

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=300)


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "train.jsonl line 2"),
        ("[1]", "train.jsonl line 2"),
        ('{"prompt": 1, "completion": "x"}', "prompt"),
        ('{"prompt": "x"}', "give prompt and completion"),
        ('{"prompt": "x", "completion": ""}', "give prompt and completion"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "must end with the assistant's"),
        ('{"messages": [{"role": "user"}]}', "content"),
        ('{"prompt": "\udcff", "completion": "x"}', "line 2"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: str, says: str) -> None:
    good = '{"prompt": "x", "completion": "y"}\n'
    (tmp_path / TRAIN).write_bytes((good + line).encode("utf-8", "surrogateescape"))
    with pytest.raises(RecipeError, match=says) as refusal:
        read(tmp_path, TRAIN)
    assert refusal.value.code == Exit.INPUT


def test_an_absent_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no readable train\.jsonl"):
        read(tmp_path, TRAIN)
    (tmp_path / TRAIN).write_text("\n\n")
    with pytest.raises(RecipeError, match="no rows"):
        read(tmp_path, TRAIN)


@given(lengths=LENGTHS, batch_size=st.integers(1, 40), seed=st.integers(0, 9))
def test_an_epoch_reads_each_row_at_most_once_and_nearly_all(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    order = Order(lengths, batch_size=batch_size, seed=seed)
    size = min(batch_size, len(lengths))
    steps = len(lengths) // size
    seen = Counter(row for step in range(steps) for row in order.rows(step))
    assert set(seen.values()) == {1}
    assert len(seen) == steps * size


@given(lengths=LENGTHS, batch_size=st.integers(1, 40), step=st.integers(0, 1000))
def test_a_steps_rows_depend_on_nothing_that_came_before(
    lengths: list[int], batch_size: int, step: int
) -> None:
    fresh = Order(lengths, batch_size=batch_size, seed=3)
    used = Order(lengths, batch_size=batch_size, seed=3)
    for earlier in range(min(step, 50)):
        used.rows(earlier)
    assert fresh.rows(step) == used.rows(step)


@given(shards=st.integers(1, 7), step=st.integers(0, 30))
def test_shards_share_a_steps_rows_however_many_they_are(shards: int, step: int) -> None:
    order = Order([n % 9 for n in range(100)], batch_size=8, seed=1)
    split = [row for shard in range(shards) for row in order.rows(step, shard=shard, shards=shards)]
    assert sorted(split) == sorted(order.rows(step))


def test_batches_hold_rows_of_like_length() -> None:
    lengths = [(n * 7919) % 400 for n in range(800)]
    order = Order(lengths, batch_size=8, seed=0)
    widths = [
        max(lengths[row] for row in order.rows(step))
        - min(lengths[row] for row in order.rows(step))
        for step in range(100)
    ]
    assert sum(widths) / len(widths) < 60, "a random batch of 8 spans 311 of 400"


@given(total=st.integers(1, 500), wanted=st.integers(0, 600))
def test_the_measured_rows_spread_over_all(total: int, wanted: int) -> None:
    found = spread(total, wanted)
    assert len(set(found)) == min(total, wanted)
    assert all(0 <= row < total for row in found)
    assert not found or found[0] == 0


def test_only_the_answer_and_its_end_are_learnt(tokenizer: Any) -> None:
    found = Encoder(tokenizer, max_length=200).encode(Row(prompt="1+1", completion="is 2"))
    learnt = [i for i, wanted in zip(found.ids, found.learn, strict=True) if wanted]
    assert tokenizer.decode(learnt) == "is 2<|im_end|>"
    assert tokenizer.decode(found.ids) == (
        "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\nis 2<|im_end|>"
    )


def test_each_of_the_assistants_turns_is_learnt(tokenizer: Any) -> None:
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = Row(messages=tuple(Message(role, content) for role, content in said))
    found = Encoder(tokenizer, max_length=200).encode(row)
    learnt = [i for i, wanted in zip(found.ids, found.learn, strict=True) if wanted]
    assert tokenizer.decode(learnt) == "b<|im_end|>d<|im_end|>"
    asked = tokenizer.decode(Encoder(tokenizer, max_length=200).prompt(row))
    assert asked.endswith("<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")


def test_what_is_too_long_is_cut(tokenizer: Any) -> None:
    found = Encoder(tokenizer, max_length=20).encode(Row(prompt="x" * 50, completion="y"))
    assert len(found.ids) == 20
    assert not any(found.learn)


def test_a_base_without_a_chat_template_takes_pairs_only(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(tiny_base.write(tmp_path / "plain", chat=False))
    encoder = Encoder(plain, max_length=100)
    found = encoder.encode(Row(prompt="1+1 ", completion="is 2"))
    assert plain.decode(found.ids) == "1+1 is 2<|im_end|>"
    with pytest.raises(RecipeError, match="no chat template"):
        encoder.encode(Row(messages=(Message("user", "a"), Message("assistant", "b"))))
