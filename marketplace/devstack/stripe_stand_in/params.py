"""Stripe's form encoding: `line_items[0][price_data][currency]=usd`, read with its errors."""

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl

from marketplace.devstack.stripe_stand_in.errors import (
    StripeError,
    missing_parameter,
    unknown_parameter,
)

Tree = dict[str, "Tree | str"]
_PART = re.compile(r"\[([^\[\]]*)\]")
_MOST_PARTS = 500


def decode(text: str) -> "Params":
    """Raises StripeError for a body that is no form, or a field that is both value and map."""
    tree: Tree = {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_PARTS, errors="strict")
    except (ValueError, UnicodeDecodeError):
        raise StripeError("Invalid request: the body is no form") from None
    for place, (name, value) in enumerate(pairs):
        head, _, _ = name.partition("[")
        # `expand[]` names no place in its list: any that keeps the order will do.
        path = [head, *(part or str(place) for part in _PART.findall(name))]
        node = tree
        for part in path[:-1]:
            below = node.setdefault(part, {})
            if not isinstance(below, dict):
                raise StripeError("Invalid request: both a value and a map", param=name)
            node = below
        node[path[-1]] = value
    return Params(tree)


class Params:
    """Parameters of one request, or of one map inside it. `name` errors carry the full path."""

    def __init__(self, tree: Tree, path: str = "") -> None:
        self.tree = tree
        self._path = path

    def name(self, key: str) -> str:
        return f"{self._path}[{key}]" if self._path else key

    def __contains__(self, key: str) -> bool:
        return key in self.tree

    def only(self, allowed: Iterable[str]) -> None:
        """Raises Stripe's `parameter_unknown` for any other."""
        for key in self.tree.keys() - set(allowed):
            raise unknown_parameter(self.name(key))

    def text(self, key: str, default: str = "") -> str:
        value = self.tree.get(key, default)
        if isinstance(value, dict):
            raise StripeError(f"Invalid string: {value}", param=self.name(key))
        return value

    def optional(self, key: str) -> str | None:
        """The text, or None where it is left out or empty."""
        return self.text(key) or None

    def required(self, key: str) -> str:
        if not self.tree.get(key):
            raise missing_parameter(self.name(key))
        return self.text(key)

    def integer(self, key: str, *, least: int = 0, most: int = 99_999_999) -> int:
        text = self.required(key)
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise StripeError(
                f"Invalid integer: {text}", code="parameter_invalid_integer", param=self.name(key)
            )
        number = int(text)
        if number < least:
            raise StripeError(
                f"Invalid integer: must be greater than or equal to {least}",
                code="parameter_invalid_integer",
                param=self.name(key),
            )
        if number > most:
            raise StripeError(
                f"{self.name(key)} must be no more than {most}",
                code="amount_too_large",
                param=self.name(key),
            )
        return number

    def boolean(self, key: str) -> bool:
        text = self.text(key, "false")
        if text not in {"true", "false"}:
            raise StripeError(f"Invalid boolean: {text}", param=self.name(key))
        return text == "true"

    def within(self, key: str) -> "Params":
        """The map under `key`; empty where there is none."""
        value = self.tree.get(key, {})
        if not isinstance(value, dict):
            raise StripeError("Invalid object", param=self.name(key))
        return Params(value, self.name(key))

    def each(self, key: str) -> list["Params"]:
        """The maps of the list under `key`, in order."""
        inner = self.within(key)
        return [inner.within(place) for place in sorted(inner.tree, key=_place)]

    def texts(self, key: str) -> list[str]:
        """The strings of the list under `key`, in order."""
        inner = self.within(key)
        return [inner.text(place) for place in sorted(inner.tree, key=_place)]

    def metadata(self, before: dict[str, str] | None = None) -> dict[str, str]:
        """`before` with what is said here; an empty value removes its key."""
        inner = self.within("metadata") if self.tree.get("metadata") else Params({})
        merged = {**(before or {}), **{key: inner.text(key) for key in inner.tree}}
        return {key: value for key, value in merged.items() if value != ""}


def _place(key: str) -> int:
    if not key.isdigit():
        raise StripeError("Invalid array", param=key)
    return int(key)
