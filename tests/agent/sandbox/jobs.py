"""Assignments for tests: real orders, real keepers, real sandboxes.

Which rungs are tried depends on who runs the suite: root's, or an ordinary user's; the suite runs
itself again as an ordinary user where it was started by root (test_as_ordinary_user.py).
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import keeper
from agent import order as files
from agent.order import KeeperOrder, Limits, Rung, Status
from agent.sandbox import cgroups, outputs

MIB = 2**20
IS_ROOT = os.getuid() == 0
WITHIN_S = 60.0
"""Far more than anything here takes: only a hang passes it."""


def rungs() -> list[Rung]:
    """Every rung that whoever runs this may try without mounts of their own."""
    wall = "root" if IS_ROOT else "userns"
    found = [Rung(wall=wall, limits="rlimits", disk="watchdog")]
    try:
        found.append(Rung(wall=wall, limits=cgroups.version(), disk="watchdog"))
    except cgroups.NoCgroups:
        pass
    return found


PLAIN = Rung(wall="none", limits="rlimits", disk="watchdog")
AGAIN = "GRIDLOOM_TESTS_AGAIN"
"""Set in the second run: the plain rung has had its turn in the first."""
with_plain = rungs() if AGAIN in os.environ else [*rungs(), PLAIN]
each_rung = pytest.mark.parametrize("rung", with_plain, ids=lambda rung: rung.name)
each_wall = pytest.mark.parametrize("rung", rungs(), ids=lambda rung: rung.name)


class Assignment:
    """One folder, its order, and what came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def order(self, rung: Rung, argv: list[str], **changes) -> KeeperOrder:
        """Writes order and paid time; `changes` go to the limits or else to the order."""
        limits = {"memory_bytes": 256 * MIB, "disk_bytes": 32 * MIB, "pids": 64}
        fields = {"save_ms": 200, "grace_ms": 500}
        for name, value in changes.items():
            (limits if name in Limits.__struct_fields__ else fields)[name] = value
        order = KeeperOrder(argv=argv, rung=rung, limits=Limits(**limits), **fields)
        (self.folder / "job").mkdir(exist_ok=True)
        files.write(self.folder / files.ORDER, order)
        files.write_paid_through(self.folder, 60_000)
        return order

    def start(self, rung: Rung, *argv: str, paid_ms: int = 60_000, **changes) -> None:
        """Orders and starts; `python3` in argv is the sandbox's."""
        self.order(rung, list(argv), **changes)
        files.write_paid_through(self.folder, paid_ms)
        keeper.start(self.folder)

    def run(self, rung: Rung, *argv: str, **changes) -> Status:
        """Starts, and waits for the last word."""
        self.start(rung, *argv, **changes)
        return self.end()

    def end(self) -> Status:
        status = keeper.wait(self.folder, WITHIN_S)
        assert status is not None, f"still {keeper.read_status(self.folder)}"
        return status

    def until_it_said(self, words: str) -> None:
        """Waits until the job has printed the words."""
        until(lambda: words in self.stdout(), lambda: f"{self.stdout()!r} {self.stderr()!r}")

    def stdout(self) -> str:
        return self._log("stdout.log")

    def stderr(self) -> str:
        return self._log("stderr.log")

    def _log(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""


def until(happened, otherwise=lambda: "", within_s: float = WITHIN_S) -> None:
    """Polls for what tells nobody of itself."""
    deadline = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.005)


def commands_with(marker: str) -> list[int]:
    """Processes of this machine with the marker in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path that a job's uid can reach (pytest's own folders are closed to others)."""
    folder = Path(tempfile.mkdtemp(prefix="gl-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def assignment(place: Path) -> Iterator[Assignment]:
    folder = place / "assignment"
    folder.mkdir()
    yield Assignment(folder)
    keeper.kill(folder)
    outputs.clean(folder)
