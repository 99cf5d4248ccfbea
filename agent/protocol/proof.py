"""The proof that hardware is there: a chain of exact integer matrix products, spot-checked."""

import hashlib
from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from agent.protocol.wire import Count, Nonce, Sha256, Wire


class ProofTask(Wire, frozen=True, kw_only=True):
    """GET /agent/v1/proof: integer matrix products to show that the hardware is there.

    X₀ and B are n × n with entries in −8..8, drawn row by row from `seed` (`proof_row`). A link:
    V = X·B mod 17, X ← (V³ mod 17) − 8, entry by entry; the cube keeps anyone from jumping
    ahead with powers of B. After every `links` links the rows of X are hashed as int8 and
    committed as one Merkle root per segment (`merkle_levels`). `n` is a power of two.
    """

    id: UUID
    seed: Nonce
    n: Count
    links: Count
    segments: Count


class ProofCommit(Wire, frozen=True, kw_only=True):
    """POST /agent/v1/proof/<id>/commit: a root per segment, and how fast it went."""

    roots: list[Sha256]
    tflops: float
    memory_gb_s: float
    disk_mb_s: float
    details: dict[str, float] = {}


class ProofChallenge(Wire, frozen=True, kw_only=True):
    """The rows to open, each as (segment, row): drawn only after the commit."""

    cells: list[tuple[int, int]]


class OpenedRow(Wire, frozen=True, kw_only=True):
    """A row before and after its segment, as int8 bytes, with both Merkle paths (hex)."""

    segment: Count
    row: Count
    before: bytes
    after: bytes
    path_before: list[Sha256]
    path_after: list[Sha256]


class ProofOpening(Wire, frozen=True, kw_only=True):
    """POST /agent/v1/proof/<id>/open. Segment 0 starts from X₀, which needs no path."""

    rows: list[OpenedRow]


def proof_row(seed: str, matrix: Literal["x", "b"], row: int, n: int) -> bytes:
    """Row `row` of X₀ or B as n bytes, each an entry + 8 (0..16).

    SHAKE-256 of the seed, the matrix and the row, bytes of 0..254 taken mod 17 (255 would bias
    it and is passed over).
    """
    name = f"{seed}/{matrix}/{row}".encode()
    stream = hashlib.shake_256(name).digest(n + n // 16 + 64)
    return bytes(byte % 17 for byte in stream if byte < 255)[:n]


def merkle_levels(rows: Sequence[bytes]) -> list[list[bytes]]:
    """The Merkle tree over rows (as int8 bytes), leaves first, the root alone on the last level.

    SHA-256, with a byte 0 before a row and a byte 1 before two hashes, so that neither can pass
    for the other. The number of rows is a power of two.
    """
    level = [_leaf(row) for row in rows]
    levels = [level]
    while len(level) > 1:
        level = [_join(level[i], level[i + 1]) for i in range(0, len(level), 2)]
        levels.append(level)
    return levels


def merkle_path(levels: Sequence[Sequence[bytes]], row: int) -> list[str]:
    """What `merkle_root` needs beside row `row`: its neighbours from the leaves up, as hex."""
    return [level[(row >> height) ^ 1].hex() for height, level in enumerate(levels[:-1])]


def merkle_root(row: bytes, index: int, path: Sequence[str]) -> str:
    """The root, as hex, of the tree that has `row` at `index` and these neighbours on the way."""
    node = _leaf(row)
    for height, neighbour in enumerate(path):
        other = bytes.fromhex(neighbour)
        node = _join(other, node) if index >> height & 1 else _join(node, other)
    return node.hex()


def _leaf(row: bytes) -> bytes:
    return hashlib.sha256(b"\0" + row).digest()


def _join(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
