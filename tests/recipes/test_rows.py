"""Rows are read strictly, whatever file they come in, and stay on the disk."""

from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.recipes.catalog import Exit
from agent.recipes.formats import Answered, Kind, Preferred, Text
from agent.recipes.job import RecipeError
from agent.recipes.rows import Shelf, Table, spread


def read(folder: Path, *kinds: Kind, part: str = "train") -> Table:
    return Shelf(folder / "shelf", rank=0).read(folder, part, *(kinds or ("answers",)))


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
    (tmp_path / "train.jsonl").write_bytes((good + line).encode("utf-8", "surrogateescape"))
    with pytest.raises(RecipeError, match=says) as refusal:
        read(tmp_path)
    assert refusal.value.code == Exit.INPUT


def test_an_absent_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no train\.jsonl"):
        read(tmp_path)
    (tmp_path / "train.jsonl").write_text("\n\n")
    with pytest.raises(RecipeError, match="no rows"):
        read(tmp_path)


def test_a_row_of_another_recipe_is_refused_with_what_this_one_reads(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    with pytest.raises(RecipeError, match="line 1: give prompt, chosen and rejected"):
        read(tmp_path, "preferences")


def test_jsonl_parquet_and_text_are_read_alike(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "note": None}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    table = read(tmp_path, "preferences")
    assert [table[0]] == [Preferred("a", "b", "c")]
    assert list(table.lengths) == [2]
    (tmp_path / "heldout.txt").write_text("one\ntwo\n\nthree\n")
    found = read(tmp_path, "text", part="heldout")
    assert [found[index] for index in range(len(found))] == [Text("one\ntwo"), Text("three")]


def test_a_domains_kind_is_told_by_its_first_row(tmp_path: Path) -> None:
    (tmp_path / "domains").mkdir()
    (tmp_path / "domains" / "law.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    found = read(tmp_path, "preferences", "answers", part="domains/law")
    assert (found.kind, found[0]) == ("answers", Answered("x", "y"))


@given(total=st.integers(1, 500), wanted=st.integers(0, 600))
def test_the_measured_rows_spread_over_all(total: int, wanted: int) -> None:
    found = spread(total, wanted)
    assert len(set(found)) == min(total, wanted)
    assert all(0 <= row < total for row in found)
    assert not found or found[0] == 0
