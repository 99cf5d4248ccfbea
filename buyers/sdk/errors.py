"""Every way a call fails, as one tree. A message says what to do."""


class GridloomError(Exception):
    """What all errors of the SDK share."""


class MarketRefused(GridloomError):
    """The market said no; `code` is for programs and never changes, the message is for people.

    `field` names the input at fault, if one is; `status` is HTTP's.
    """

    def __init__(self, message: str, *, code: str, field: str = "", status: int = 400) -> None:
        super().__init__(message)
        self.message, self.code, self.field, self.status = message, code, field, status


class Unreachable(GridloomError):
    """No answer, or none that is the market's."""


class Damaged(GridloomError):
    """A file is not what its hash says, however often it was fetched or sent."""
