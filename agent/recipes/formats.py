"""What a dataset is made of: its files, the kinds of rows, and which recipe reads which.

Pure: msgspec and the standard library only, so that the site can check a row at upload with the
words that the recipe would use on the node.

| kind | a row | read by |
|---|---|---|
| `answers` | `{"prompt": …, "completion": …}`, or `{"messages": [{"role": …, "content": …}, …]}` | sft, distill |
| `preferences` | `{"prompt": …, "chosen": …, "rejected": …}` | dpo, reward |
| `prompts` | `{"prompt": …}` and any other columns, which the reward may look at | grpo |
| `text` | `{"text": …}`, or a paragraph of a .txt file | continue |

A dataset is a folder: `train.*` to learn from, `heldout.*` to measure on, and for each other
domain that must not be forgotten a `domains/<name>.*`, only measured. `*` is one of jsonl,
parquet and txt. A prompt, an answer or a text may also be a list of messages where text stands
above.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final, Literal

import msgspec
from msgspec import Struct

Kind = Literal["answers", "preferences", "prompts", "text"]
Method = Literal["sft", "dpo", "reward", "grpo", "continue", "distill"]

TRAIN: Final = "train"
HELD_OUT: Final = "heldout"
DOMAINS: Final = "domains"
EXTENSIONS: Final = ("jsonl", "parquet", "txt")
MAX_DOMAINS: Final = 32

KIND_OF: Final[Mapping[Method, Kind]] = {
    "sft": "answers",
    "distill": "answers",
    "dpo": "preferences",
    "reward": "preferences",
    "grpo": "prompts",
    "continue": "text",
}


class Message(Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


Said = str | tuple[Message, ...]
"""Text, or the turns of a conversation."""


class Answered(Struct, frozen=True):
    """A row of `answers`; exactly one of the two forms is filled in."""

    prompt: Said = ""
    completion: Said = ""
    messages: tuple[Message, ...] = ()


class Preferred(Struct, frozen=True):
    """A row of `preferences`: two answers to one prompt, the better one first."""

    prompt: Said
    chosen: Said
    rejected: Said


class Prompt(Struct, frozen=True):
    """A row of `prompts`; its other columns are handed to the reward as they are."""

    prompt: Said


class Text(Struct, frozen=True):
    """A row of `text`."""

    text: str


Row = Answered | Preferred | Prompt | Text
_STRUCT_OF: Final[Mapping[Kind, type[Row]]] = {
    "answers": Answered,
    "preferences": Preferred,
    "prompts": Prompt,
    "text": Text,
}


def convert(kind: Kind, row: object) -> Row:
    """A row as its struct; raises ValueError saying what is wrong with it and what would do."""
    try:
        found = msgspec.convert(row, _STRUCT_OF[kind])
    except msgspec.ValidationError as error:
        raise ValueError(f"{_unfit(kind)} ({error})") from None
    if reason := _flaw(found):
        raise ValueError(reason)
    return found


def check_row(kind: Kind, row: object) -> str:
    """What is wrong with a decoded row, and what would do; empty if nothing is."""
    try:
        convert(kind, row)
    except ValueError as error:
        return str(error)
    return ""


def kinds_of(row: object) -> frozenset[Kind]:
    """The kinds that a row can be read as; none if no recipe could read it."""
    return frozenset(kind for kind in _STRUCT_OF if not check_row(kind, row))


def columns(kind: Kind) -> tuple[str, ...]:
    """The columns that a row of this kind must have, as a Parquet file would name them."""
    return {
        "answers": ("prompt", "completion"),
        "preferences": ("prompt", "chosen", "rejected"),
        "prompts": ("prompt",),
        "text": ("text",),
    }[kind]


def part_of(path: str) -> str:
    """What a file of a dataset is for: `train`, `heldout`, `domains/<name>`, or nothing ("")."""
    pure = PurePosixPath(path)
    if pure.suffix.lstrip(".") not in EXTENSIONS:
        return ""
    stem = str(pure.with_suffix(""))
    if stem in (TRAIN, HELD_OUT):
        return stem
    is_domain = len(pure.parts) == 2 and pure.parts[0] == DOMAINS and bool(pure.stem)
    return stem if is_domain else ""


def file_of(part: str, paths: Collection[str]) -> str:
    """The file that holds a part of a dataset; empty if there is none.

    Raises ValueError if there are two, for nobody could say which one was meant.
    """
    found = [path for path in sorted(paths) if part_of(path) == part]
    if len(found) > 1:
        raise ValueError(f"it has both {found[0]} and {found[1]}; keep one of them")
    return found[0] if found else ""


def domains(paths: Collection[str]) -> list[str]:
    """The names of the held-out domains, in order; raises ValueError if there are too many."""
    found = sorted({part for path in paths if (part := part_of(path)).startswith(f"{DOMAINS}/")})
    if len(found) > MAX_DOMAINS:
        raise ValueError(f"it has {len(found)} domains; at most {MAX_DOMAINS} are measured")
    return [part.removeprefix(f"{DOMAINS}/") for part in found]


def paragraphs(lines: Iterator[str]) -> Iterator[str]:
    """The documents of a .txt file: what stands between blank lines."""
    held: list[str] = []
    for line in lines:
        if line.strip():
            held.append(line.rstrip("\n"))
        elif held:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def _unfit(kind: Kind) -> str:
    return {
        "answers": "give prompt and completion, or messages of role and content",
        "preferences": "give prompt, chosen and rejected",
        "prompts": "give a prompt",
        "text": "give text",
    }[kind]


def _flaw(row: Row) -> str:
    """What msgspec's types can't say."""
    match row:
        case Answered(messages=messages) if messages:
            if messages[-1].role != "assistant" or row.prompt or row.completion:
                return "messages must end with the assistant's, and stand alone"
        case Answered():
            if not row.prompt or not row.completion:
                return "give prompt and completion (not empty), or messages"
        case Preferred():
            if not (row.prompt and row.chosen and row.rejected):
                return "give prompt, chosen and rejected, none of them empty"
            if row.chosen == row.rejected:
                return "chosen and rejected are the same; a preference needs two answers"
        case Prompt(prompt=said) if not said:
            return "the prompt is empty; put something into it"
        case Text(text=text) if not text.strip():
            return "the text is empty; remove the row"
    return ""
