"""The proof that hardware is there: a chain of exact integer matrix products, spot-checked."""

import hashlib
from typing import Literal
from uuid import UUID

from agent.protocol.wire import Count, Nonce, Sha256, Wire


class ProofTask(Wire, frozen=True, kw_only=True):
    """GET /agent/v1/proof: integer matrix products to show that the hardware is there.

    X₀ and B are n × n with entries in −8..8, drawn row by row from `seed` (`proof_row`). A link:
    V = X·B mod 17, X ← (V³ mod 17) − 8, entry by entry; the cube keeps anyone from jumping
    ahead with powers of B. After every `links` links the rows of X are hashed as int8 and
    committed as one Merkle root per segment.
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
