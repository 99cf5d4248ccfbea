"""Lays out an image's file system from its layers, inside a sandbox that reaches nobody.

`python -I unpack.py LAYERS FOLDER`: the layers are the files of LAYERS by name, each a tar archive,
plain or packed by gzip or zstd; their files come to lie under FOLDER, to be bound read-only as the
root of a job, which has a uid of its own. So everything is readable by all, nothing is set-uid,
there are no devices, and the folders that a sandbox mounts into are there. What a layer takes away
from those below it is named by OCI's image specification, "Representing Changes". Hostile archives
can do no more than the sandbox lets them, and to jobs of this image alone.
"""

import errno
import gzip
import os
import shutil
import stat
import sys
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

MOUNTS = ("dev", "etc", "job", "opt", "opt/gridloom", "proc", "sys", "tmp")
"""Real folders in every image: what is bound over them must lead nowhere else."""
FILES = ("etc/group", "etc/hosts", "etc/passwd")
"""Real files in every image, for the same reason."""

WRONG, FAILED = 3, 4
"""Exit codes: the archives are no image, or it was not their doing."""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM)
_WRONG = (
    *(tarfile.TarError, zlib.error, EOFError, OSError, ImportError),
    *(ValueError, ArithmeticError, RecursionError),
)
_GONE, _ALL_GONE = ".wh.", ".wh..wh..opq"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MOST_LINKS = 40
_CHUNK = 1024 * 1024


def main(layers: str, folder: str) -> int:
    """0 once it is there, else WRONG or FAILED; why stands on standard error."""
    os.umask(0o022)
    os.mkdir(folder)
    tree = Tree(folder)
    try:
        for name in sorted(os.listdir(layers)):
            tree.add(os.path.join(layers, name))
        for path in MOUNTS:
            tree.ensure(path, is_folder=True)
        for path in FILES:
            tree.ensure(path, is_folder=False)
    except _WRONG as error:
        sys.stderr.write(f"its files can't be laid out: {error}\n")
        of_the_disk = isinstance(error, OSError) and error.errno in _OF_THE_DISK
        return FAILED if of_the_disk or isinstance(error, ImportError) else WRONG
    return 0


