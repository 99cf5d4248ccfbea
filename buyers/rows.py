"""The rows of a training file, checked while they stream by, so that a typo costs no GPU time.

A row is `{"prompt": …, "completion": …}` or `{"messages": [{"role": …, "content": …}, …]}` whose
last message is the assistant's: the rules that the recipes read by (`agent.recipes`). Pure.
"""

from collections.abc import Iterable, Iterator
from typing import Final, Literal

import msgspec
from msgspec import Struct

from marketplace.core.errors import Invalid

TRAIN: Final = "train.jsonl"
HELD_OUT: Final = "heldout.jsonl"
FILES: Final = (TRAIN, HELD_OUT)
MAX_LINE: Final = 4 * 2**20
"""Bytes of one row: longer than any context that we could train on."""


class Message(Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Row(Struct, frozen=True):
    """One example; exactly one of the two forms is filled in."""

    prompt: str = ""
    completion: str = ""
    messages: list[Message] = []


_DECODER: Final = msgspec.json.Decoder(Row)


def count(chunks: Iterable[bytes], name: str) -> int:
    """How many rows the file `name` has; blank lines don't count.

    Raises Invalid naming the file and the first bad line, or that there are no rows at all.
    """
    rows = 0
    for number, line in enumerate(_lines(chunks, name), start=1):
        if line.strip():
            _check(line, f"{name} line {number}")
            rows += 1
    if not rows:
        raise Invalid(f"{name} has no rows; put at least one JSON line into it", field="files")
    return rows


def _lines(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Lines without their end, whatever the chunks they come in."""
    rest, number = b"", 0
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        number += len(whole)
        yield from whole
        if len(rest) > MAX_LINE:
            raise Invalid(
                f"{name} line {number + 1} is longer than {MAX_LINE >> 20} MiB; "
                "a row is one line of JSON",
                field="files",
            )
    if rest:
        yield rest


def _check(line: bytes, where: str) -> None:
    try:
        row = _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{where}: {error}", field="files") from None
    if row.messages:
        if row.messages[-1].role != "assistant" or row.prompt or row.completion:
            raise Invalid(
                f"{where}: messages must end with the assistant's, and stand alone", field="files"
            )
    elif not row.prompt or not row.completion:
        raise Invalid(
            f"{where}: give prompt and completion (not empty), or messages", field="files"
        )
