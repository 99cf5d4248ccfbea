"""How Stripe says no: a status and an `error` object, as the SDKs expect them."""

from typing import Any


class StripeError(Exception):
    """One error answer. `kept` tells whether what was done before it stays done.

    Stripe keeps the traces of a declined card (the failed charge), and nothing of a request
    that was wrong in itself.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        param: str = "",
        status: int = 400,
        kind: str = "invalid_request_error",
        **more: object,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kept = kind == "card_error"
        said: dict[str, object] = {"type": kind, "message": message, "code": code, "param": param}
        self.body: dict[str, Any] = {
            "error": {name: value for name, value in {**said, **more}.items() if value}
        }


def missing(kind: str, pk: str) -> StripeError:
    """No such object, or not this account's."""
    name = kind.replace("_", " ").replace(".", " ")
    return StripeError(f"No such {name}: '{pk}'", code="resource_missing", param="id", status=404)


def unknown_parameter(name: str) -> StripeError:
    return StripeError(f"Received unknown parameter: {name}", code="parameter_unknown", param=name)


def missing_parameter(name: str) -> StripeError:
    return StripeError(f"Missing required param: {name}.", code="parameter_missing", param=name)
