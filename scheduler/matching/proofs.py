"""A round's root: one hash over every row of its book with what came of it, each salted.

The tree is RFC 6962's: SHA-256 of 0x00 ‖ content for a leaf, of 0x01 ‖ left ‖ right for what joins
two, split at the largest power of two below the number of leaves. A leaf's content is 16 bytes of
salt and then its row, as JSON. With the root, somebody who is shown one row and the hashes beside its
way up knows that the row stood in the round, and learns nothing of the others.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from marketplace.core.errors import Invalid
from scheduler.matching.arrays import Array, Bools
from scheduler.matching.book import JOBS, NODES, Book
from scheduler.matching.matches import Matches

SALT_BYTES: Final = 16
_LEAF, _JOINT = b"\x00", b"\x01"


@dataclass(frozen=True)
class Proof:
    """One row of a round, and how its root follows from it."""

    root: str
    leaves: int
    index: int
    """The row's place among the leaves: jobs in the order of the book, then nodes."""
    salt: str
    row: str
    path: Sequence[str]
    """Hashes beside the way up, from the leaf on."""


class Tree:
    """The hashes of a round's leaves, level by level."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [[_hashed(_LEAF, leaf) for leaf in leaves]]
        # An odd one out goes up as it is: the same as splitting at powers of two.
        while len(below := self._levels[-1]) > 1:
            joints = [_hashed(_JOINT, *below[at : at + 2]) for at in range(0, len(below) - 1, 2)]
            self._levels.append(joints + below[len(joints) * 2 :])

    @property
    def root(self) -> str:
        """In hex; of no leaves at all, the hash of nothing."""
        return (self._levels[-1][0] if self._levels[-1] else _hashed()).hex()

    def path(self, index: int) -> list[str]:
        """The hashes beside the way from a leaf to the root."""
        found = []
        for level in self._levels[:-1]:
            if (beside := index ^ 1) < len(level):
                found.append(level[beside].hex())
            index //= 2
        return found


def leaves(book: Book, matches: Matches, dropped: Bools, key: bytes) -> list[bytes]:
    """The content of every leaf; `key` is the round's, by `scheduler.numbering`, `dropped` [J]
    the jobs whose match was not kept."""
    texts = rows(book, matches, dropped)
    return [salt(key, index) + text.encode() for index, text in enumerate(texts)]


def salt(key: bytes, index: int) -> bytes:
    """What keeps a leaf from being guessed."""
    return hashlib.blake2b(index.to_bytes(8, "little"), key=key, digest_size=SALT_BYTES).digest()


def rows(book: Book, matches: Matches, dropped: Bools) -> Iterator[str]:
    """Every row of the book, jobs first, as it is hashed: its own columns by their names in the
    file, and its matches by the numbers of the other side."""
    told = dropped.tolist()
    of_job, of_node = _matched(book, matches, told)
    jobs = _columns({name: getattr(book, name) for name in JOBS})
    reached = zip(matches.level.tolist(), matches.gpu_class.tolist(), told, strict=True)
    for at, (row, (level, gpu_class, gone)) in enumerate(zip(jobs, reached, strict=True)):
        more = {"level": level, "class": gpu_class, "dropped": gone, "matches": of_job[at]}
        yield _text(row | more)
    nodes = _columns({name: getattr(book, name) for name in NODES})
    for at, (row, ladder) in enumerate(zip(nodes, matches.cell_price.tolist(), strict=True)):
        yield _text(row | {"prices": ladder, "matches": of_node[at]})


def prove(tree: Tree, content: Sequence[bytes], index: int) -> Proof:
    """That the leaf at `index` of this tree is what it is."""
    leaf = content[index]
    return Proof(
        root=tree.root,
        leaves=len(content),
        index=index,
        salt=leaf[:SALT_BYTES].hex(),
        row=leaf[SALT_BYTES:].decode(),
        path=tree.path(index),
    )


def holds(proof: Proof) -> bool:
    """Whether the row, its place and the hashes beside it lead to the root."""
    try:
        salted = bytes.fromhex(proof.salt) + proof.row.encode()
        beside = [bytes.fromhex(each) for each in proof.path]
    except ValueError:
        return False
    if not 0 <= proof.index < proof.leaves or len(bytes.fromhex(proof.salt)) != SALT_BYTES:
        return False
    found, index, width = _hashed(_LEAF, salted), proof.index, proof.leaves
    while width > 1:
        if index ^ 1 < width:
            if not beside:
                return False
            pair = (beside[0], found) if index % 2 else (found, beside[0])
            found, beside = _hashed(_JOINT, *pair), beside[1:]
        index, width = index // 2, (width + 1) // 2
    return not beside and found.hex() == proof.root


def read(given: Any) -> Proof:
    """A proof from its JSON, other fields passed over. Raises Invalid."""
    kinds = {"root": str, "leaves": int, "index": int, "salt": str, "row": str, "path": list}
    for name, kind in kinds.items():
        if not isinstance(given, dict) or not isinstance(given.get(name), kind):
            raise Invalid(f"a proof has a field {name!r}", field=name)
    if not all(isinstance(each, str) for each in given["path"]):
        raise Invalid("a proof's path is a list of hashes", field="path")
    return Proof(**{name: given[name] for name in kinds})


def _matched(
    book: Book, matches: Matches, dropped: Sequence[bool]
) -> tuple[list[list[Any]], list[list[Any]]]:
    """Each job's and each node's matches: of the other side's number, GPUs, price and, for a node,
    whether the match was dropped."""
    of_job: list[list[Any]] = [[] for _ in range(book.jobs)]
    of_node: list[list[Any]] = [[] for _ in range(book.nodes)]
    job_id, node_id = book.job_id.astype(str).tolist(), book.node_id.astype(str).tolist()
    columns = (matches.job, matches.node, matches.gpus, matches.price)
    for job, node, gpus, price in zip(*(column.tolist() for column in columns), strict=True):
        of_job[job].append([node_id[node], gpus, price])
        of_node[node].append([job_id[job], gpus, price, dropped[job]])
    return of_job, of_node


def _columns(named: dict[str, Array]) -> Iterator[dict[str, Any]]:
    """The rows of some arrays, by name. Numbers of 64 bits as text: JSON's readers lose digits."""
    columns = [
        [str(number) for number in array.tolist()] if array.dtype == np.uint64 else array.tolist()
        for array in named.values()
    ]
    for row in zip(*columns, strict=True):
        yield dict(zip(named, row, strict=True))


def _text(row: dict[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":"))


def _hashed(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()
