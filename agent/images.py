"""Images by digest: fetched layer by layer, laid out once, and used as jobs' file system.

The market names an image's layers by hash, as its registry told them; the node fetches each like
any other file, into the cache that all orgs share, since everybody may have them. A sandbox of ours
lays the layers out; the job then runs in the very sandbox that every job has, with the image's
files where it would have seen the host's. So whatever holds for jobs (their network, limits, logs,
checkpoints) holds in an image as well, and the image is read-only. Its entry point is not run, nor
is its user: the job's command is, as the job's user. No container engine is needed.
"""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final
from uuid import UUID

from agent import cache, making, protocol
from agent import order as files
from agent.cache import Shelf
from agent.hardware import Machine
from agent.making import NotMade, Shelves
from agent.patience import all_of
from agent.protocol import Image
from agent.sandbox import unpack
from agent.transfer import Downloads, Progress, Urls

_REFERENCE: Final = re.compile(r"([a-z0-9.:-]+)/([a-z0-9._/-]+)@sha256:([0-9a-f]{64})")
_ROOTFS: Final = "rootfs"
_NOBODY: Final = UUID(int=0)
_INODES, _MOST_INODES, _BYTES_AN_INODE = 50_000, 1_000_000, 16 * 1024


class Images:
    """The images of this node."""

    def __init__(self, shelves: Shelves, machine: Machine, downloads: Downloads) -> None:
        self._shelves, self._machine, self._downloads = shelves, machine, downloads

    async def get(self, image: Image, urls: Urls, say: Callable[[str], None]) -> files.Image:
        """Where it lies, fetched if it isn't there; raises NotMade, BadInput, OSError, NoRoom."""

        async def make(path: Path) -> None:
            await self._make(path, image, urls, say)

        path = await self._shelves.get(self._shelves.root / "images" / image.digest, make)
        return files.Image(rootfs=str(path), env=image.env)

    async def _make(self, path: Path, image: Image, urls: Urls, say: Callable[[str], None]) -> None:
        room = protocol.image_room(image.bytes)
        shelf = Shelf(self._downloads.root, _NOBODY, public=True)
        missing = sum(layer.bytes for layer in image.layers if shelf.find(layer) is None)
        await asyncio.to_thread(self._shelves.make_room, missing + room)
        progress = Progress("fetching its image", image.bytes, say)
        paths = await all_of(
            self._downloads.fetch(layer, shelf, urls, progress.add) for layer in image.layers
        )
        say("laying out its image")
        async with self._shelves.workbench(f"image-{image.digest}") as folder:
            layers = folder / "layers"
            found = {layer.path: path for layer, path in zip(image.layers, paths, strict=True)}
            await asyncio.to_thread(cache.lay_out, found, image.layers, layers)
            await self._lay_out(folder, layers, room)
            laid = folder / "job" / _ROOTFS
            await asyncio.to_thread(_require_real, laid)
            await asyncio.to_thread(making.keep, laid, path)

    async def _lay_out(self, folder: Path, layers: Path, room: int) -> None:
        inside = "/job/inputs"
        order = making.order(
            self._machine,
            ["python", "-I", f"{inside}/unpack.py", f"{inside}/layers", f"/job/{_ROOTFS}"],
            room=room,
            inputs={"unpack.py": unpack.__file__, "layers": str(layers)},
            inodes=min(_INODES + room // _BYTES_AN_INODE, _MOST_INODES),
        )
        status = await making.run(folder, order, "its image could not be laid out")
        if status.exit_code == 0:
            return
        words = making.said(folder)[:1200] or status.detail
        # The image's own doing are archives that are none, and more files than it may have.
        its_own = status.exit_code == unpack.WRONG or status.why in ("disk", "memory", "pids")
        why = "environment" if its_own else "start_failed"
        raise NotMade(why, f"its image could not be laid out: {words}")


def why_not(image: Image, machine: Machine) -> str:
    """Why this node does not run jobs in it; "" if it does."""
    parts = _REFERENCE.fullmatch(image.reference)
    if parts is None:
        return f"{image.reference!r} names no image by its digest"
    if parts[1] not in machine.inventory.registries:
        return f"the owner lets no images be fetched from {parts[1]}"
    names = [layer.path for layer in image.layers]
    if why := protocol.paths.fault_of_paths(names):
        return why
    return "" if names == sorted(set(names)) else "its layers are in no order"


def _require_real(rootfs: Path) -> None:
    """What is mounted over must be real: it was made where strangers' files were read."""
    for name in ("", *unpack.MOUNTS):
        path = rootfs / name
        if path.is_symlink() or not path.is_dir():
            raise NotMade("environment", f"its image has no folder /{name}")
    for name in unpack.FILES:
        path = rootfs / name
        if path.is_symlink() or not path.is_file():
            raise NotMade("environment", f"its image has no file /{name}")
