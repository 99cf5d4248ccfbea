"""What a job leaves behind, taken as hostile: walking, opening and removing its folders.

Names are resolved by openat2(2), beneath the folder and through no symlink and no mount, so that
a job that is still running can't lead us elsewhere by swapping a path. Whatever is not a regular
file with one name is refused by name, and nothing but a regular file is ever opened: a FIFO could
hang us, a device do worse.
"""

import contextlib
import ctypes
import errno
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
_UNSEEMLY = {"Cc", "Cf", "Co", "Cn", "Zl", "Zp"}  # control, format, no character at all

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

    job: Path
    inside: str
    path: str
    """Relative to `inside`, with slashes."""
    size: int
    allocated: int
    """Bytes on disk: less than `size` for a sparse file."""
    identity: tuple[int, int, int]
    """Device, inode, time of last change in ns."""

    @classmethod
    def of(cls, job: Path, inside: str, path: str, info: os.stat_result) -> "OutputFile":
        """As `entries` has found it."""
        return cls(job, inside, path, info.st_size, info.st_blocks * 512, _identity(info))

    def open(self) -> int:
        """A descriptor to hash and to send from; raises OutputRefused if it is another file by
        now. What it reads may still change: send exactly `size` bytes and compare the hash."""
        fd = open_file(self.job, f"{self.inside}/{self.path}")
        info = os.fstat(fd)
        if _identity(info) != self.identity or info.st_size != self.size:
            os.close(fd)
            raise _refused(self.path, "it was changed while it was read")
        return fd


def walk(job: Path, inside: str, *, max_bytes: int, max_files: int) -> list[OutputFile]:
    """All files below `job`/`inside`, sorted by path; raises OutputRefused, with every reason up
    to twenty. Reads no file.

    job: the work folder, whose own path the job can't change. max_bytes: bounds both the sum of
    sizes and the sum of allocated bytes. max_files: counts folders as well.
    """
    found: list[OutputFile] = []
    refusals: list[Refusal] = []
    size = allocated = 0
    for count, (path, info, reason) in enumerate(entries(job, inside), start=1):
        if not reason and not stat.S_ISDIR(info.st_mode):
            file = OutputFile.of(job, inside, path, info)
            found.append(file)
            size, allocated = size + file.size, allocated + file.allocated
        too_much = ""
        if count > max_files:
            too_much = f"more than {max_files} files and folders"
        elif max(size, allocated) > max_bytes:
            too_much = f"{size} bytes in all ({allocated} on disk), {max_bytes} are allowed"
        if reason or too_much:
            refusals.append(Refusal(path, reason or too_much))
        if too_much or len(refusals) == _MAX_REASONS:
            break
    if refusals:
        raise OutputRefused(refusals)
    return sorted(found, key=lambda file: file.path)


def folders(job: Path, inside: str) -> list[str]:
    """Names of the folders directly in `job`/`inside`, sorted; [] if there is no such folder, or
    something else stands in its place. Names that `walk` would refuse are left out."""
    try:
        return sorted(
            path
            for path, info, reason in entries(job, inside, deep=False)
            if not reason and stat.S_ISDIR(info.st_mode)
        )
    except OutputRefused:
        return []


