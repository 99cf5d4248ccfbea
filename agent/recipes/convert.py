"""One parameter's value, from whatever a form, a command line or JSON sent. Pure."""

import difflib
import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec


def unknown(recipe: str, name: object, known: Mapping[str, object]) -> str:
    """Refuses a parameter that a recipe has none of, with the one that was meant."""
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(sorted(known))}"
    return f"{recipe} has no parameter {name!r}; {hint}"


def converted(name: str, value: object, kind: Any, spec: Mapping[str, Any]) -> object:
    """One value in its own type; raises ValueError saying what would do."""
    finite = not isinstance(value, float) or math.isfinite(value)
    if isinstance(value, str) and spec.get("type") in ("array", "object"):
        value = _decoded(value)
    # In lax mode "inf" would pass as a float and true as text, so they are refused by hand.
    if finite and not isinstance(value, bool):
        try:
            found: object = msgspec.convert(value, kind, strict=False)
        except (msgspec.ValidationError, OverflowError):
            pass
        else:
            if not isinstance(found, float) or math.isfinite(found):
                return found
    raise ValueError(f"{name} must be {_wanted(spec)}, not {shown(value)}")


def _decoded(text: str) -> object:
    """Lists and objects come as JSON where only text can be sent."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _wanted(spec: Mapping[str, Any]) -> str:
    """In words, what a field's JSON Schema allows."""
    if "enum" in spec:
        return "one of " + ", ".join(map(str, spec["enum"]))
    match spec.get("type"):
        case "integer":
            return f"a whole number from {spec['minimum']:,} to {spec['maximum']:,}"
        case "number" if "exclusiveMinimum" in spec:
            return f"a number above {spec['exclusiveMinimum']:g}, at most {spec['maximum']:g}"
        case "number":
            return f"a number from {spec['minimum']:g} to {spec['maximum']:g}"
        case "object":
            return f"an object ({spec['description']})"
        case "array" if "$ref" in spec["items"] or spec["items"].get("type") != "string":
            return f"a list of at most {spec['maxItems']} ({spec['description']})"
        case "array":
            return f"a list of at most {spec['maxItems']} texts ({spec['description']})"
        case _:
            return f"a text of 1 to {spec['maxLength']} characters"


def shown(value: object) -> str:
    """What was given, at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
