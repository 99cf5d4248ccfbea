"""A secret as the market shows it: without its value."""

from datetime import datetime
from uuid import UUID

from msgspec import Struct


class Secret(Struct, frozen=True):
    """A secret without its value; `trust` is the least of a site that is given it."""

    id: UUID
    name: str
    trust: str
    set_at: datetime
    used_at: datetime | None
