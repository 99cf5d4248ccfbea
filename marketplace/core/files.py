"""Paths that strangers name: relative, plain, and the same on every system."""

from typing import Final

from marketplace.core.errors import Invalid

MAX_PATH: Final = 400


def check_path(path: str, *, field: str = "path") -> str:
    """The same path, if it can only ever lie beneath its folder; raises Invalid saying why not."""
    parts = path.split("/")
    if not path or len(path) > MAX_PATH:
        why = f"is empty or longer than {MAX_PATH} characters"
    elif any(ord(letter) < 32 or ord(letter) == 127 or letter == "\\" for letter in path):
        why = "has control characters or backslashes"
    elif any(part in ("", ".", "..") for part in parts):
        why = 'must be relative, without empty parts, "." or ".."'
    else:
        return path
    raise Invalid(f"the path {path[:80]!r} {why}", field=field)
