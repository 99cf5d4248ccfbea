"""Jobs' own environments: built from a lock, once, and kept by its hash.

A job whose project names packages comes with a lock: exact versions of wheels, each with its
SHA-256. The node builds it in a sandbox of its own, by a keeper like any job's, that reaches the
index's hosts and nothing else; uv installs wheels only, and every hash is checked.

Whose torch? A lock either names a torch of its own, and all of it is fetched, CUDA and all; or it
leaves torch to the node, having been resolved together with the version that the node advertises.
Then the node's build of torch, which fits its driver, is linked in, with the libraries that came
with it (`FAMILY`), and nothing else of the node's own environment is seen: what a job gets is its
lock, the same on every node, but for the build of torch.

What is built belongs to one org and is read-only for its jobs.
"""

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final
from uuid import UUID

import uv

from agent import index, making, protocol
from agent.hardware import Machine
from agent.making import NotMade, Shelves
from agent.order import KeeperOrder, Status
from agent.protocol import Packages
from agent.sandbox import bubblewrap

FAMILY: Final = r"torch|triton|pytorch-triton|nvidia-(?!ml-py).*|cuda-.*"
"""torch, and what only its builds bring (buyers.requirements has the same)."""
_GIB: Final = 2**30
_UNPACKED: Final = 5
"""Wheels unpack to three to four times their size, as measured on torch, transformers and ray."""
_UNKNOWN: Final = 8 * _GIB
"""Room for a lock whose index told no sizes."""
_PYTHON: Final = re.compile(r"python[0-9.]*")
_SCRIPT: Final = Path(__file__).with_name("sandbox") / "build.py"


class Builds:
    """The environments of this node."""

    def __init__(self, shelves: Shelves, machine: Machine) -> None:
        self._shelves, self._machine = shelves, machine

    async def get(self, org: UUID, packages: Packages, say: Callable[[str], None]) -> Path:
        """The environment's folder, built if it isn't there; raises NotMade, OSError, NoRoom."""

        async def build(path: Path) -> None:
            await self._build(path, packages, say)

        return await self._shelves.get(
            self._shelves.root / "orgs" / str(org) / packages.sha256, build
        )

    async def _build(self, path: Path, packages: Packages, say: Callable[[str], None]) -> None:
        room = _GIB + _UNPACKED * packages.bytes if packages.bytes else _UNKNOWN
        await asyncio.to_thread(self._shelves.make_room, room)
        say(f"building its environment of {packages.count} packages")
        async with self._shelves.workbench(f"{path.parent.name}-{packages.sha256}") as folder:
            (folder / "lock.txt").write_text(packages.text)
            order = self._order(folder, packages, room)
            status = await making.run(folder, order, "its environment could not be built")
            if status.exit_code != 0:
                away = await asyncio.to_thread(self._why_away, packages, status)
                raise _failure(folder, status, away)
            python = bubblewrap.python_of(self._machine.training.folders[0])
            await asyncio.to_thread(_keep, folder / "job" / "env", path, python)

    def _why_away(self, packages: Packages, status: Status) -> str:
        """Why the index is to blame for a build's end; "" if it is not."""
        installed = status.why == "exited" and status.exit_signal is None
        return index.why_away(packages, self._machine.network.allow) if installed else ""

    def _order(self, folder: Path, packages: Packages, room: int) -> KeeperOrder:
        inside = "/job/inputs"
        return making.order(
            self._machine,
            [
                *("python", "-I", f"{inside}/build.py", f"{inside}/uv", f"{inside}/lock.txt"),
                *("/job/env", FAMILY if packages.torch else ""),
            ],
            room=room,
            inputs={
                "build.py": str(_SCRIPT),
                "uv": str(uv.find_uv_bin()),
                "lock.txt": str(folder / "lock.txt"),
            },
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
            egress=packages.hosts,
        )


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


def _failure(folder: Path, status: Status, away: str) -> NotMade:
    """Whatever ends a build once it has begun is its packages' fault, unless we ourselves found
    the index (`away`) to blame."""
    if status.why != "exited":
        return NotMade("environment", f"building its environment ended: {status.detail}")
    words = " ".join(re.sub("×|╰─▶|├─▶", " ", making.said(folder)).split())
    failed = f"its packages could not be installed: {words[:1200]}"
    if away:
        return NotMade("start_failed", f"{failed} (the index is away: {away[:200]})")
    return NotMade("environment", failed)


def _keep(built: Path, path: Path, python: str) -> None:
    """Takes over what a build has left: a folder in its own right, whose `python` is the node's,
    whatever a wheel has put there. Raises NotMade."""
    try:
        _renew_python(built, python)
    except OSError as error:
        raise NotMade("environment", f"its packages left no environment: {error}") from None
    making.keep(built, path)


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
