"""Verifies a whole round from what was published of it: that the book and the matches released are
those that its hashes and its root committed to, that the matches are right, and that its figures
follow from them.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from marketplace.core.errors import Invalid
from scheduler.matching import arrays, proofs
from scheduler.matching import book as books
from scheduler.matching import matches as results
from scheduler.matching.arrays import Bools, Source
from scheduler.matching.book import Book
from scheduler.matching.check import amounts, check
from scheduler.matching.matches import Matches

DROPPED = "x_dropped"
"""Beside the matches, [J]: whose match was not kept, since something had moved meanwhile."""


@dataclass(frozen=True)
class Published:
    """What a round published at once, and the key to its salts, which came with the book."""

    book_sha256: str
    matches_sha256: str
    root: str
    leaves: int
    salting_key: str
    seed: int
    matched_jobs: int
    matched_gpus: int
    welfare: float
    bound: float
    make_whole: float


@dataclass(frozen=True, eq=False)
class Released:
    """What was released of a round."""

    book: Book
    matches: Matches
    dropped: Bools  # [J]


def read_published(given: Any) -> Published:
    """From the JSON of a round, with its record beside or in it; other fields are passed over.
    Raises Invalid."""
    if isinstance(given, dict) and isinstance(given.get("record"), dict):
        given = given | given["record"]
    values: dict[str, Any] = {}
    for item in fields(Published):
        value = given.get(item.name) if isinstance(given, dict) else None
        kinds = (int, float) if item.type is float else (item.type,)
        if type(value) not in kinds:
            what = "text" if item.type is str else "a number"
            raise Invalid(f"the round has no {item.name!r}, or not as {what}", field=item.name)
        values[item.name] = value
    return Published(**values)


def read_released(book: Source, matches: Source) -> Released:
    """From the two files. Raises Invalid naming the array at fault, or OSError."""
    found, named = books.load(book), arrays.unpack(matches)
    dropped = named.get(DROPPED, np.zeros(found.jobs, "|i1"))
    if dropped.dtype.str != "|i1" or dropped.shape != (found.jobs,):
        raise Invalid(f"{DROPPED} must be of type |i1, a number for each job", field=DROPPED)
    told = {name: array for name, array in named.items() if not name.startswith("x_")}
    arrays.conform(told, results.SCHEMA)
    return Released(found, results.of_arrays(told), dropped > 0)


def verify(published: Published, released: Released) -> list[str]:
    """What is wrong, a sentence for each finding; empty if nothing is."""
    faults = check(released.book, released.matches)
    if len(released.matches.level) != released.book.jobs:
        return faults  # it fits no book; nothing more can be told
    return [*_wrong_hashes(published, released), *faults, *_wrong_figures(published, released)]


def _wrong_hashes(published: Published, released: Released) -> list[str]:
    try:
        key = bytes.fromhex(published.salting_key)
        leaves = proofs.leaves(released.book, released.matches, released.dropped, key)
    except (ValueError, IndexError) as error:
        return [f"the leaves can't be made: {error}"]
    found = {
        "book_sha256": books.digest(released.book),
        "matches_sha256": results.digest(released.matches),
        "root": proofs.Tree(leaves).root,
        "leaves": len(leaves),
        "seed": released.book.params.seed,
    }
    return _differences(published, found)


def _wrong_figures(published: Published, released: Released) -> list[str]:
    """The round's figures are those of the matches that were kept; its prices and so its bound are
    those of all."""
    try:
        kept = results.without(released.matches, released.dropped)
        came_to = amounts(released.book, kept)
    except (ValueError, IndexError) as error:
        return [f"the matches that were kept can't be reckoned: {error}"]
    exact = {
        "matched_jobs": int((kept.level >= 0).sum()),
        "matched_gpus": int(kept.gpus.sum()),
    }
    close = {
        "welfare": came_to.welfare,
        "make_whole": came_to.make_whole,
        "bound": released.matches.bound,
    }
    unplaced = np.flatnonzero(released.dropped & (released.matches.level < 0))
    return [
        *(f"job {job} was dropped, and had no match" for job in unplaced),
        *_differences(published, exact),
        *(
            f"{name} is {value:.6f}, the round says {getattr(published, name):.6f}"
            for name, value in close.items()
            if not np.isclose(value, getattr(published, name), rtol=1e-6, atol=1e-6)
        ),
    ]


def _differences(published: Published, found: dict[str, Any]) -> list[str]:
    return [
        f"{name} is {value}, the round says {getattr(published, name)}"
        for name, value in found.items()
        if value != getattr(published, name)
    ]
