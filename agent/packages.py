"""Jobs' own environments: built from a lock, once, and kept by its hash.

A job whose project names packages comes with a lock: exact versions of wheels, each with its
SHA-256. The node builds it in a sandbox of its own, by a keeper like any job's, that reaches the
index's hosts and nothing else; uv installs wheels only, and every hash is checked.

Whose torch? A lock either names a torch of its own, and all of it is fetched, CUDA and all; or it
leaves torch to the node, having been resolved together with the version that the node advertises.
Then the node's build of torch, which fits its driver, is linked in, with the libraries that came
with it (`FAMILY`), and nothing else of the node's own environment is seen: what a job gets is its
lock, the same on every node, but for the build of torch.

What is built belongs to one org, is read-only for its jobs, and goes when it was long unused.
"""

import asyncio
import contextlib
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec
import uv

from agent import cache, index, keeper, protocol
from agent import order as files
from agent.hardware import Machine
from agent.order import KeeperOrder, Limits, Status
from agent.protocol import Packages
from agent.sandbox import bubblewrap, outputs

FAMILY: Final = r"torch|triton|pytorch-triton|nvidia-(?!ml-py).*|cuda-.*"
"""torch, and what only its builds bring (buyers.requirements has the same)."""
_GIB: Final = 2**30
_MEMORY: Final = 4 * _GIB
_UNPACKED: Final = 5
"""Wheels unpack to three to four times their size, as measured on torch, transformers and ray."""
_UNKNOWN: Final = 8 * _GIB
"""Room for a lock whose index told no sizes."""
_UNUSED_S: Final = 14 * 24 * 3600
_FRESH_S: Final = 600
_MOST_S: Final = 3600
_POLL_S: Final = 0.1
_PYTHON: Final = re.compile(r"python[0-9.]*")
_SCRIPT: Final = Path(__file__).with_name("sandbox") / "build.py"


class NotBuilt(RuntimeError):
    """An environment could not be built; `why` is the word for the market."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why


class Builds:
    """All environments of this node: each is built by one, while others wait for it."""

    def __init__(
        self, root: Path, downloads: Path, machine: Machine, in_use: Callable[[Path], bool]
    ) -> None:
        """`root`: where built ones lie; builds go on beside it. `downloads`: the cache, which makes
        room. `in_use`: whether a job runs in an environment."""
        self._root, self._downloads, self._machine = root, downloads, machine
        self._in_use = in_use
        self._building = root / "building"
        self._locks: weakref.WeakValueDictionary[Path, asyncio.Lock] = weakref.WeakValueDictionary()

    async def get(self, org: UUID, packages: Packages, say: Callable[[str], None]) -> Path:
        """The environment's folder, built if it isn't there; raises NotBuilt, OSError, NoRoom."""
        path = self._root / "orgs" / str(org) / packages.sha256
        lock = self._locks.setdefault(path, asyncio.Lock())
        async with lock:
            if not path.exists():
                await self._build(path, packages, say)
            os.utime(path)
        return path

    def sweep(self) -> None:
        """Ends builds that an earlier agent has left, and removes what was unused for long."""
        if self._building.exists():
            for folder in self._building.iterdir():
                _clear(folder)
        for path in self._unused():
            if time.time() - path.stat().st_mtime > _UNUSED_S:
                outputs.clean(path)

    def _make_room(self, needed: int) -> None:
        """From the cache, and then from environments, the longest unused first; raises NoRoom."""
        while True:
            try:
                cache.make_room(self._downloads, needed)
                return
            except cache.NoRoom:
                unused = self._unused()
                if not unused:
                    raise
                outputs.clean(unused[0])

    def _unused(self) -> list[Path]:
        """The longest unused first; one that was just handed out may not stand in an order yet."""
        ages = {path: time.time() - path.stat().st_mtime for path in self._root.glob("orgs/*/*")}
        found = [path for path, age in ages.items() if age > _FRESH_S and not self._in_use(path)]
        return sorted(found, key=ages.__getitem__, reverse=True)

    async def _build(self, path: Path, packages: Packages, say: Callable[[str], None]) -> None:
        room = _GIB + _UNPACKED * packages.bytes if packages.bytes else _UNKNOWN
        await asyncio.to_thread(self._make_room, room)
        folder = self._building / f"{path.parent.name}-{packages.sha256}"
        say(f"building its environment of {packages.count} packages")
        try:
            await asyncio.to_thread(self._start, folder, packages, room)
            status = await self._end(folder)
            if status.exit_code != 0:
                away = await asyncio.to_thread(self._why_away, packages, status)
                raise _failure(folder, status, away)
            python = bubblewrap.python_of(self._machine.training.folders[0])
            await asyncio.to_thread(_keep, folder / "job" / "env", path, python)
        except (files.OrderError, keeper.KeeperError) as error:
            raise NotBuilt("start_failed", f"its environment could not be built: {error}") from None
        finally:
            await asyncio.shield(asyncio.to_thread(_clear, folder))

    def _why_away(self, packages: Packages, status: Status) -> str:
        """Why the index is to blame for a build's end; "" if it is not."""
        installed = status.why == "exited" and status.exit_signal is None
        return index.why_away(packages, self._machine.network.allow) if installed else ""

    def _start(self, folder: Path, packages: Packages, room: int) -> None:
        _clear(folder)
        (folder / "job").mkdir(mode=0o755, parents=True)
        (folder / "lock.txt").write_text(packages.text)
        files.write(folder / files.ORDER, self._order(folder, packages, room))
        files.write_paid_through(folder, _MOST_S * 1000)
        keeper.start(folder)

    def _order(self, folder: Path, packages: Packages, room: int) -> KeeperOrder:
        machine = self._machine
        assert machine.rung is not None, "orders.check refuses it"
        inside = "/job/inputs"
        return KeeperOrder(
            argv=[
                *("python", "-I", f"{inside}/build.py", f"{inside}/uv", f"{inside}/lock.txt"),
                *("/job/env", FAMILY if packages.torch else ""),
            ],
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
            env={
                "UV_DEFAULT_INDEX": packages.index,
                "UV_CACHE_DIR": "/job/cache",
                "UV_NO_CONFIG": "1",
                "UV_SYSTEM_CERTS": "1",
                "UV_PYTHON_DOWNLOADS": "never",
                # A mirror on this machine itself is reached by the gate like any other.
                "NO_PROXY": "",
                "no_proxy": "",
            },
            inputs={
                "build.py": str(_SCRIPT),
                "uv": str(uv.find_uv_bin()),
                "lock.txt": str(folder / "lock.txt"),
            },
            training_env=list(machine.training.folders),
            egress=packages.hosts,
            networks=machine.network.allow,
        )

    async def _end(self, folder: Path) -> Status:
        while True:
            status = await asyncio.to_thread(keeper.read_status, folder)
            assert status is not None, "a keeper was started here"
            if status.state == "gone":
                return status
            await asyncio.sleep(_POLL_S)


