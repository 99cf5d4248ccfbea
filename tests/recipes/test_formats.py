"""Datasets: which file is which part, and which rows a recipe can read."""

import pytest

from agent.recipes import formats

ASKED = {"role": "user", "content": "Hm?"}
TOLD = {"role": "assistant", "content": "Ah."}


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ({"prompt": "a", "completion": "b"}, {"answers", "prompts"}),
        ({"prompt": [ASKED], "completion": [TOLD]}, {"answers", "prompts"}),
        ({"messages": [ASKED, TOLD]}, {"answers"}),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"preferences", "prompts"}),
        ({"prompt": "2+2", "answer": 4}, {"prompts"}),
        ({"text": "Once upon a time."}, {"text"}),
        ({"question": "a"}, set()),
        ("a", set()),
        (None, set()),
    ],
)
def test_a_row_tells_which_recipes_could_read_it(row: object, kinds: set[str]) -> None:
    assert formats.kinds_of(row) == kinds


@pytest.mark.parametrize(
    ("kind", "row", "says"),
    [
        ("answers", {"prompt": "a"}, "give prompt and completion"),
        ("answers", {"prompt": 1, "completion": "b"}, "at `$.prompt`"),
        ("answers", {"messages": [TOLD, ASKED]}, "must end with the assistant's"),
        ("answers", {"messages": [TOLD], "prompt": "a"}, "stand alone"),
        ("answers", {"messages": [{"role": "bot", "content": ""}]}, "Invalid enum value 'bot'"),
        ("preferences", {"prompt": "a", "chosen": "b"}, "give prompt, chosen and rejected"),
        ("preferences", {"prompt": "a", "chosen": "b", "rejected": ""}, "none of them empty"),
        ("preferences", {"prompt": "a", "chosen": "b", "rejected": "b"}, "two answers"),
        ("prompts", {"prompt": ""}, "the prompt is empty"),
        ("text", {"text": " \n"}, "the text is empty"),
    ],
)
def test_a_row_that_does_not_fit_says_what_would(
    kind: formats.Kind, row: object, says: str
) -> None:
    assert says in formats.check_row(kind, row)


def test_files_are_known_by_their_names() -> None:
    paths = ["train.jsonl", "heldout.parquet", "domains/law.jsonl", "domains/chat.txt", "notes.md"]
    assert [formats.part_of(path) for path in paths] == [
        "train", "heldout", "domains/law", "domains/chat", "",
    ]  # fmt: skip
    assert formats.part_of("deep/train.jsonl") == ""
    assert formats.file_of("heldout", paths) == "heldout.parquet"
    assert formats.file_of("heldout", []) == ""
    assert formats.domains(paths) == ["chat", "law"]


def test_a_part_in_two_files_is_refused_for_nobody_could_say_which_was_meant() -> None:
    with pytest.raises(ValueError, match=r"train\.jsonl and train\.parquet; keep one"):
        formats.file_of("train", ["train.parquet", "train.jsonl"])


def test_a_text_file_is_cut_at_blank_lines() -> None:
    lines = iter(["a\n", "b\n", "\n", " \n", "c\n"])
    assert list(formats.paragraphs(lines)) == ["a\nb", "c"]
