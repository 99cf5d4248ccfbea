"""Control groups: memory, processes and CPUs bounded by the kernel, for a whole job at once.

A job's groups are made below the groups of the agent itself, never beside them, so that whoever
bounds the agent (a service manager, a container) bounds its jobs too. cgroup v2 asks that the
agent's group be delegated to it (systemd: `Delegate=yes`); v1 asks for root.
"""

import contextlib
import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.order import Limits
from agent.sandbox.watchdog import descendants

Version = Literal["cgroup2", "cgroup1"]

_LEAF = "gridloom-agent"  # v2: where the agent itself moves, so that its group may have children
_OVERHEAD_PIDS = 2  # bubblewrap and our init are counted with the job


class NoCgroups(RuntimeError):
    """This host lets us bound nothing by control groups; says why, and what would help."""


@dataclass(frozen=True)
class Groups:
    """The groups of one job, one folder per hierarchy."""

    version: Version
    folders: tuple[Path, ...]

    def enter(self) -> None:
        """Moves the calling process; its children are born there. For a child before exec."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text("0")

    def oom_kills(self) -> int:
        """How many processes the kernel has killed because the job was out of its memory."""
        file = "memory.events" if self.version == "cgroup2" else "memory.oom_control"
        for folder in self.folders:
            try:
                pairs = (line.split() for line in (folder / file).read_text().splitlines())
            except FileNotFoundError:
                continue  # not the hierarchy of memory, or already gone
            return next((int(value) for name, value in pairs if name == "oom_kill"), 0)
        return 0

    def members(self) -> set[int]:
        """Processes of the job that still exist."""
        found: set[int] = set()
        for folder in self.folders:
            try:
                found |= {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
            except (FileNotFoundError, OSError):
                continue
        return found

    def destroy(self, within_s: float = 5.0) -> bool:
        """Kills every member and removes the groups; False if some process would not die."""
        deadline = time.monotonic() + within_s
        while True:
            for pid in self.members():
                _kill(pid)
            left = [folder for folder in self.folders if not _remove(folder)]
            if not left:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)  # the kernel tells nobody when a v1 group has become empty


def version() -> Version:
    """The stronger kind that works here; raises NoCgroups with the reasons against both."""
    reasons = []
    for kind, find in (("cgroup2", _delegated), ("cgroup1", _own_v1)):
        try:
            find()
            return kind  # type: ignore[return-value]
        except NoCgroups as reason:
            reasons.append(str(reason))
    raise NoCgroups("; ".join(reasons))


def create(name: str, limits: Limits, kind: Version) -> Groups:
    """Makes and limits the groups of a job; raises NoCgroups if the host refuses."""
    try:
        return _create_v2(name, limits) if kind == "cgroup2" else _create_v1(name, limits)
    except OSError as error:
        raise NoCgroups(f"could not make control groups: {error}") from None


def _create_v2(name: str, limits: Limits) -> Groups:
    folder = _delegated() / name
    groups = Groups("cgroup2", (folder,))
    folder.mkdir(exist_ok=True)
    try:
        _set(folder, "memory.max", limits.memory_bytes)
        _set(folder, "pids.max", limits.pids + _OVERHEAD_PIDS)
        _set(folder, "memory.oom.group", 1)
        if (folder / "memory.swap.max").exists():
            _set(folder, "memory.swap.max", 0)
        if limits.cpus and (folder / "cpuset.cpus").exists():
            _set(folder, "cpuset.cpus", _list(limits.cpus))
    except OSError:
        groups.destroy()
        raise
    return groups


def _create_v1(name: str, limits: Limits) -> Groups:
    above = _own_v1()
    groups = Groups("cgroup1", tuple(folder / name for folder in above.values()))
    try:
        for folder in groups.folders:
            folder.mkdir(exist_ok=True)
        memory = above["memory"] / name
        _set(memory, "memory.limit_in_bytes", limits.memory_bytes)
        if (memory / "memory.memsw.limit_in_bytes").exists():
            _set(memory, "memory.memsw.limit_in_bytes", limits.memory_bytes)
        _set(above["pids"] / name, "pids.max", limits.pids + _OVERHEAD_PIDS)
        if "cpuset" in above:  # a new group of v1 has no memory nodes and no CPUs at all
            parent, cpuset = above["cpuset"], above["cpuset"] / name
            _set(cpuset, "cpuset.mems", (parent / "cpuset.effective_mems").read_text())
            every = (parent / "cpuset.effective_cpus").read_text()
            _set(cpuset, "cpuset.cpus", _list(limits.cpus) if limits.cpus else every)
    except OSError:
        groups.destroy()
        raise
    return groups


def binds_cpus(kind: Version) -> bool:
    """Whether groups of this kind keep a job on its CPUs, or only its own goodwill does."""
    try:
        if kind == "cgroup1":
            return "cpuset" in _own_v1()
        return "cpuset" in (_delegated() / "cgroup.subtree_control").read_text().split()
    except (NoCgroups, OSError):
        return False


def _own_v1() -> dict[str, Path]:
    """Controller → the agent's own folder in its hierarchy; raises NoCgroups."""
    mounts = _mounts()
    found: dict[str, Path] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in ("memory", "pids", "cpuset") and controller in mounts:
                found[controller] = _below(mounts[controller], path)
    for needed in ("memory", "pids"):
        if needed not in found:
            raise NoCgroups(f"cgroup v1 has no {needed} controller here")
        if not os.access(found[needed], os.W_OK):
            raise NoCgroups("cgroup v1 is not writable: it takes root, and a container's consent")
    return found