def entries(
    job: Path, inside: str, *, deep: bool = True
) -> Iterator[tuple[str, os.stat_result, str]]:
    """(path below `inside`, lstat, "") of all there is, or (name as printed, lstat, why it is
    not taken). Raises OutputRefused if `inside` is no folder."""
    work = os.open(job, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        root = _open_beneath(work, inside, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _refused(inside, _in_words(error)) from None
    finally:
        os.close(work)
    try:
        pending = ["."]
        while pending:
            above = pending.pop()
            try:
                yield from _list(root, above, pending)
            except OSError as error:
                yield ascii(above), os.fstat(root), _in_words(error)
            if not deep:
                return
    finally:
        os.close(root)


def open_file(job: Path, path: str) -> int:
    """A descriptor of a regular file with one name, at a path relative to the work folder; raises
    FileNotFoundError, or OutputRefused for anything else. Never waits for a FIFO."""
    root = os.open(job, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _refuse_others(root, path)
        fd = _open_beneath(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _refused(path, _in_words(error)) from None
    finally:
        os.close(root)
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        os.close(fd)
        raise _refused(path, "it is not a regular file with one name")
    return fd


def _refuse_others(root: int, path: str) -> None:
    """Looks before opening, since opening alone can do something to a device."""
    fd = _open_beneath(root, path, os.O_PATH)
    kind = _KINDS.get(stat.S_IFMT(os.fstat(fd).st_mode), "of an unknown kind")
    os.close(fd)
    if kind:
        raise _refused(path, f"it is {kind}, not a regular file")


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


def _list(root: int, above: str, pending: list[str]) -> Iterator[tuple[str, os.stat_result, str]]:
    """One folder's entries; those to go on with are added to `pending`."""
    fd = _open_beneath(root, above, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in os.listdir(fd):
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            path, reason = _judge(above, name, info)
            if not reason and stat.S_ISDIR(info.st_mode):
                pending.append(path)
            yield path, info, reason
    finally:
        os.close(fd)


def _judge(above: str, name: str, info: os.stat_result) -> tuple[str, str]:
    """(path, "") for a file or folder to take, else (the name as printed, why not)."""
    path = name if above == "." else f"{above}/{name}"
    shown = ascii(path)[:_MAX_PATH]
    categories = {unicodedata.category(character) for character in name}
    if "Cs" in categories:  # how Python spells bytes that are no text
        return shown, "its name is not UTF-8"
    if categories & _UNSEEMLY:
        return shown, "its name has control characters"
    if len(path.encode()) > _MAX_PATH or path.count("/") >= _MAX_DEPTH:
        return shown, f"its path is longer than {_MAX_PATH} bytes or more than {_MAX_DEPTH} deep"
    kind = _KINDS.get(stat.S_IFMT(info.st_mode), "of an unknown kind")
    if kind:
        return shown, f"it is {kind}, not a regular file"
    if stat.S_ISREG(info.st_mode) and info.st_nlink != 1:
        return shown, "it is a hard link: it has another name"
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


def _in_words(error: OSError) -> str:
    """openat2's answers are about the path, not about the kernel's patience."""
    if error.errno == errno.ELOOP:
        return "it is a symlink or lies behind one"
    if error.errno == errno.EXDEV:
        return "it lies outside the work folder"
    return error.strerror or str(error)


def _open_beneath(root: int, path: str, flags: int) -> int:
    """openat2 below `root`; raises OSError for a path that leads out or through a symlink."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
    fd = int(_libc.syscall(_OPENAT2, root, os.fsencode(path), how, len(how)))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    return fd


def _remove_tree(parent: int, name: str) -> None:
    """Removes without recursion and with a fixed number of descriptors: every folder found deeper
    down is first moved up to the top, so that depth does not matter."""
    top = _enter(parent, name)
    try:
        prefix, moved = f".gone-{os.urandom(8).hex()}-", 0
        queue = _empty(top)
        while queue:
            current = queue.pop()
            fd = _enter(top, current)
            try:
                for inner in _empty(fd):
                    moved += 1
                    queue.append(f"{prefix}{moved}")
                    os.close(_enter(fd, inner))  # moving a folder takes the right to write in it
                    os.rename(inner, queue[-1], src_dir_fd=fd, dst_dir_fd=top)
            finally:
                os.close(fd)
            os.rmdir(current, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _empty(fd: int) -> list[str]:
    """Unlinks all but folders, and names those."""
    folders = []
    for name in os.listdir(fd):
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            folders.append(name)
        else:
            os.unlink(name, dir_fd=fd)
    return folders


def _enter(parent: int, name: str) -> int:
    """Opens a folder, through no symlink, after making it ours to read and change."""
    pinned = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{pinned}", 0o700)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=pinned)
    finally:
        os.close(pinned)
