"""Words of bubblewrap's command line that every kind of sandbox is put together from."""

from collections.abc import Mapping
from pathlib import Path


def parents(path: str, top: str = "") -> list[str]:
    """The folders above `path` and below `top`, open to everybody: bubblewrap's own would be closed
    to the job."""
    folders = [str(folder) for folder in reversed(Path(path).parents)][1:]
    return [word for folder in folders for word in open_folder(top + folder)]


def cores(top: str = "") -> list[str]:
    """Where OpenMP and psutil count cores and NUMA nodes. `top`: the job's root."""
    path = "/sys/devices/system"
    return [*parents(path, top), "--ro-bind-try", path, top + path]


def open_folder(path: str) -> list[str]:
    """A folder that everybody may look into."""
    return ["--perms", "0755", "--dir", path]


def each(option: str, binds: Mapping[str, str]) -> list[str]:
    """target → source."""
    return [word for target, source in binds.items() for word in (option, source, target)]
