"""Our init inside an image's file system, which may have no Python, and another C library: this
host's own interpreter, its libraries and its loader, bound where nothing of the image's looks.

The loader is told by its command line where its libraries are, so that the job, which is started
by the image's own, hears nothing of it.
"""

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

FOLDER: Final = "/opt/gridloom/host"
_LIBRARIES: Final = f"{FOLDER}/lib"
_WITHIN_S: Final = 20.0
# What init imports, and the files that this maps: extension modules, the loader.
_LOOK: Final = """
import ctypes, json, os, resource, select, _socket, fcntl, termios, time, _signal
files = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/" in line}
print(json.dumps({"library": os.path.dirname(os.__file__), "files": sorted(files)}))
"""


class CantBorrow(RuntimeError):
    """This host's Python can't be used in an image's file system; says why."""


def command(python: str) -> list[str]:
    """What runs this host's interpreter inside, as the first words of an argv."""
    loader, _ = _parts(python)
    return [f"{_LIBRARIES}/{Path(loader).name}", "--library-path", _LIBRARIES, FOLDER + python]


def binds(python: str) -> dict[str, str]:
    """Target inside → source on this host, all to be read only; raises CantBorrow."""
    return _parts(python)[1]


@cache
def _parts(python: str) -> tuple[str, dict[str, str]]:
    """The loader, and what is bound where. Libraries go by the names that they are asked for."""
    found = json.loads(_run(python, "-I", "-S", "-c", _LOOK))
    objects = [path for path in found["files"] if ".so" in os.path.basename(path)]
    loader = next((path for path in objects if os.path.basename(path).startswith("ld-")), "")
    if not loader:
        raise CantBorrow(f"{python} is started by no loader (ld-linux) that is known here")
    modules = [path for path in objects if path.startswith(found["library"])]
    libraries: dict[str, str] = {}
    for path in (python, *modules):
        for line in _run(loader, "--list", path).splitlines():
            name, arrow, place = line.strip().partition(" => ")
            if arrow and "/" not in name and place.startswith("/"):
                libraries[f"{_LIBRARIES}/{name}"] = place.rpartition(" (")[0]
    return loader, {
        FOLDER + python: python,
        FOLDER + found["library"]: found["library"],
        f"{_LIBRARIES}/{Path(loader).name}": loader,
        **libraries,
    }


def _run(*argv: str) -> str:
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, check=True, timeout=_WITHIN_S, env={}
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise CantBorrow(f"{argv[0]} can't be looked into: {error}") from None
