"""A disk of the nodes' own, to be filled and slowed down without harm to this machine."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SIZE = 4 << 30
_THROTTLE = Path("/sys/fs/cgroup/blkio")
_SLOW = {"bps": 200_000, "iops": 20}
"""Bytes and operations a second, of reading and of writing: a worn-out USB stick."""


def is_possible() -> bool:
    """Whether this host lets us mount a file system from a file."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists() and bool(_mkfs())


def is_throttled() -> bool:
    """Whether this kernel lets us slow a device down (control groups, version 1)."""
    return is_possible() and os.access(_THROTTLE / "blkio.throttle.write_bps_device", os.W_OK)


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """`folder` lies on a disk of four gigabytes, while the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(suffix=".img") as image:
        os.truncate(image.name, _SIZE)
        subprocess.run([_mkfs(), "-q", "-F", "-m0", image.name], check=True)
        subprocess.run(["mount", "-o", "loop", image.name, str(folder)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Not a byte is left on the disk of `folder`."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            space = os.statvfs(folder)
            os.posix_fallocate(
                file.fileno(), 0, max(1, space.f_bavail * space.f_frsize - (1 << 20))
            )
            file.seek(0, os.SEEK_END)
            while True:
                file.write(bytes(1 << 16))
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def slowed(folder: Path) -> Iterator[None]:
    """The disk of `folder` hardly moves."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        for what, most in _SLOW.items():
            for way in ("read", "write"):
                _throttle(way, what, f"{number} {most}")
        yield
    finally:
        for what in _SLOW:
            for way in ("read", "write"):
                _throttle(way, what, f"{number} 0")


def _throttle(way: str, what: str, words: str) -> None:
    (_THROTTLE / f"blkio.throttle.{way}_{what}_device").write_text(words)


def _mkfs() -> str:
    return shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin") or ""
