"""Paths that strangers name: refused here by the very rule by which nodes would refuse them."""

from collections.abc import Sequence

from agent.protocol import paths as rule
from marketplace.core.errors import Invalid


def check_path(path: str, *, field: str = "path") -> str:
    """The same path, if it can only ever lie beneath its folder; raises Invalid saying why not."""
    if why := rule.fault_of_path(path):
        raise Invalid(f"the path {path[:80]!r} {why}", field=field)
    return path


def check_together(paths: Sequence[str], *, field: str = "files") -> None:
    """Raises Invalid unless these paths can lie in one folder: each once, no file a folder too."""
    if why := rule.fault_of_paths(paths):
        raise Invalid(why, field=field)


def check_place(place: str, files: Sequence[str], *, project: Sequence[str]) -> None:
    """Raises Invalid unless `files` can be laid back at `place` below /job, over the project in
    /job/work."""
    if why := rule.fault_of_place(place):
        raise Invalid(f"the place {place[:80]!r} {why}", field="place")
    laid = {f"{place}/{path}" for path in files} | {f"work/{path}" for path in project}
    if clash := rule.clash_of_paths(laid):
        raise Invalid(
            f"laid back at {place[:80]!r}, {clash[:80]!r} would be both a file and a folder",
            field="place",
        )
