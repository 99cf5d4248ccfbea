"""The dataset's rows, read through `datasets`: checked once, kept on the disk, mapped when needed.

JSONL, Parquet and text become the same Arrow file: each row's JSON and its length in characters.
So a dataset may be larger than memory, and rows of differing columns need no common schema.
"""

import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import datasets
import msgspec

from agent.recipes import formats
from agent.recipes.catalog import Exit
from agent.recipes.formats import Answered, Kind, Message, Preferred, Prompt, Row, Said, Text
from agent.recipes.job import RecipeError

_FEATURES: Final = datasets.Features(
    {"row": datasets.Value("large_string"), "length": datasets.Value("int64")}
)
# Arrow's file is written in pieces of so many rows.
_WRITTEN_AT_ONCE: Final = 1000


@dataclass(frozen=True)
class Table:
    """The rows of one part of a dataset."""

    part: str
    kind: Kind
    lengths: Sequence[int]
    """Characters of each row, as a measure of tokens."""
    stored: Any

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Row:
        return formats.convert(self.kind, self.columns(index))

    def columns(self, index: int) -> dict[str, Any]:
        """A row with all its columns, also those that only a reward reads."""
        found: dict[str, Any] = msgspec.json.decode(self.stored[index]["row"])
        return found


class Shelf:
    """Where tables are kept while the job runs."""

    def __init__(self, output: Path, rank: int) -> None:
        self._folder = output / f".rows-{rank}"
        shutil.rmtree(self._folder, ignore_errors=True)
        datasets.disable_progress_bars()

    def clear(self) -> None:
        """Remove what lies there."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def read(self, folder: Path, part: str, *kinds: Kind) -> Table:
        """A part of a dataset, whose rows are of the first of `kinds` that fits its first row.

        Raises RecipeError if there is none, or naming the first row that doesn't fit.
        """
        paths = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        try:
            name = formats.file_of(part, paths)
        except ValueError as error:
            raise RecipeError(Exit.INPUT, f"the dataset can't be read: {error}") from None
        if not name:
            raise RecipeError(
                Exit.INPUT,
                f"the dataset has no {part}.jsonl (or .parquet, .txt); add it to the dataset",
            )
        kind = _kind_of(folder / name, name, kinds)
        stored = self.keep(part, _FEATURES, lambda: _checked(folder / name, name, kind))
        return Table(part, kind, array("q", stored["length"][:]), stored)

    def keep(
        self, name: str, features: datasets.Features, rows: Callable[[], Iterator[Any]]
    ) -> Any:
        """Rows as they are made, kept in a file of their own; raises RecipeError."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return datasets.Dataset.from_generator(
                rows,
                features=features,
                cache_dir=str(self._folder),
                # By default a hash of all that the generator holds on to.
                fingerprint=f"{len(list(self._folder.iterdir()))}-{name.replace('/', '-')}",
                writer_batch_size=_WRITTEN_AT_ONCE,
            )
        except datasets.exceptions.DatasetGenerationError as error:
            # What the generator raised is what a person can mend.
            if isinstance(error.__cause__, RecipeError):
                raise error.__cause__ from None
            raise RecipeError(Exit.INPUT, f"{name} can't be read: {error.__cause__}") from error
        except OSError as error:
            raise RecipeError(
                Exit.DISK, f"{name} can't be unpacked ({error}); book more disk for the job"
            ) from error


def spread(total: int, wanted: int) -> list[int]:
    """`wanted` indexes evenly over `total`, the first being 0: the same subset every time."""
    count = min(total, wanted)
    return [index * total // count for index in range(count)]


def chat(row: Answered) -> list[dict[str, str]]:
    """An answered row as messages, whichever form it has."""
    said = row.messages or (*turns(row.prompt, "user"), *turns(row.completion, "assistant"))
    return [{"role": message.role, "content": message.content} for message in said]


def turns(said: Said, role: Any) -> tuple[Message, ...]:
    """Text as one turn of `role`; a conversation as it is."""
    return (Message(role, said),) if isinstance(said, str) else said


def text_of(said: Said) -> str:
    """The last thing said."""
    return said if isinstance(said, str) else said[-1].content


def question(row: Row) -> str:
    """What a row asks, to be shown to a person."""
    match row:
        case Answered(messages=messages) if messages:
            return messages[-2].content if len(messages) > 1 else ""
        case Text(text=text):
            return text
        case _:
            return text_of(row.prompt)


def answer(row: Row) -> str:
    """What a row expects, if it says so."""
    match row:
        case Answered(messages=messages) if messages:
            return messages[-1].content
        case Answered():
            return text_of(row.completion)
        case Preferred():
            return text_of(row.chosen)
        case _:
            return ""


def _kind_of(path: Path, name: str, kinds: Sequence[Kind]) -> Kind:
    if len(kinds) == 1:
        return kinds[0]
    for _, columns in _rows(path, name):
        for kind in kinds:
            if not formats.check_row(kind, columns):
                return kind
        break
    return kinds[0]


def _checked(path: Path, name: str, kind: Kind) -> Iterator[Mapping[str, object]]:
    """Each row's JSON, checked, with its length."""
    count = 0
    for where, columns in _rows(path, name):
        try:
            row = formats.convert(kind, columns)
        except ValueError as error:
            raise RecipeError(Exit.INPUT, f"{where}: {error}") from None
        count += 1
        yield {"row": msgspec.json.encode(columns).decode(), "length": _length(row)}
    if not count:
        raise RecipeError(Exit.INPUT, f"{name} has no rows; put at least one into it")


def _rows(path: Path, name: str) -> Iterator[tuple[str, object]]:
    """Each row with where it stands; raises RecipeError for a file that can't be read."""
    try:
        if path.suffix == ".parquet":
            for number, row in enumerate(_parquet(path), start=1):
                yield f"{name} row {number}", row
        elif path.suffix == ".txt":
            with path.open(encoding="utf-8") as file:
                for number, text in enumerate(formats.paragraphs(iter(file)), start=1):
                    yield f"{name} paragraph {number}", {"text": text}
        else:
            yield from _json_lines(path, name)
    except OSError as error:
        raise RecipeError(
            Exit.INPUT, f"the dataset has no readable {name} ({error.strerror}); add it"
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError(Exit.INPUT, f"{name} is no UTF-8 text ({error.reason})") from None


def _json_lines(path: Path, name: str) -> Iterator[tuple[str, object]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{name} line {number}"
            try:
                yield where, msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RecipeError(Exit.INPUT, f"{where}: {error}") from None


def _parquet(path: Path) -> Iterable[Mapping[str, object]]:
    """Columns that a row leaves empty are not in it, as in JSON."""
    try:
        stream = datasets.load_dataset(
            "parquet", data_files=str(path), split="train", streaming=True
        )
        for row in stream:
            yield {name: value for name, value in row.items() if value is not None}
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise RecipeError(Exit.INPUT, f"{path.name} is no Parquet file: {error}") from None


def _length(row: Row) -> int:
    match row:
        case Text(text=text):
            return len(text)
        case Prompt(prompt=prompt):
            return _said(prompt)
        case Preferred():
            return _said(row.prompt) + max(_said(row.chosen), _said(row.rejected))
        case Answered():
            return _said(row.prompt) + _said(row.completion) + _said(row.messages)


def _said(said: Said) -> int:
    return len(said) if isinstance(said, str) else sum(len(one.content) for one in said)
