"""Memory and disk of a job, polled: what bounds it where the kernel is not asked to.

Weaker than the kernel's own bounds: between two polls a job may pass its limit, so the host needs
some slack. The keeper polls every second and kills.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.order import KeeperOrder, Why

_PAGE = os.sysconf("SC_PAGE_SIZE")
_DUTY = 0.05  # at most this share of the time goes into walking the work folder
_TMPFS = ("tmp", "dev/shm")


@dataclass(frozen=True)
class Verdict:
    """The limit that was passed, and by how much, in words."""

    why: Why
    detail: str


class Watchdog:
    """Watches the tree of processes below init, and the work folder."""

    def __init__(self, job: Path, order: KeeperOrder) -> None:
        self._job = job
        self._limits = order.limits
        self._watches_memory = order.rung.limits == "rlimits"
        self._watches_disk = order.rung.disk == "watchdog"
        self._tmpfs = _TMPFS if order.rung.wall != "none" else ()
        self._walk_at = 0.0
        self._used_then = 0
        self._free_then = _free(job)

    def check(self, init_pid: int) -> Verdict | None:
        """Call each second. None if all is within the limits, or nothing is left to watch."""
        tree = descendants(init_pid)
        verdict = self._check_memory(init_pid, tree) if self._watches_memory else None
        return verdict or (self._check_disk(tree) if self._watches_disk else None)

    def _check_memory(self, init_pid: int, tree: list[int]) -> Verdict | None:
        limit = self._limits.memory_bytes
        # Files in memory: those with a name, and those without.
        in_files = sum(_used(Path(f"/proc/{init_pid}/root", name)) for name in self._tmpfs)
        in_files += sum({info.st_ino: info.st_blocks * 512 for info in _memfds(tree)}.values())
        # The sum of resident sizes counts shared pages many times, but costs nothing; the
        # proportional sizes, which walk page tables, are only asked for when it is too high.
        if in_files + sum(map(_resident, tree)) <= limit:
            return None
        used = in_files + sum(map(_proportional, tree))
        if used <= limit:
            return None
        return Verdict("memory", f"{used >> 20} MiB in use, {limit >> 20} MiB booked")

    def _check_disk(self, tree: list[int]) -> Verdict | None:
        """Walks the folder when it is time, or when the disk lost half of what was left to it."""
        now, free = time.monotonic(), _free(self._job)
        left = self._limits.disk_bytes - self._used_then
        if now < self._walk_at and self._free_then - free < left // 2:
            return None
        try:
            used, count = self._measure(tree)
        except _Hidden as hidden:
            return Verdict("disk", str(hidden))
        self._walk_at = time.monotonic() + (time.monotonic() - now) / _DUTY
        self._used_then, self._free_then = used, free
        if used > self._limits.disk_bytes:
            booked = self._limits.disk_bytes >> 20
            return Verdict("disk", f"{used >> 20} MiB written, {booked} MiB booked")
        if count > self._limits.inodes:
            return Verdict("disk", f"more than {self._limits.inodes} files and folders")
        return None

    def _measure(self, tree: list[int]) -> tuple[int, int]:
        """(allocated bytes, entries) of the folder and of files deleted but still open."""
        used = count = 0
        seen: set[tuple[int, int]] = set()
        device = os.stat(self._job).st_dev
        for info in (*_entries(self._job, self._limits.inodes), *_deleted(tree, device)):
            count += 1
            if (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                used += info.st_blocks * 512
        return used, count


class _Hidden(Exception):
    """A folder that can't be measured: nothing may hide there."""


def descendants(pid: int) -> list[int]:
    """The process and all below it, by one pass over /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                fields = Path("/proc", name, "stat").read_text(errors="replace")
            except OSError:
                continue
            parent = int(fields.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    tree = [pid]
    for one in tree:
        tree.extend(children.get(one, ()))
    return tree


def _entries(folder: Path, most: int) -> Iterator[os.stat_result]:
    """lstat of all below, at most `most` + 1 of them; what vanishes meanwhile is skipped."""
    pending, count = [os.fspath(folder)], 0
    while pending:
        path = pending.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        info = entry.stat(follow_symlinks=False)
                        yield info
                        if stat.S_ISDIR(info.st_mode):
                            pending.append(entry.path)
                    count += 1
                    if count > most:
                        return
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            inside = path.removeprefix(os.fspath(folder))[:80]
            raise _Hidden(f"folder {inside!r}… can't be measured: {error.strerror}") from None


def _deleted(tree: list[int], device: int) -> Iterator[os.stat_result]:
    """Files without a name that the job's processes hold open: they fill the disk as well."""
    for path in _open_files(tree):
        with contextlib.suppress(OSError):
            info = os.stat(path)
            if info.st_nlink == 0 and info.st_dev == device and stat.S_ISREG(info.st_mode):
                yield info


def _memfds(tree: list[int]) -> Iterator[os.stat_result]:
    """Anonymous files in memory, which no process need have mapped."""
    for path in _open_files(tree):
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith("/memfd:"):
                yield os.stat(path)


def _open_files(tree: list[int]) -> Iterator[str]:
    for pid in tree:
        with contextlib.suppress(OSError):
            yield from (f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return _resident(pid)
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _used(mount: Path) -> int:
    """Bytes in a tmpfs of the sandbox, seen through its init's root folder."""
    try:
        space = os.statvfs(mount)
    except OSError:
        return 0
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def _free(folder: Path) -> int:
    space = os.statvfs(folder)
    return space.f_bfree * space.f_frsize