class Tree:
    """A file system in the making. Paths are the image's own: its symlinks lead within it."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._folders: dict[str, str] = {}
        """Resolved so far: path of the image's → path on disk."""
        self._placed: set[str] = set()
        """Paths on disk that the layer in work has brought, and the folders above them."""

    def add(self, archive: str) -> None:
        """Lays a layer over what is there; raises TarError, EOFError, OSError, ValueError."""
        self._placed = set()
        with _unpacked(archive) as data, tarfile.open(fileobj=data, mode="r|") as found:
            for entry in found:
                self._take(found, entry)

    def ensure(self, path: str, *, is_folder: bool) -> None:
        """A folder or an empty file there, in place of anything else."""
        place = os.path.join(self._root, path)
        mode = _mode(place)
        if mode and not (stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)):
            _remove(place)
        if is_folder:
            os.makedirs(place, 0o755, exist_ok=True)
        elif not stat.S_ISREG(mode):
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o644))

    def _take(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        folder, name = os.path.split(_plain(entry.name))
        if not name:
            return  # the root itself
        place = os.path.join(self._folder(folder), name)
        if name == _ALL_GONE:
            self._clear(os.path.dirname(place))
        elif name.startswith(_GONE):
            # Others of this beginning are notes of a file system that is no more.
            if not name.startswith(_GONE * 2):
                self._hide(os.path.dirname(place), name.removeprefix(_GONE))
        elif put := self._putter(archive, entry):
            if not (entry.isdir() and stat.S_ISDIR(_mode(place))):
                self._replace(place)
            put(place)
            self._note(place)
        else:
            self._replace(place)

    def _putter(
        self, archive: tarfile.TarFile, entry: tarfile.TarInfo
    ) -> Callable[[str], None] | None:
        """What makes this entry at a path where nothing is; None if it is left out."""
        # The owner may write while it is laid out; where it is used, nobody may.
        runs = entry.isdir() or entry.mode & 0o111
        mode = entry.mode & 0o777 | (0o755 if runs else 0o644)

        def folder(place: str) -> None:
            os.makedirs(place, exist_ok=True)
            os.chmod(place, mode)

        def file(place: str) -> None:
            source = archive.extractfile(entry)
            assert source is not None
            with source, open(place, "xb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
                os.fchmod(target.fileno(), mode)
            # Python's compiled files are held against it.
            os.utime(place, (entry.mtime, entry.mtime))

        def hardlink(place: str) -> None:
            above, name = os.path.split(_plain(entry.linkname))
            source = os.path.join(self._folder(above), name)
            if _mode(source):  # else to something that was left out
                os.link(source, place, follow_symlinks=False)

        if entry.isdir():
            return folder
        if entry.isreg():
            return file
        if entry.issym():
            return lambda place: os.symlink(entry.linkname, place)
        return hardlink if entry.islnk() else None

    def _folder(self, path: str) -> str:
        """Where a folder of the image's lies on disk, made if it isn't there."""
        known = self._folders.get(path)
        if known is None:
            known = self._folders[path] = self._resolve(path)
        return known

    def _resolve(self, path: str) -> str:
        parts, place, links = path.split("/")[::-1], self._root, 0
        while parts:
            part = parts.pop()
            if part == "..":
                place = place if place == self._root else os.path.dirname(place)
            elif part not in ("", "."):
                below = os.path.join(place, part)
                mode = _mode(below)
                if stat.S_ISLNK(mode):
                    links += 1
                    if links > _MOST_LINKS:
                        raise ValueError(f"{path!r} has too many symlinks")
                    target = os.readlink(below)
                    place = self._root if target.startswith("/") else place
                    parts += target.split("/")[::-1]
                    continue
                if not stat.S_ISDIR(mode):
                    self._replace(below)
                    os.mkdir(below, 0o755)
                place = below
        return place

    def _replace(self, place: str) -> None:
        """Makes way there; what was resolved may lead elsewhere from now on."""
        if mode := _mode(place):
            _remove(place)
            if not stat.S_ISREG(mode):
                self._folders.clear()

    def _hide(self, folder: str, name: str) -> None:
        """Takes away what lower layers have brought under this name."""
        if name in ("", ".", ".."):
            raise ValueError(f"{_GONE + name!r} hides no file")
        place = os.path.join(folder, name)
        if place not in self._placed:
            self._replace(place)
        elif stat.S_ISDIR(_mode(place)):
            self._clear(place)

    def _clear(self, folder: str) -> None:
        """Takes away what lower layers have brought there."""
        for name in os.listdir(folder):
            place = os.path.join(folder, name)
            if place not in self._placed:
                self._replace(place)
            elif stat.S_ISDIR(_mode(place)):
                self._clear(place)

    def _note(self, place: str) -> None:
        while place not in self._placed and place != self._root:
            self._placed.add(place)
            place = os.path.dirname(place)


def _plain(name: str) -> str:
    """An entry's path without what means nothing; raises ValueError for one that leads out."""
    path = os.path.normpath(name.lstrip("/"))
    if path == ".." or path.startswith("../"):
        raise ValueError(f"{name!r} leads out of it")
    return "" if path == "." else path


def _unpacked(path: str) -> Any:
    """A layer's archive, to be read from its beginning to its end."""
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic[:2] == _GZIP:
        return gzip.open(path)
    if magic == _ZSTD:
        import pyarrow as pa  # the node's training environment has it, for datasets

        return pa.input_stream(path, compression="zstd")
    return open(path, "rb")


def _mode(path: str) -> int:
    """0 if nothing is there."""
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0


def _remove(path: str) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
