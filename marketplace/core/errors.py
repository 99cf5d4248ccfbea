"""Every way the market says no, as one tree.

Raised low, translated once at the edge (`marketplace.http`). A message is written for the
person who will read it and says what to do; `code` is for programs and never changes.
"""


class MarketError(Exception):
    """The market refuses; `str(error)` says why and what to do."""

    code = "refused"


class Invalid(MarketError):
    """What was asked for makes no sense; `field` names the offending input, if one does."""

    code = "invalid"

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class Missing(MarketError):
    """There is no such thing, or it is somebody else's: the two must look the same."""

    code = "missing"


class Forbidden(MarketError):
    """The caller is known, and may not do this."""

    code = "forbidden"


class Unauthenticated(MarketError):
    """The caller is not known, or its credentials have ended."""

    code = "unauthenticated"


class Conflict(MarketError):
    """It was possible a moment ago: somebody else was first, or the state has moved on."""

    code = "conflict"


class InvalidTransition(Conflict):
    """An event that the row's state does not know (`marketplace.core.states`)."""

    code = "invalid_transition"


class Expired(Conflict):
    """A quote, token or hold has run out; ask for a new one."""

    code = "expired"


class NotEnoughMoney(MarketError):
    """An account would go below zero; nothing was moved."""

    code = "not_enough_money"


class TooLarge(Invalid):
    """Over a published limit; the message names the limit and the size."""

    code = "too_large"


class Unavailable(MarketError):
    """A service of ours or of somebody else's doesn't answer; trying again later may help."""

    code = "unavailable"
