"""What can go wrong between a buyer and the market."""


class GridloomError(Exception):
    """The base of all; `str(error)` says what to do."""


class MarketRefused(GridloomError):
    """The market said no. `code` never changes for one reason; `field` names a bad input."""

    def __init__(self, message: str, *, code: str, status: int, field: str = "") -> None:
        super().__init__(message)
        self.code, self.status, self.field = code, status, field


class Unreachable(GridloomError):
    """Nobody answers at the market's address, or its storage's."""


class Damaged(GridloomError):
    """A file arrived that is not what the manifest says; it was not kept."""
