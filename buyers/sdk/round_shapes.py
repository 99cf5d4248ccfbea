"""What the market tells of its rounds. Money in USD per hour, as the rounds reckon."""

from datetime import datetime
from uuid import UUID

from msgspec import Struct


class RoundFile(Struct, frozen=True):
    """A file of a released round; `url` reads it for some minutes."""

    url: str
    sha256: str
    bytes: int


class Record(Struct, frozen=True):
    """What a round committed to; `files` can be had once it is released."""

    root: str
    leaves: int
    matches_sha256: str
    releases_at: datetime
    dropped_jobs: int = 0
    files: dict[str, RoundFile] | None = None


class Round(Struct, frozen=True):
    """One clearing: who was placed, what it was worth, and at most could have been."""

    id: UUID
    at: datetime
    jobs: int
    matched_jobs: int
    gpus: int
    matched_gpus: int
    welfare: float
    bound: float
    book_sha256: str
    record: Record | None = None


class Proof(Struct, frozen=True):
    """That one row stood in a round: with its salt, and the hashes beside its way up, it leads to
    the root (`buyers.sdk.proofs`). The row is JSON: its columns in the book, and its matches."""

    round: UUID
    at: datetime
    root: str
    leaves: int
    index: int
    salt: str
    row: str
    path: list[str]
