"""The numbers of a round: what its book calls jobs and nodes, known to nobody else.

A round draws one secret. From it come two keys that tell nothing of each other: one makes the
numbers and is never shown, so that rows of two rounds have no number in common and nobody can
choose theirs (ties fall by it); the other salts the round's leaves and is shown with the book.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_PERSON_NUMBERS = b"gridloom numbers"
_PERSON_SALTS = b"gridloom salts"


def numbers(secret: bytes, ids: Iterable[str]) -> NDArray[np.uint64]:
    """The number of each id, as text, in the round of this secret: a keyed hash, 64 bits.

    Among 60,000 rows two have the same one in 1 round of 10 billion; that book is refused, and the
    next round draws another secret.
    """
    key = _key(secret, _PERSON_NUMBERS)
    # One call a row and one array of all: 60,000 take some 60 ms of processor.
    hashed = [hashlib.blake2b(pk.encode(), key=key, digest_size=8).digest() for pk in ids]
    return np.frombuffer(b"".join(hashed), "<u8")


def salting_key(secret: bytes) -> bytes:
    """What salts the leaves of the round of this secret."""
    return _key(secret, _PERSON_SALTS)


def _key(secret: bytes, person: bytes) -> bytes:
    return hashlib.blake2b(key=secret, person=person).digest()
