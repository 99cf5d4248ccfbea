"""Images by digest: fetched by podman, laid out once, and used as jobs' file system.

podman fetches and checks; a sandbox of ours lays the files out; the job then runs in the very
sandbox that every job has, with the image's files where it would have seen the host's. So whatever
holds for jobs (their network, limits, logs, checkpoints) holds in an image as well, and the image
is read-only. Its entry point is not run, nor is its user: the job's command is, as the job's user.

That is not so for images made to break out, and hence nodes offer none unless their owner lists
registries: until our init has dropped its rights, this host's loader and Python, which run as root,
may read the image's files (`/etc/ld.so.preload`, locales); what podman fetches is bounded by free
disk alone; and a manifest's foreign layers may name addresses in the owner's network.

An image is laid out once for all orgs: it comes from registries that ask nobody who they are, and
is named by its content.
"""

import asyncio
import json
import os
import re
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from agent import making
from agent import order as files
from agent.hardware import Machine
from agent.making import NotMade, Shelves
from agent.podman import Podman, PodmanError
from agent.protocol import Image
from agent.sandbox import unpack, workspace

_REFERENCE: Final = re.compile(r"([a-z0-9.:-]+)/([a-z0-9._/-]+)@sha256:([0-9a-f]{64})")
_ROOM: Final = 12
"""Layers unpack to three to four times their size, and are there three times: in podman's storage,
in its archive, and laid out."""
_LEAST: Final = 2**30
_POLL_S: Final = 0.5
_ROOTFS: Final = "rootfs"
_FACTS: Final = "image.json"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_MOST_ENV: Final = 64 * 1024
_MACHINES: Final = {"amd64"}


class Images:
    """The images of this node."""

    def __init__(self, shelves: Shelves, machine: Machine) -> None:
        self._shelves, self._machine = shelves, machine

    async def get(self, image: Image, say: Callable[[str], None]) -> files.Image:
        """Where it lies, fetched if it isn't there; raises NotMade, OSError, NoRoom."""

        async def make(path: Path) -> None:
            await self._make(path, image, say)

        path = await self._shelves.get(self._shelves.root / "images" / image.digest, make)
        return files.Image(
            rootfs=str(path / _ROOTFS), env=json.loads((path / _FACTS).read_bytes())["env"]
        )

    async def _make(self, path: Path, image: Image, say: Callable[[str], None]) -> None:
        await asyncio.to_thread(self._shelves.make_room, _LEAST + _ROOM * image.bytes)
        say(f"fetching its image ({image.bytes >> 20} MiB)")
        async with self._shelves.workbench(f"image-{image.digest}") as folder:
            archive = folder / "image.tar"
            try:
                facts = await _while_there_is_room(folder, _fetch(folder, image, archive))
            except PodmanError as error:
                # It may be gone by now, or its registry away: another node may try.
                raise NotMade("bad_input", f"its image can't be fetched: {error}") from None
            say("laying out its image")
            await self._lay_out(folder, archive)
            laid = folder / "job" / _ROOTFS
            await asyncio.to_thread(_require_real, laid)
            made = folder / "made"
            made.mkdir(mode=0o755)
            laid.rename(made / _ROOTFS)
            (made / _FACTS).write_text(json.dumps(facts))
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            made.rename(path)

    async def _lay_out(self, folder: Path, archive: Path) -> None:
        inside, size = "/job/inputs", await asyncio.to_thread(os.path.getsize, archive)
        status = await making.run(
            folder,
            making.order(
                self._machine,
                ["python", "-I", f"{inside}/unpack.py", f"{inside}/image.tar", f"/job/{_ROOTFS}"],
                # Small files take more than they hold.
                room=_LEAST + 2 * size,
                inputs={"unpack.py": unpack.__file__, "image.tar": str(archive)},
            ),
            "its image could not be laid out",
        )
        if status.exit_code != 0:
            why = making.said(folder)[:1200] or status.detail
            raise NotMade("environment", f"its image could not be laid out: {why}")


def why_not(image: Image, machine: Machine) -> str:
    """Why this node does not run jobs in it; "" if it does."""
    parts = _REFERENCE.fullmatch(image.reference)
    if parts is None:
        return f"{image.reference[:200]!r} names no image by its digest"
    if parts[1] not in machine.inventory.registries:
        return f"the owner lets no images be fetched from {parts[1]}"
    return ""


async def _fetch(folder: Path, image: Image, archive: Path) -> dict[str, object]:
    with Podman(folder) as store:
        id = await store.pull(image.reference)
        found = await store.describe(id)
        if found.os != "linux" or found.architecture not in _MACHINES:
            raise NotMade(
                "environment",
                f"its image is for {found.os} on {found.architecture}, not for Linux on amd64",
            )
        await store.export(id, archive)
    return {"reference": image.reference, "env": _variables(found.env)}


async def _while_there_is_room(
    folder: Path, fetching: Coroutine[Any, Any, dict[str, object]]
) -> dict[str, object]:
    """An image may be far larger than it says: it may not fill the disk."""
    task = asyncio.create_task(fetching)
    try:
        while not task.done():
            if workspace.free_bytes(folder) < workspace.RESERVE_BYTES // 2:
                raise NotMade("environment", "its image is much larger than its registry said")
            await asyncio.wait([task], timeout=_POLL_S)
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])


def _variables(env: Sequence[str]) -> dict[str, str]:
    """What it sets for its programs, as far as that can be set."""
    pairs = (line.partition("=")[::2] for line in env if "\0" not in line)
    found = {name: value for name, value in pairs if _NAME.fullmatch(name)}
    return found if len(msgspec.json.encode(found)) <= _MOST_ENV else {}


def _require_real(rootfs: Path) -> None:
    """What is mounted over must be real: it was made where strangers' files were read."""
    for name in unpack.MOUNTS:
        path = rootfs / name
        if path.is_symlink() or not path.is_dir():
            raise NotMade("environment", f"its image has no folder /{name}")
    for name in unpack.FILES:
        path = rootfs / name
        if path.is_symlink() or not path.is_file():
            raise NotMade("environment", f"its image has no file /{name}")
