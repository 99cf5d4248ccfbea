"""What a node makes for its jobs and keeps for a while: environments, images' file systems.

Each lies in a folder of its own, named by the hash of what it was made of, is made by one while
others wait for it, and goes when it was long unused, or when room is needed. Making happens beside,
in a folder that is cleared when its maker ends, or by the next agent.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

import msgspec

from agent import cache, keeper
from agent import order as files
from agent.hardware import Machine
from agent.order import KeeperOrder, Limits, Status
from agent.sandbox import outputs, workspace

log = logging.getLogger(__name__)

_MEMORY: Final = 4 * 2**30
_UNUSED_S: Final = 14 * 24 * 3600
_FRESH_S: Final = 600
_MOST_S: Final = 3600
_POLL_S: Final = 0.1
_LEAST_INODES: Final = 500_000
"""That a disk should have left: many small files fill it without taking room."""


class NotMade(RuntimeError):
    """It could not be made; `why` is the word for the market."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why


class Shelves:
    """All that this node has made: in `orgs/<org>/` for one org's jobs, in `images/` for all."""

    def __init__(self, root: Path, downloads: Path, in_use: Callable[[Path], bool]) -> None:
        """`root`: where it lies. `downloads`: the cache, which makes room. `in_use`: whether a job
        runs in a folder."""
        self.root = root
        self._downloads, self._in_use = downloads, in_use
        self._locks: weakref.WeakValueDictionary[Path, asyncio.Lock] = weakref.WeakValueDictionary()
        self._dropping = threading.Lock()
        """Held while one is marked as used, or loses its name."""

    async def get(self, path: Path, make: Callable[[Path], Awaitable[None]]) -> Path:
        """The folder, made if it isn't there; raises what `make` raises."""
        lock = self._locks.setdefault(path, asyncio.Lock())
        async with lock:
            while not self._touch(path):
                await make(path)
        return path

    @contextlib.asynccontextmanager
    async def workbench(self, name: str) -> AsyncIterator[Path]:
        """An empty folder to make something in, gone at the end with all that runs in it."""
        folder = self._workbenches / name
        try:
            await asyncio.to_thread(_set_up, folder)
            yield folder
        finally:
            await asyncio.shield(asyncio.to_thread(_clear, folder))

    def sweep(self) -> None:
        """Ends what an earlier agent was about to make, and removes what was unused for long."""
        if self._workbenches.exists():
            for folder in self._workbenches.iterdir():
                try:
                    _clear(folder)
                except OSError as error:  # a job's start will say so, if it stands in its way
                    log.warning("%s can't be removed: %s", folder, error)
        for path in self._unused(_UNUSED_S):
            self._drop(path, _UNUSED_S)

    def make_room(self, needed: int) -> None:
        """From the cache, and then from what was made, the longest unused first; raises NoRoom."""
        while workspace.free_inodes(self._downloads) < _LEAST_INODES and self._drop_one():
            pass
        while True:
            try:
                cache.make_room(self._downloads, needed)
                return
            except cache.NoRoom:
                if not self._drop_one():
                    raise

    @property
    def _workbenches(self) -> Path:
        return self.root / "building"

    def _touch(self, path: Path) -> bool:
        """Marks it as used; False if it isn't there."""
        with self._dropping:
            try:
                os.utime(path)
            except FileNotFoundError:
                return False
            return True

    def _unused(self, least_s: float) -> list[Path]:
        """For so long, the longest first. One that was just handed out may not stand in an order
        yet."""
        made = (*self.root.glob("orgs/*/*"), *self.root.glob("images/*"))
        ages = {path: _age_s(path) for path in made}
        found = [path for path, age in ages.items() if age > least_s and not self._in_use(path)]
        return sorted(found, key=ages.__getitem__, reverse=True)

    def _drop_one(self) -> bool:
        """The longest unused; False if all are used."""
        unused = self._unused(_FRESH_S)
        if unused:
            self._drop(unused[0], _FRESH_S)
        return bool(unused)

    def _drop(self, path: Path, least_s: float) -> None:
        """Unless it was used since, or is gone. Half removed it has its name no more."""
        gone = self._workbenches / f"gone-{uuid4()}"
        with self._dropping:
            if _age_s(path) <= least_s:
                return
            gone.parent.mkdir(mode=0o755, exist_ok=True)
            path.rename(gone)
        outputs.clean(gone)


async def run(folder: Path, order: KeeperOrder, otherwise: str) -> Status:
    """Runs an order in the folder of a workbench, by a keeper like any job's, to its end; raises
    NotMade, beginning with `otherwise`, if it can't begin."""
    try:
        await asyncio.to_thread(_start, folder, order)
        while True:
            status = await asyncio.to_thread(keeper.read_status, folder)
            assert status is not None, "a keeper was started here"
            if status.state == "gone":
                break
            await asyncio.sleep(_POLL_S)
    except (files.OrderError, keeper.KeeperError, workspace.WorkspaceError) as error:
        raise NotMade("start_failed", f"{otherwise}: {error}") from None
    if not status.started_up_ms:
        raise NotMade("start_failed", f"{otherwise}: {status.detail}")
    return status


def order(
    machine: Machine,
    argv: Sequence[str],
    *,
    room: int,
    inputs: Mapping[str, str],
    env: Mapping[str, str] | None = None,
    egress: Sequence[str] = (),
    inodes: int = 2_000_000,
) -> KeeperOrder:
    """Makes something of `inputs` in /job, by the node's own Python; `room`: bytes it may write, in
    so many files."""
    assert machine.rung is not None, "orders.check refuses it"
    return KeeperOrder(
        argv=list(argv),
        # Its folder is renamed when it is done: no file system of its own.
        rung=msgspec.structs.replace(machine.rung, disk="watchdog"),
        limits=Limits(
            memory_bytes=min(_MEMORY, machine.inventory.memory_bytes),
            disk_bytes=room,
            inodes=inodes,
            cpus=list(machine.cores),
        ),
        save_ms=0,
        grace_ms=0,
        env=dict(env or {}),
        inputs=dict(inputs),
        training_env=list(machine.training.folders),
        egress=list(egress),
        networks=machine.network.allow,
    )


def keep(made: Path, path: Path) -> None:
    """Takes over a folder as `path`, safe from a loss of power: it has that name once it is on the
    disk."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(folder) != 0:
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(folder)
    made.rename(path)


def said(folder: Path) -> str:
    """The last that was written to standard error, on one line."""
    try:
        text = (folder / "stderr.log").read_text(errors="replace")[-20_000:]
    except OSError:
        return ""
    return " ".join(text.split())


def _set_up(folder: Path) -> None:
    _clear(folder)
    (folder / "job").mkdir(mode=0o755, parents=True)


def _start(folder: Path, order: KeeperOrder) -> None:
    files.write(folder / files.ORDER, order)
    files.write_paid_through(folder, _MOST_S * 1000)
    keeper.start(folder)


def _clear(folder: Path) -> None:
    """Ends what goes on there, and removes it."""
    if not folder.exists():
        return
    with contextlib.suppress(files.OrderError):
        keeper.kill(folder)
    outputs.clean(folder)


def _age_s(path: Path) -> float:
    """Seconds since it was used; less than none for what is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return -1.0
