"""Identifiers that sort by the time they were made."""

import os
import time
from typing import Final
from uuid import UUID


def uuid7() -> UUID:
    """A UUID version 7 (RFC 9562 §5.7): 48 bits of milliseconds, then 74 random bits.

    Rows made one after another land side by side in an index. The time in it is for locality
    only; nothing reads it back.
    """
    return uuids7(1)[0]


def uuids7(count: int) -> list[UUID]:
    """The same for so many rows, of one millisecond and in order: such rows are appended to an index,
    none is looked up a place in it."""
    milliseconds = time.time_ns() // 1_000_000
    alike = (milliseconds & (2**48 - 1)) << 80 | 0x7 << 76 | 0x2 << 62
    random = os.urandom(10 * count)
    drawn = (int.from_bytes(random[at : at + 10], "big") for at in range(0, len(random), 10))
    return [UUID(int=alike | value) for value in sorted(value & _RANDOM for value in drawn)]


_RANDOM: Final = 2**80 - 1 & ~(0xF << 76) & ~(0x3 << 62)
"""Where a version 7 has its random bits."""
