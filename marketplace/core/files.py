"""Paths that strangers name: relative, plain, and the same on every system."""

from collections.abc import Sequence
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


def check_together(paths: Sequence[str], *, field: str = "files") -> None:
    """Raises Invalid unless these paths can lie in one folder: each once, no file a folder too."""
    for path in paths:
        check_path(path, field=field)
    distinct = set(paths)
    if len(distinct) < len(paths):
        raise Invalid("a path is in it twice; name each file once", field=field)
    folders = {path[:end] for path in distinct for end, letter in enumerate(path) if letter == "/"}
    if clash := min(distinct & folders, default=None):
        raise Invalid(f"{clash!r} is both a file and a folder", field=field)
