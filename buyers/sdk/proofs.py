"""Whether a row stood in a round: the market's proof against the root that it published.

Written apart from the market's own code, from RFC 6962: a leaf is SHA-256 of 0x00, the salt and the
row; what joins two hashes is SHA-256 of 0x01 and both.
"""

import hashlib
from typing import Final

from buyers.sdk.round_shapes import Proof

_SALT_BYTES: Final = 16


def holds(proof: Proof) -> bool:
    """Whether the row, at its place among so many leaves, leads to the proof's root."""
    try:
        salt, beside = bytes.fromhex(proof.salt), [bytes.fromhex(each) for each in proof.path]
    except ValueError:
        return False
    if len(salt) != _SALT_BYTES or not 0 <= proof.index < proof.leaves:
        return False
    found = hashlib.sha256(b"\x00" + salt + proof.row.encode()).digest()
    at, last = proof.index, proof.leaves - 1
    for each in beside:
        if not last:
            return False
        # A hash with nobody on its right goes up alone until it has somebody on its left.
        while at % 2 == 0 and at == last:
            at, last = at // 2, last // 2
        pair = (each, found) if at % 2 else (found, each)
        found = hashlib.sha256(b"\x01" + b"".join(pair)).digest()
        at, last = at // 2, last // 2
    # Nothing may be left out: only steps up alone may still lead to the top.
    while last and at == last and at % 2 == 0:
        at, last = at // 2, last // 2
    return last == 0 and found.hex() == proof.root
