"""What a running job leaves on the machine beside its folder, in case its keeper dies.

`sandbox.json` in the assignment's folder names the init process (with its start time, since a
process id may come again) and the control groups; whoever finds the keeper dead makes sure with it
that nothing survives.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from agent import order as files
from agent.sandbox.cgroups import Groups, Version
from agent.sandbox.launch import Running
from agent.sandbox.watchdog import descendants

_FILE = "sandbox.json"
_WITHIN_S = 5.0


class _Traces(Struct, frozen=True):
    processes: dict[int, int]
    """pid → start, in clock ticks since boot, of bubblewrap and our init"""
    version: Version | None
    groups: list[str]


class Survivors(RuntimeError):
    """Processes of a dead job that can't be killed."""


def record(folder: Path, running: Running) -> None:
    """Writes down what the job consists of."""
    pids = {running.process.pid, running.init_pid}
    groups = running.groups
    traces = _Traces(
        processes={pid: start for pid in pids if (start := _started(pid)) is not None},
        version=groups.version if groups else None,
        groups=[str(one) for one in groups.folders] if groups else [],
    )
    files.replace(folder / _FILE, msgspec.json.encode(traces))


def forget(folder: Path) -> None:
    """The keeper has ended the job itself."""
    (folder / _FILE).unlink(missing_ok=True)


def erase(folder: Path) -> None:
    """Kills what may have survived a keeper, and waits for it; raises Survivors."""
    try:
        traces = msgspec.json.decode((folder / _FILE).read_bytes(), type=_Traces)
    except FileNotFoundError:
        return
    deadline = time.monotonic() + _WITHIN_S
    while alive := [pid for pid, start in traces.processes.items() if _started(pid) == start]:
        for one in (pid for root in alive for pid in descendants(root)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise Survivors(f"processes {alive} of {folder} can't be killed")
        time.sleep(0.01)  # not our children: nobody tells us of their end
    if traces.version:
        groups = Groups(traces.version, tuple(map(Path, traces.groups)))
        if not groups.destroy(_WITHIN_S):
            raise Survivors(f"processes {sorted(groups.members())} of {folder} can't be killed")
    forget(folder)


def _started(pid: int) -> int | None:
    """A process's start in clock ticks since boot; None once it is dead (a zombie is)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
