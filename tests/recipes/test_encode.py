"""Rows in tokens: learnt only where they answer, in the base's own chat format."""

from pathlib import Path
from typing import Any

import pytest

from agent.recipes.encode import Encoder
from agent.recipes.formats import Answered, Message, Preferred, Text
from agent.recipes.job import RecipeError
from tests import tiny_base


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def test_only_the_answer_and_its_end_are_learnt(tokenizer: Any) -> None:
    found = Encoder(tokenizer, max_length=200).encode(Answered(prompt="1+1", completion="is 2"))
    learnt = [i for i, wanted in zip(found.ids, found.learn, strict=True) if wanted]
    assert tokenizer.decode(learnt) == "is 2<|im_end|>"
    assert tokenizer.decode(found.ids) == (
        "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\nis 2<|im_end|>"
    )


def test_each_of_the_assistants_turns_is_learnt(tokenizer: Any) -> None:
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = Answered(messages=tuple(Message(role, content) for role, content in said))
    found = Encoder(tokenizer, max_length=200).encode(row)
    learnt = [i for i, wanted in zip(found.ids, found.learn, strict=True) if wanted]
    assert tokenizer.decode(learnt) == "b<|im_end|>d<|im_end|>"
    asked = tokenizer.decode(Encoder(tokenizer, max_length=200).prompt(row))
    assert asked.endswith("<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")


def test_what_is_too_long_is_cut(tokenizer: Any) -> None:
    found = Encoder(tokenizer, max_length=20).encode(Answered(prompt="x" * 50, completion="y"))
    assert len(found.ids) == 20
    assert not any(found.learn)


def test_a_base_without_a_chat_template_takes_pairs_only(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(tiny_base.write(tmp_path / "plain", chat=False))
    encoder = Encoder(plain, max_length=100)
    found = encoder.encode(Answered(prompt="1+1 ", completion="is 2"))
    assert plain.decode(found.ids) == "1+1 is 2<|im_end|>"
    with pytest.raises(RecipeError, match="no chat template"):
        encoder.encode(Answered(messages=(Message("user", "a"), Message("assistant", "b"))))


def test_a_preference_is_one_prompt_and_two_answers(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, max_length=200)
    pair = encoder.pair(Preferred("1+1", "is 2", "no"))
    assert tokenizer.decode(pair.prompt).endswith("1+1<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(pair.chosen) == "is 2<|im_end|>"
    assert tokenizer.decode(pair.rejected) == "no<|im_end|>"
    asked = Message("user", "1+1")
    whole = Preferred("1+1", (asked, Message("assistant", "is 2")), (Message("assistant", "no"),))
    assert encoder.pair(whole) == pair, "answers may come as conversations"


def test_a_text_ends_with_the_bases_end_mark(tokenizer: Any) -> None:
    found = Encoder(tokenizer, max_length=200).encode(Text("abc"))
    assert tokenizer.decode(found.ids) == "abc<|im_end|>"
    assert all(found.learn)


def test_examples_stand_before_the_question_and_are_not_learnt(tokenizer: Any) -> None:
    shown = [Answered("1+1", "is 2")]
    encoder = Encoder(tokenizer, max_length=300, shown=shown)
    row = Answered("2+2", "is 4")
    found = encoder.encode(row)
    learnt = [i for i, wanted in zip(found.ids, found.learn, strict=True) if wanted]
    assert tokenizer.decode(learnt) == "is 4<|im_end|>"
    assert "1+1<|im_end|>\n<|im_start|>assistant\nis 2<|im_end|>" in tokenizer.decode(found.ids)
    assert tokenizer.decode(encoder.prompt(row)).endswith("2+2<|im_end|>\n<|im_start|>assistant\n")