def _delegated() -> Path:
    """The v2 group below which jobs' groups are made, its controllers switched on.

    The agent's own, if no stranger lives in it; else, for root, the top of the hierarchy, as
    container engines do. Raises NoCgroups.
    """
    mounts = _mounts()
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    if own is None or "2" not in mounts:
        raise NoCgroups("cgroup v2 is not mounted")
    folder = _below(mounts["2"], own)
    try:
        return _divided(folder.parent if folder.name == _LEAF else folder)
    except NoCgroups:
        if os.getuid() != 0:
            raise
        return _divided(mounts["2"][0])


def _divided(folder: Path) -> Path:
    """This group, once it can bound children; raises NoCgroups."""
    offered = (folder / "cgroup.controllers").read_text().split()
    if not {"memory", "pids"} <= set(offered):
        raise NoCgroups("cgroup v2 does not control memory and processes here")
    if not os.access(folder, os.W_OK):
        raise NoCgroups(
            "cgroup v2 is not delegated: start the agent by systemd with Delegate=yes and "
            f"DelegateSubgroup={_LEAF}, or under `systemd-run --user --scope -p Delegate=yes`"
        )
    wanted = [name for name in offered if name in ("memory", "pids", "cpuset")]
    enabled = (folder / "cgroup.subtree_control").read_text().split()
    try:
        if not set(wanted) <= set(enabled):
            _switch_on(folder, " ".join(f"+{name}" for name in wanted))
    except OSError as error:
        raise NoCgroups(f"cgroup v2 can't be divided: {error}") from None
    return folder


def _switch_on(folder: Path, controllers: str) -> None:
    """A group with processes in it can't bound children: the agent moves to a leaf first."""
    try:
        _set(folder, "cgroup.subtree_control", controllers)
        return
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    members = [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    if not set(members) <= set(descendants(os.getpid())):
        raise NoCgroups("the agent shares its cgroup v2 with others, so that it can't be divided")
    leaf = folder / _LEAF
    leaf.mkdir(exist_ok=True)
    for pid in members:
        _set(leaf, "cgroup.procs", pid)
    _set(folder, "cgroup.subtree_control", controllers)


def _mounts() -> dict[str, tuple[Path, str]]:
    """Controller, or "2" → (where its hierarchy is mounted, which part of it is)."""
    found: dict[str, tuple[Path, str]] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        root, point = fields.split()[3:5]
        kind, _, options = rest.split(maxsplit=2)
        if kind == "cgroup2":
            found["2"] = (Path(point), root)
        elif kind == "cgroup":
            found |= {name: (Path(point), root) for name in options.split(",")}
    return found


def _below(mount: tuple[Path, str], path: str) -> Path:
    """The folder of the group `path`, given that only the part below the mount's root is seen."""
    point, root = mount
    inside = path.removeprefix(root) if root != "/" else path
    return point / inside.lstrip("/")


def _set(folder: Path, file: str, value: int | str) -> None:
    (folder / file).write_text(f"{value}")


def _list(cpus: list[int]) -> str:
    return ",".join(map(str, cpus))


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
