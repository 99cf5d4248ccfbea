"""Text that strangers send: what can't be stored is refused before it gets near a database."""

from collections.abc import Mapping

from marketplace.core.errors import Invalid


def require_plain(fields: Mapping[str, object]) -> None:
    """Raises Invalid, naming the field, if any text in it, however deep, can't be stored.

    PostgreSQL holds neither a NUL nor half of a surrogate pair; JSON can write both.
    """
    for name, value in fields.items():
        _check(name, field="")
        _check(value, field=name)


def _check(value: object, *, field: str) -> None:
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, str):
            if "\0" in found or any("\ud800" <= letter <= "\udfff" for letter in found):
                raise Invalid(
                    f"this text can't be stored: {found[:60]!a}; send plain Unicode", field=field
                )
        elif isinstance(found, Mapping):
            left += [*found.keys(), *found.values()]
        elif isinstance(found, list | tuple):
            left += found
