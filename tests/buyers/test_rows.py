"""Training rows, checked line by line while they stream by."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buyers import rows
from marketplace.core.errors import Invalid

PAIR = b'{"prompt": "What?", "completion": "That."}'
CHAT = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


def count(*lines: bytes) -> int:
    return rows.count([b"\n".join(lines)], "train.jsonl")


def test_pairs_and_conversations_count_and_blank_lines_do_not():
    assert count(PAIR, b"", CHAT, b"   ", PAIR, b"") == 3


@given(st.lists(st.text(min_size=1), min_size=1, max_size=8), st.integers(1, 40))
def test_rows_are_counted_alike_whatever_the_chunks_they_come_in(texts, size):
    data = b"".join(
        json.dumps({"prompt": text, "completion": text}, ensure_ascii=False).encode() + b"\n"
        for text in texts
    )
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    assert rows.count(chunks, "train.jsonl") == len(texts)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"{", "truncated"),
        (b"[1, 2]", "object"),
        (b'{"prompt": 3, "completion": "x"}', "prompt"),
        (b'{"prompt": "x"}', "give prompt and completion"),
        (b'{"prompt": "", "completion": "x"}', "not empty"),
        (b'{"text": "x"}', "give prompt and completion"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "end with the assistant's"),
        (b'{"messages": [{"role": "robot", "content": "a"}]}', "robot"),
        (CHAT[:-1] + b', "prompt": "x"}', "stand alone"),
        (b'{"prompt": "\xff", "completion": "x"}', "decode"),
        (b'{"prompt": NaN, "completion": "x"}', "malformed"),
    ],
)
def test_a_wrong_row_is_refused_with_its_file_and_line(bad, why):
    with pytest.raises(Invalid, match=r"train.jsonl line 3: .*") as refused:
        count(PAIR, b"", bad, PAIR)
    assert why in str(refused.value)


def test_a_file_without_rows_is_refused():
    with pytest.raises(Invalid, match="no rows"):
        count(b"", b"  ")
    with pytest.raises(Invalid, match="no rows"):
        rows.count([], "heldout.jsonl")


def test_a_line_without_an_end_is_not_read_for_ever():
    endless = (b"x" * 2**20 for _ in range(10**6))
    with pytest.raises(Invalid, match="line 1 is longer than 4 MiB"):
        rows.count(endless, "train.jsonl")
