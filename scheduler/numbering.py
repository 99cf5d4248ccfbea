"""The numbers of a round: what its book calls jobs and nodes, known to nobody else.

A round draws one secret. From it come two keys that tell nothing of each other: one makes the
numbers and is never shown, so that rows of two rounds have no number in common and nobody can
choose theirs (ties fall by it); the other salts the round's leaves and is shown with the book.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

SECRET_BYTES: Final = 32
_NUMBERS, _SALTS = b"gridloom numbers", b"gridloom salts"


def numbers(secret: bytes, ids: Iterable[str]) -> NDArray[np.uint64]:
    """The number of each UUID, as text, in the round of this secret: 64 bits.

    Half of what AES makes of the UUID, which is one block: all are told apart before they are
    halved, and without the key nothing leads back. Among 60,000 rows two have the same number in 1
    round of 10 billion; that book is refused, and the next round draws another secret.
    """
    blocks = bytes.fromhex("".join(ids).replace("-", ""))
    # No two blocks are alike, so that ECB shows nothing; and it takes 60,000 of them at once.
    cipher = Cipher(algorithms.AES(_key(secret, _NUMBERS)), modes.ECB())  # noqa: S305
    hidden = cipher.encryptor().update(blocks)
    return np.frombuffer(hidden, "<u8")[::2]


def salting_key(secret: bytes) -> bytes:
    """What salts the leaves of the round of this secret."""
    return _key(secret, _SALTS)


def _key(secret: bytes, person: bytes) -> bytes:
    return hashlib.blake2b(key=secret, person=person, digest_size=32).digest()
