"""A disk of the nodes' own, small enough to be filled without harm to this machine."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SIZE = 4 << 30


def is_possible() -> bool:
    """Whether this host lets us mount a file system from a file."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists() and bool(_mkfs())


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
        with filler.open("wb") as file, contextlib.suppress(OSError):
            space = os.statvfs(folder)
            os.posix_fallocate(
                file.fileno(), 0, max(1, space.f_bavail * space.f_frsize - (1 << 20))
            )
            file.seek(0, os.SEEK_END)
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        yield
    finally:
        filler.unlink()


def _mkfs() -> str:
    return shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin") or ""
