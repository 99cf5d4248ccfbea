"""What a node makes for its jobs and keeps for a while: environments, images' file systems.

Each lies in a folder of its own, named by the hash of what it was made of, is made by one while
others wait for it, and goes when it was long unused, or when room is needed. Making happens beside,
in a folder that is cleared when its maker ends, or by the next agent.
"""

import asyncio
import contextlib
import os
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agent import cache, keeper
from agent import order as files
from agent.hardware import Machine
from agent.order import KeeperOrder, Limits, Status
from agent.sandbox import outputs

_MEMORY: Final = 4 * 2**30
_UNUSED_S: Final = 14 * 24 * 3600
_FRESH_S: Final = 600
_MOST_S: Final = 3600
_POLL_S: Final = 0.1


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

    async def get(self, path: Path, make: Callable[[Path], Awaitable[None]]) -> Path:
        """The folder, made if it isn't there; raises what `make` raises."""
        lock = self._locks.setdefault(path, asyncio.Lock())
        async with lock:
            if not await asyncio.to_thread(path.exists):
                await make(path)
            os.utime(path)
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
                _clear(folder)
        for path in self._unused():
            if time.time() - path.stat().st_mtime > _UNUSED_S:
                self._drop(path)

    def make_room(self, needed: int) -> None:
        """From the cache, and then from what was made, the longest unused first; raises NoRoom."""
        while True:
            try:
                cache.make_room(self._downloads, needed)
                return
            except cache.NoRoom:
                unused = self._unused()
                if not unused:
                    raise
                self._drop(unused[0])

    @property
    def _workbenches(self) -> Path:
        return self.root / "building"

    def _unused(self) -> list[Path]:
        """The longest unused first; one that was just handed out may not stand in an order yet."""
        made = (*self.root.glob("orgs/*/*"), *self.root.glob("images/*"))
        ages = {path: time.time() - path.stat().st_mtime for path in made}
        found = [path for path, age in ages.items() if age > _FRESH_S and not self._in_use(path)]
        return sorted(found, key=ages.__getitem__, reverse=True)

    def _drop(self, path: Path) -> None:
        """Half removed it has its name no more."""
        gone = self._workbenches / f"gone-{path.name}"
        gone.parent.mkdir(mode=0o755, exist_ok=True)
        _clear(gone)
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
    except (files.OrderError, keeper.KeeperError) as error:
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
) -> KeeperOrder:
    """Makes something of `inputs` in /job, by the node's own Python; `room`: bytes it may write."""
    assert machine.rung is not None, "orders.check refuses it"
    return KeeperOrder(
        argv=list(argv),
        # Its folder is renamed when it is done: no file system of its own.
        rung=msgspec.structs.replace(machine.rung, disk="watchdog"),
        limits=Limits(
            memory_bytes=min(_MEMORY, machine.inventory.memory_bytes),
            disk_bytes=room,
            inodes=2_000_000,
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
