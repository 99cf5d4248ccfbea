"""Names and paths that one side hands the other: on a node's disk they must lead nowhere else.

One rule for both. The market refuses by it what a buyer declares, so that no node is left to refuse
it; the agent asks it again and never relies on the market's word: a market that was broken into
still writes only into a job's folder.
"""

import re
from collections.abc import Iterable
from typing import Final

MAX_PATH: Final = 400
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STRANGE: Final = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
_MAX_PART_BYTES: Final = 255
"""What file systems take."""
_PLACES: Final = frozenset({"output", "work"})
"""Below /job a job writes here alone, so a checkpoint can lie nowhere else."""


def fault_of_name(name: str) -> str:
    """Why an input can't have that name, which becomes a folder's; "" if it can."""
    if _NAME.fullmatch(name):
        return ""
    return f"the input's name {name[:80]!r} is not plain letters, digits, dots and dashes"


def fault_of_path(path: str) -> str:
    """Why no file can lie at that path below a folder; "" if one can."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "would lie outside of its folder, or has no plain relative path"
    if _STRANGE.search(path):
        return "has control characters or backslashes"
    if len(path) > MAX_PATH or any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        return "has too long a name"
    return ""


def fault_of_paths(paths: Iterable[str]) -> str:
    """Why these files can't lie in one folder; "" if they can."""
    seen: set[str] = set()
    for path in paths:
        if why := fault_of_path(path):
            return f"the file {path[:80]!r} {why}"
        if path in seen:
            return f"the file {path[:80]!r} is in it twice"
        seen.add(path)
    clash = clash_of_paths(seen)
    return f"{clash[:80]!r} is both a file and a folder" if clash else ""


def clash_of_paths(paths: Iterable[str]) -> str:
    """A path that is both a file and a folder; "" if none is."""
    seen = set(paths)
    folders = {path[:end] for path in seen for end, letter in enumerate(path) if letter == "/"}
    return min(seen & folders, default="")


def fault_of_place(place: str) -> str:
    """Why a checkpoint can't have lain there below /job; "" if it can, or if no place is told."""
    if not place:
        return ""
    if place.split("/", maxsplit=1)[0] not in _PLACES:
        return "lies outside of the job's folders"
    return fault_of_path(place)