def why_not(packages: Packages, machine: Machine) -> str:
    """Why this node can't build it; "" if it can."""
    shown = machine.training.shown
    python = ".".join(shown.python.split(".")[:2])
    torch = shown.packages.get("torch", "").partition("+")[0]
    if not machine.network.builds:
        return "the owner lets no environments be built (network.builds in config.json)"
    if protocol.sha256_hex(packages.text.encode()) != packages.sha256:
        return "its lock is not the one that its hash names"
    if packages.python != python:
        return f"its packages are for Python {packages.python}, and this node has {python}"
    if packages.torch and packages.torch != torch:
        return f"its packages go with torch {packages.torch}, and this node has {torch or 'none'}"
    return ""


def _failure(folder: Path, status: Status, away: str) -> NotBuilt:
    """Whatever ends a build once it has begun is its packages' fault, unless we ourselves found
    the index (`away`) or the sandbox to blame."""
    if not status.started_up_ms:
        return NotBuilt("start_failed", f"its environment could not be built: {status.detail}")
    if status.why != "exited":
        return NotBuilt("environment", f"building its environment ended: {status.detail}")
    said = ""
    with contextlib.suppress(OSError):
        said = (folder / "stderr.log").read_text(errors="replace")[-20_000:]
    words = " ".join(said.replace("×", " ").replace("╰─▶", " ").replace("├─▶", " ").split())
    failed = f"its packages could not be installed: {words[:1200]}"
    if away:
        return NotBuilt("start_failed", f"{failed} (the index is away: {away[:200]})")
    return NotBuilt("environment", failed)


def _keep(built: Path, path: Path, python: str) -> None:
    """Takes over what a build has left: a folder in its own right, whose `python` is the node's,
    whatever a wheel has put there. Raises NotBuilt."""
    try:
        _renew_python(built, python)
    except OSError as error:
        raise NotBuilt("environment", f"its packages left no environment: {error}") from None
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    built.rename(path)


def _renew_python(built: Path, python: str) -> None:
    """Through no symlink, all of which could be a wheel's own."""
    way = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    top = os.open(built, way)
    try:
        os.fchmod(top, 0o755)
        inside = os.open("bin", way, dir_fd=top)
    finally:
        os.close(top)
    try:
        names = {name for name in os.listdir(inside) if _PYTHON.fullmatch(name)}
        for name in names:
            os.unlink(name, dir_fd=inside)
        for name in names | {"python", "python3"}:
            os.symlink(python, name, dir_fd=inside)
    finally:
        os.close(inside)


def _clear(folder: Path) -> None:
    """Ends a build, if it goes on, and removes it."""
    if not folder.exists():
        return
    with contextlib.suppress(files.OrderError):
        keeper.kill(folder)
    outputs.clean(folder)
    shutil.rmtree(folder, ignore_errors=True)
