"""The types that all messages share, and how bytes become messages."""

from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

VERSION: Final = 5
MAX_MESSAGE: Final = 64 * 1024
PART_BYTES: Final = 64 * 2**20
"""Files are sent in parts of this size; only the last may be smaller."""
FIRST_PORT: Final = 47_900
"""Where a node takes its gang's packets (UDP): this, and its rank more."""

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Text = Annotated[str, Meta(max_length=2000)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Path = Annotated[str, Meta(min_length=1, max_length=400)]
PlaceInJob = Annotated[str, Meta(max_length=400)]
Port = Annotated[int, Meta(ge=1024, le=65_535)]
Nonce = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
BootId = Annotated[str, Meta(min_length=1, max_length=64)]

AssignmentState = Literal["accepted", "starting", "running", "draining", "gone"]
UploadKind = Literal["checkpoint", "artifact", "log"]


class Wire(Struct, frozen=True, forbid_unknown_fields=True):
    """What all structs of the wire share."""


def encode(message: object) -> bytes:
    """A message as JSON."""
    return msgspec.json.encode(message)


_Decoded = TypeVar("_Decoded")


class Malformed(ValueError):
    """A peer's message is not of this protocol; says where it goes wrong."""


def decode(data: bytes | str, kind: type[_Decoded]) -> _Decoded:
    """Decodes one struct; raises Malformed naming the offending field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from None
