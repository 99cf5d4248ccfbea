"""What a job leaves behind, taken as hostile: walking, opening and removing its folders.

Names are resolved by openat2(2), beneath the folder and through no symlink and no mount, so that
a job that is still running can't lead us elsewhere by swapping a path. Whatever is not a regular
file with one name is refused by name, and nothing but a regular file is ever opened: a FIFO could
hang us, a device do worse.
"""

import contextlib
import ctypes
import hashlib
import os
import stat
import struct
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.sandbox import workspace

_OPENAT2 = 437  # the same on every architecture
_RESOLVE = 0x08 | 0x04 | 0x02 | 0x01  # BENEATH, NO_SYMLINKS, NO_MAGICLINKS, NO_XDEV
_MAX_DEPTH = 32
_MAX_PATH = 400
_MAX_REASONS = 20
_CHUNK = 1024 * 1024
_UNSEEMLY = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, format, no character at all

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Refusal:
    """One thing that is not taken, by its name as Python would print it."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class OutputRefused(ValueError):
    """The folder holds something that is not taken; nothing of it should be."""

    def __init__(self, refusals: list[Refusal]) -> None:
        super().__init__("; ".join(map(str, refusals)))
        self.refusals = refusals


@dataclass(frozen=True)
class OutputFile:
    """A regular file below a folder, as it was when the folder was walked."""

    folder: Path
    path: str
    """Relative to the folder, with slashes."""
    size: int
    allocated: int
    """Bytes on disk: less than `size` for a sparse file."""
    identity: tuple[int, int, int]
    """Device, inode, time of last change in ns."""

    def open(self) -> int:
        """A descriptor to hash and to send from; raises OutputRefused if it is another file by
        now. What it reads may still change: send exactly `size` bytes and compare the hash."""
        root = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fd = _open_beneath(root, self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as error:
            raise _refused(self.path, error.strerror or str(error)) from None
        finally:
            os.close(root)
        info = os.fstat(fd)
        if _identity(info) != self.identity or info.st_size != self.size:
            os.close(fd)
            raise _refused(self.path, "it was changed while it was read")
        return fd


def walk(folder: Path, max_bytes: int, max_files: int) -> list[OutputFile]:
    """All files below, sorted by path; raises OutputRefused, with every reason up to twenty.

    max_bytes: bounds both the sum of sizes and the sum of allocated bytes. Reads no file.
    """
    found: list[OutputFile] = []
    refusals: list[Refusal] = []
    size = allocated = 0
    for path, info, reason in _entries(folder):
        if reason:
            refusals.append(Refusal(path, reason))
        else:
            file = OutputFile(folder, path, info.st_size, info.st_blocks * 512, _identity(info))
            found.append(file)
            size, allocated = size + file.size, allocated + file.allocated
        if len(found) > max_files:
            refusals.append(Refusal(repr(folder.name), f"more than {max_files} files"))
        elif max(size, allocated) > max_bytes:
            reason = f"larger than {max_bytes} bytes" + (" (sparse)" if allocated < size else "")
            refusals.append(Refusal(path, reason))
        else:
            if len(refusals) < _MAX_REASONS:
                continue
        break
    if refusals:
        raise OutputRefused(refusals)
    return sorted(found, key=lambda file: file.path)


def sha256(fd: int, size: int) -> str:
    """Hash of exactly `size` bytes from the start, by pread; raises OutputRefused if the file is
    shorter or longer by now."""
    digest, at = hashlib.sha256(), 0
    while at < size:
        data = os.pread(fd, min(_CHUNK, size - at), at)
        if not data:
            raise _refused(f"fd {fd}", "it became shorter while it was read")
        digest.update(data)
        at += len(data)
    if os.pread(fd, 1, size):
        raise _refused(f"fd {fd}", "it became longer while it was read")
    return digest.hexdigest()


def clean(folder: Path) -> None:
    """Removes an assignment's folder, its work folder's mount and image with it.

    The job must be gone. Whatever it built (deeper than paths reach, unreadable, owned by
    another uid) goes; symlinks are removed, never followed. A missing folder is fine.
    """
    workspace.release(folder)
    parent = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            _remove_tree(parent, folder.name)
    finally:
        os.close(parent)


def _entries(folder: Path) -> Iterator[tuple[str, os.stat_result, str]]:
    """(path, lstat, "") of each regular file, or (name as printed, lstat, why not)."""
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        pending = [""]
        while pending:
            above = pending.pop()
            try:
                fd = _open_beneath(root, above or ".", os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                yield above, os.fstat(root), error.strerror or str(error)
                continue
            try:
                # Names as bytes first: not all of them are text.
                for raw in map(os.fsencode, os.listdir(fd)):
                    info = os.stat(raw, dir_fd=fd, follow_symlinks=False)
                    shown, reason = _judge(above, raw, info)
                    if not reason and stat.S_ISDIR(info.st_mode):
                        pending.append(shown)
                    else:
                        yield shown, info, reason
            except FileNotFoundError as gone:
                yield above, os.fstat(root), f"changed while it was read: {gone}"
            finally:
                os.close(fd)
    finally:
        os.close(root)


def _judge(above: str, raw: bytes, info: os.stat_result) -> tuple[str, str]:
    """(path, "") for a file or folder to take, else (the name as printed, why not)."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        return f"{above}/{raw!r}".lstrip("/"), "its name is not UTF-8"
    path = f"{above}/{name}" if above else name
    if any(unicodedata.category(character) in _UNSEEMLY for character in name):
        return ascii(path), "its name has control characters"
    if len(path.encode()) > _MAX_PATH or path.count("/") >= _MAX_DEPTH:
        return ascii(path[:80]), f"its path is longer than {_MAX_PATH} bytes or {_MAX_DEPTH} deep"
    kind = _KINDS.get(stat.S_IFMT(info.st_mode), "of an unknown kind")
    if kind:
        return ascii(path), f"it is {kind}, not a regular file"
    if stat.S_ISREG(info.st_mode) and info.st_nlink != 1:
        return ascii(path), "it is a hard link: it has another name"
    return path, ""


_KINDS = {
    stat.S_IFREG: "",
    stat.S_IFDIR: "",
    stat.S_IFLNK: "a symlink",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


def _identity(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_dev, info.st_ino, info.st_mtime_ns


def _refused(name: str, reason: str) -> OutputRefused:
    return OutputRefused([Refusal(name, reason)])


def _open_beneath(root: int, path: str, flags: int) -> int:
    """openat2 below `root`; raises OSError for a path that leads out or through a symlink."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
    fd = int(_libc.syscall(_OPENAT2, root, os.fsencode(path), how, len(how)))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    return fd


def _remove_tree(parent: int, name: str) -> None:
    """Removes without recursion and with a fixed number of descriptors: every folder found inside
    is first moved up beside the others, so that depth does not matter."""
    top = _enter(parent, name)
    try:
        queue = [b"."]
        moved = 0
        while queue:
            current = queue.pop()
            fd = os.dup(top) if current == b"." else _enter(top, current)
            try:
                for entry in map(os.fsencode, os.listdir(fd)):
                    if not stat.S_ISDIR(os.lstat_at(entry, fd)):
                        os.unlink(entry, dir_fd=fd)
                        continue
                    moved += 1
                    target = b".gone-%d" % moved
                    queue.append(target)
            finally:
                os.close(fd)
    finally:
        os.close(top)
