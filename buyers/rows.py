"""The rows of a dataset's files, checked while they stream by, so that a typo costs no GPU time.

What a row must be is said once, for the site and the recipes, in `agent.recipes.formats`; here
files become rows, and rows a report. Pure: it is handed bytes, or rows that somebody else decoded.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from agent.recipes import formats
from agent.recipes.formats import Kind
from marketplace.core.errors import Invalid

MAX_LINE: Final = 4 * 2**20
"""Bytes of one row: longer than any context that we could train on."""
SHOWN_ROWS: Final = 5
_SHOWN_TEXT: Final = 600
_SHOWN_ITEMS: Final = 12
_EACH: Final = 4096
"""The clock is looked at once in so many rows."""
# A row may be several kinds at once: what it is meant as, its columns tell.
_MEANT: Final[tuple[tuple[frozenset[str], Kind], ...]] = (
    (frozenset({"chosen", "rejected"}), "preferences"),
    (frozenset({"completion", "messages"}), "answers"),
    (frozenset({"prompt"}), "prompts"),
    (frozenset({"text"}), "text"),
)

Located = tuple[str, object]
"""Where a row stands in its file, and the row."""


@dataclass
class Report:
    """What was found in one file."""

    rows: int = 0
    kinds: frozenset[Kind] = frozenset()
    """The kinds that every row is."""
    first: list[object] = field(default_factory=list)
    """The first rows, shortened for showing."""


def check(located: Iterable[Located], name: str, *, until: float) -> Report:
    """Reads all rows of the file `name`; `until` is a moment of `time.monotonic()`.

    Raises Invalid naming the file, the first bad row and what would do; also if there are no rows
    at all, or more than can be looked through by then.
    """
    report, meant = Report(), None
    for where, row in located:
        if meant is None:
            meant, report.kinds = _kinds_of_first(row, f"{name} {where}")
        else:
            report.kinds = frozenset(k for k in report.kinds if not formats.check_row(k, row))
            if meant not in report.kinds:
                raise Invalid(
                    f"{name} {where}: {formats.check_row(meant, row)}, as the rows before it do",
                    field="files",
                )
        if report.rows < SHOWN_ROWS:
            report.first.append(shortened(row))
        report.rows += 1
        if report.rows % _EACH == 0 and time.monotonic() > until:
            raise Invalid(
                f"{name} takes too long to look through; split it into several datasets",
                field="files",
            )
    if not report.rows:
        raise Invalid(f"{name} has no rows; put at least one into it", field="files")
    return report


def decoded(chunks: Iterable[bytes], path: str) -> Iterator[Located]:
    """The rows of a .jsonl or .txt file; raises Invalid for what is neither."""
    return _paragraphs(chunks, path) if path.endswith(".txt") else _objects(chunks, path)


def shortened(value: object, depth: int = 4) -> object:
    """The beginning of a value, for showing."""
    if isinstance(value, str):
        value = value.replace("\0", "�")  # which PostgreSQL can't hold
        return value if len(value) <= _SHOWN_TEXT else value[: _SHOWN_TEXT - 1] + "…"
    if isinstance(value, dict | list) and not depth:
        return "…"
    if isinstance(value, dict):
        items = list(value.items())[:_SHOWN_ITEMS]
        return {str(key)[:60]: shortened(each, depth - 1) for key, each in items}
    if isinstance(value, list):
        return [shortened(each, depth - 1) for each in value[:_SHOWN_ITEMS]]
    return value


def _kinds_of_first(row: object, where: str) -> tuple[Kind, frozenset[Kind]]:
    """What the first row is meant as, by its columns, and all that it could be read as."""
    names = {str(name) for name in row} if isinstance(row, dict) else set[str]()
    meant: Kind = next((kind for tell, kind in _MEANT if names & tell), "answers")
    wrong = formats.check_row(meant, row)
    if not wrong:
        return meant, formats.kinds_of(row)
    has = f"; it has {', '.join(sorted(names)[:8])}" if names else ""
    raise Invalid(
        f"{where}: {wrong}{has}. (If only a script of yours reads this file, put it into a folder, "
        "like data/: what lies there is not looked into)",
        field="files",
    )


def _objects(chunks: Iterable[bytes], path: str) -> Iterator[Located]:
    for number, line in enumerate(_lines(chunks, path), start=1):
        if not line.strip():
            continue
        try:
            row: object = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(
                f"{path} line {number}: {error}; a row is one line of JSON", field="files"
            ) from None
        yield f"line {number}", row


def _paragraphs(chunks: Iterable[bytes], path: str) -> Iterator[Located]:
    at = [0]

    def lines() -> Iterator[str]:
        for number, line in enumerate(_lines(chunks, path), start=1):
            at[0] = number
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise Invalid(
                    f"{path} line {number}: {error}; save it as UTF-8", field="files"
                ) from None

    for text in formats.paragraphs(lines()):
        yield f"line {at[0]}", {"text": text}


def _lines(chunks: Iterable[bytes], path: str) -> Iterator[bytes]:
    """Lines without their end, whatever the chunks they come in."""
    rest, number = b"", 0
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        number += len(whole)
        yield from whole
        if len(rest) > MAX_LINE:
            raise Invalid(
                f"{path} line {number + 1} is longer than {MAX_LINE >> 20} MiB; cut it",
                field="files",
            )
    if rest:
        yield rest
