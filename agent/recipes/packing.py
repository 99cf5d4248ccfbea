"""Raw text in rows of equal length: documents one after another, cut where a row is full."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets

from agent.recipes.catalog import Exit
from agent.recipes.encode import Encoder
from agent.recipes.formats import Text
from agent.recipes.job import RecipeError
from agent.recipes.rows import Shelf, Table


@dataclass(frozen=True)
class Packed:
    """Rows of tokens, all of them to be learnt."""

    lengths: list[int]
    stored: Any

    def ids(self, index: int) -> list[int]:
        """The tokens of a row."""
        found: list[int] = self.stored[index]["ids"]
        return found


def packed(table: Table, encoder: Encoder, length: int, shelf: Shelf) -> Packed:
    """A table of texts, tokenised once and kept on the disk; raises RecipeError if it is empty."""
    stored = shelf.keep(
        f"{table.part}-packed",
        datasets.Features({"ids": datasets.List(datasets.Value("int32"))}),
        lambda: _rows(table, encoder, length),
    )
    if not len(stored):
        raise RecipeError(Exit.INPUT, f"{table.part}.* has less than two tokens; add text to it")
    return Packed([length] * len(stored), stored)


def _rows(table: Table, encoder: Encoder, length: int) -> Iterator[dict[str, list[int]]]:
    held: list[int] = []
    for index in range(len(table)):
        row = table[index]
        assert isinstance(row, Text)
        held += encoder.document(row)
        while len(held) >= length:
            yield {"ids": held[:length]}
            held = held[length:]
    if len(held) > 1:
        yield {"ids": held}
