"""Training rows, checked one by one while they stream by."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buyers import rows
from marketplace.core.errors import Invalid

PAIR = b'{"prompt": "What?", "completion": "That."}'
CHAT = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
BETTER = b'{"prompt": "What?", "chosen": "That.", "rejected": "Eh."}'


def check(*lines: bytes, name: str = "train.jsonl") -> rows.Report:
    return checked([b"\n".join(lines)], name)


def checked(chunks, name="train.jsonl", *, until=None):
    until = time.monotonic() + 60 if until is None else until
    return rows.check(rows.decoded(chunks, name), name, until=until)


def test_pairs_and_conversations_count_and_blank_lines_do_not():
    report = check(PAIR, b"", CHAT, b"   ", PAIR, b"")
    assert report.rows == 3
    assert report.kinds == {"answers"}
    assert report.first[0] == {"prompt": "What?", "completion": "That."}


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        (PAIR, {"answers", "prompts"}),
        (CHAT, {"answers"}),
        (BETTER, {"preferences", "prompts"}),
        (b'{"prompt": "2+2", "answer": 4}', {"prompts"}),
        (b'{"text": "Once upon a time"}', {"text"}),
    ],
)
def test_what_kind_rows_are_is_found_out(line, kinds):
    assert check(line, line).kinds == kinds


def test_text_is_read_by_paragraphs():
    report = check(b"One.", b"Still one.", b"", b"Two.", name="train.txt")
    assert (report.rows, report.kinds) == (2, {"text"})
    assert report.first == [{"text": "One.\nStill one."}, {"text": "Two."}]
    with pytest.raises(Invalid, match=r"train.txt line 3: .*UTF-8"):
        check(b"a", b"", b"\xff", name="train.txt")


@given(st.lists(st.text(min_size=1), min_size=1, max_size=8), st.integers(1, 40))
def test_rows_are_counted_alike_whatever_the_chunks_they_come_in(texts, size):
    data = b"".join(
        json.dumps({"prompt": text, "completion": text}, ensure_ascii=False).encode() + b"\n"
        for text in texts
    )
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    assert checked(chunks).rows == len(texts)


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
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_wrong_row_is_refused_with_its_file_and_line(bad, why):
    with pytest.raises(Invalid, match=r"train.jsonl line 3: .*") as refused:
        check(PAIR, b"", bad, PAIR)
    assert why in str(refused.value)


def test_a_first_row_that_no_recipe_reads_is_told_what_it_has_and_what_would_do():
    with pytest.raises(Invalid) as refused:
        check(b'{"question": "a", "answer": "b"}')
    assert "line 1: give prompt and completion" in str(refused.value)
    assert "it has answer, question" in str(refused.value)
    with pytest.raises(Invalid, match="chosen and rejected are the same"):
        check(b'{"prompt": "a", "chosen": "b", "rejected": "b"}')
    with pytest.raises(Invalid, match="the text is empty"):
        check(b'{"text": " "}')


def test_rows_of_two_kinds_in_one_file_are_refused_where_they_part():
    with pytest.raises(Invalid, match="line 2: give prompt, chosen and rejected.*as the rows bef"):
        check(BETTER, PAIR)


def test_a_file_without_rows_is_refused():
    with pytest.raises(Invalid, match="no rows"):
        check(b"", b"  ")
    with pytest.raises(Invalid, match="no rows"):
        checked([], "heldout.jsonl")


def test_a_line_without_an_end_is_not_read_for_ever():
    endless = (b"x" * 2**20 for _ in range(10**6))
    with pytest.raises(Invalid, match="line 1 is longer than 4 MiB"):
        checked(endless)


def test_a_file_without_an_end_is_not_read_for_ever():
    endless = ((PAIR + b"\n") * 1000 for _ in range(10**9))
    with pytest.raises(Invalid, match="takes too long to look through"):
        checked(endless, until=time.monotonic())


def test_what_is_shown_of_a_row_is_short_and_can_be_stored():
    shown = rows.shortened({"a": "x" * 5000, "b": ["\0"] * 50, "c": {"d": {"e": {"f": {"g": 1}}}}})
    assert len(shown["a"]) == 600
    assert shown["b"] == ["�"] * 12
    assert shown["c"] == {"d": {"e": {"f": "…"}}}
