"""What the processes in one rank's sandbox leave for each other: files in a folder of its /tmp.

Ray stands between the process that the agent started and those that train, and passes on neither
signals nor exit codes; in one sandbox, a file does.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from agent.recipes.job import Stop

FOLDER: Final = "/tmp/gridloom"
RAY_LOG: Final = f"{FOLDER}/ray.log"
_STOP: Final = Path(FOLDER, "stop")
_VERDICT: Final = Path(FOLDER, "verdict.json")
_SAVED: Final = Path(FOLDER, "saved")
_SAID: Final = Path(FOLDER, "said")
_LOOK_S: Final = 0.25


class Verdict(Struct, frozen=True):
    """How the recipe left: a `catalog.Exit`, and the words for a person."""

    code: int
    message: str = ""


def begin() -> None:
    """Makes the folder."""
    Path(FOLDER).mkdir(exist_ok=True)
    _SAID.touch()


def ask_to_stop() -> None:
    """SIGTERM came, to a process that does not train itself."""
    _STOP.touch()


class Asked(Stop):
    """The same question as `Stop`, asked of the note."""

    @property
    def asked(self) -> bool:
        """Whether it is time to leave."""
        return _STOP.exists()


def leave(verdict: Verdict) -> None:
    """Says how the recipe ended here; the first word stays."""
    if not _VERDICT.exists():
        beside = _VERDICT.with_suffix(f".{os.getpid()}")
        beside.write_bytes(msgspec.json.encode(verdict))
        beside.rename(_VERDICT)


def has_verdict() -> bool:
    """Whether the recipe has left here."""
    return _VERDICT.exists()


def verdict(code: int = 0, message: str = "") -> Verdict:
    """How it left; the given words if nobody has said."""
    if not _VERDICT.exists():
        return Verdict(int(code), message)
    return msgspec.json.decode(_VERDICT.read_bytes(), type=Verdict)


def saved(*, is_so: bool) -> None:
    """Whether all that was learnt before somebody was lost lies in a checkpoint."""
    if is_so:
        _SAVED.touch()
    else:
        _SAVED.unlink(missing_ok=True)


def is_saved() -> bool:
    """The same, asked."""
    return _SAVED.exists()


def say(line: str) -> None:
    """A line for the job's log."""
    with _SAID.open("ab", buffering=0) as file:
        file.write(line.encode() + b"\n")


def repeat(tell: Callable[[str], None]) -> None:
    """For ever: tells on what is said. To be run in a thread."""
    with _SAID.open(errors="replace") as file:
        while True:
            line = file.readline()
            if line:
                tell(line.rstrip("\n"))
            else:
                time.sleep(_LOOK_S)
