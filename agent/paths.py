"""Names and paths that the market sends: on this machine's disk they must lead nowhere else.

The same rule as the market's own (marketplace.core.files), which the agent can't import, and
mustn't rely on: a market that was broken into still writes only into a job's folder.
"""

import re
from collections.abc import Iterable
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STRANGE: Final = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
_MAX_PATH: Final = 400
_MAX_PART_BYTES: Final = 255
"""What file systems take."""


def fault_of_name(name: str) -> str:
    """Why an input can't have that name, which becomes a folder's; "" if it can."""
    if _NAME.fullmatch(name):
        return ""
    return f"the input's name {name[:80]!r} is not plain letters, digits, dots and dashes"


def fault_of_paths(paths: Iterable[str]) -> str:
    """Why these files can't lie in one folder; "" if they can."""
    seen: set[str] = set()
    for path in paths:
        if why := _fault(path):
            return f"the input file {path[:80]!r} {why}"
        if path in seen:
            return f"the input file {path[:80]!r} is in it twice"
        seen.add(path)
    folders = {path[:end] for path in seen for end, letter in enumerate(path) if letter == "/"}
    clash = min(seen & folders, default="")
    return f"the input file {clash[:80]!r} is a folder too" if clash else ""


def _fault(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "would lie outside of its folder, or has no plain relative path"
    if _STRANGE.search(path):
        return "has control characters or backslashes"
    if len(path) > _MAX_PATH or any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        return "has too long a name"
    return ""
