"""The work folder of a job: how large it may grow, whom it belongs to, how it is seen.

As root, it can be a file system of its own in one file (`job.img`, a loop device), so that the
kernel itself stops a job at the size it booked. Such a mount must not outlive agent and keeper,
or nobody could delete the folder; so both live in mounts of their own (`own_mounts`, a private
copy of the machine's), and when the last of them is gone the kernel takes the mount away. Look at
the folder of a running agent with `nsenter --mount --target PID`.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import subprocess
import threading
from pathlib import Path

from agent.order import KeeperOrder, Rung

IMAGE = "job.img"
RESERVE_BYTES = 512 * 2**20
"""Disk that a job's booking must leave free on the host."""

_FIRST_UID, _UIDS = 2_000_000_000, 100_000_000  # unused by distributions and by user namespaces
_INODE_BYTES, _OVERHEAD, _LEAST_OVERHEAD = 256, 0.03, 4 * 2**20  # what was booked must fit
_CLONE_NEWNS, _MS_REC, _MS_SLAVE, _MNT_DETACH = 0x20000, 0x4000, 0x80000, 2

_libc = ctypes.CDLL(None, use_errno=True)
_mounts_are_own = threading.Event()


class WorkspaceError(RuntimeError):
    """The work folder can't be made as ordered; says what is in the way."""


def own_mounts() -> bool:
    """Gives this process mounts of its own; True if it now has them.

    To be called once, at the start of the agent and before it has threads. Without it, disk is
    bounded by the watchdog. The machine's later mounts are still seen.
    """
    if os.getuid() != 0 or threading.active_count() > 1 or _mounts_are_own.is_set():
        return _mounts_are_own.is_set()
    if _libc.unshare(_CLONE_NEWNS) != 0:
        return False
    if _libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None) != 0:
        raise WorkspaceError(f"could not part mounts: {os.strerror(ctypes.get_errno())}")
    _mounts_are_own.set()
    return True


def why_no_image() -> str:
    """Why work folders can't be file systems of their own here; "" if they can."""
    if os.getuid() != 0:
        return "mounting a work folder takes root"
    if not _mounts_are_own.is_set():
        return "this process has no mounts of its own (own_mounts was not called or was refused)"
    if not os.path.exists("/dev/loop-control"):
        return "there are no loop devices"
    if not _mkfs():
        return "mkfs.ext4 is missing: install e2fsprogs"
    return ""


def owner(folder: Path, rung: Rung) -> int:
    """The uid that the job runs as on the host: of its own under root, else the agent's."""
    if rung.wall != "root":
        return os.getuid()
    digest = hashlib.sha256(os.fsencode(folder.resolve())).digest()
    return _FIRST_UID + int.from_bytes(digest[:8], "little") % _UIDS


def prepare(folder: Path, order: KeeperOrder) -> None:
    """Makes `job/` as ordered, keeping the files already in it; raises WorkspaceError."""
    job = folder / "job"
    uid = owner(folder, order.rung)
    needed, free = order.limits.disk_bytes + RESERVE_BYTES, free_bytes(folder)
    if free < needed:
        raise WorkspaceError(
            f"the job books {order.limits.disk_bytes >> 20} MiB of disk, but {folder} has only "
            f"{free >> 20} MiB free and {RESERVE_BYTES >> 20} MiB must stay so"
        )
    job.mkdir(mode=0o700, exist_ok=True)
    if order.rung.disk == "image":
        _make_image(folder, order, uid)
    job.chmod(0o700)
    if order.rung.wall == "root":
        _give(job, uid)


def attach(folder: Path) -> None:
    """Lets this process see into the work folder of a job that an earlier agent started."""
    if (
        (folder / IMAGE).exists()
        and _mounts_are_own.is_set()
        and not os.path.ismount(folder / "job")
    ):
        _mount(folder)


def release(folder: Path) -> None:
    """Takes the work folder's mount from this process, if it has one."""
    if os.path.ismount(folder / "job"):
        _libc.umount2(os.fsencode(folder / "job"), _MNT_DETACH)


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write on this folder's disk."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def free_inodes(folder: Path) -> int:
    """How many files an ordinary user may still make there; where nobody counts them, plenty."""
    space = os.statvfs(folder)
    return space.f_favail if space.f_files else 2**62


def _give(job: Path, uid: int) -> None:
    """All that we have laid out is the job's own; no process of it has run here yet."""
    for above, _, names in os.walk(job):
        for path in (above, *(os.path.join(above, name) for name in names)):
            os.chown(path, uid, uid, follow_symlinks=False)


def _make_image(folder: Path, order: KeeperOrder, uid: int) -> None:
    """Goes on where an agent was killed in the middle of it."""
    reason = why_no_image()
    if reason:
        raise WorkspaceError(f"no work folder of fixed size: {reason}")
    image, files, job = folder / IMAGE, folder / "job.files", folder / "job"
    if image.exists() and not files.exists():
        attach(folder)
        return
    release(folder)
    if files.exists():
        shutil.rmtree(job, ignore_errors=True)
    else:
        job.rename(files)
    job.mkdir(exist_ok=True)
    _format(image, order, uid)
    _mount(folder)
    with contextlib.suppress(OSError):
        (job / "lost+found").rmdir()
    shutil.copytree(files, job, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(files)


def _format(image: Path, order: KeeperOrder, uid: int) -> None:
    inodes, disk = order.limits.inodes + 100, order.limits.disk_bytes
    size = disk + inodes * _INODE_BYTES + max(int(disk * _OVERHEAD), _LEAST_OVERHEAD)
    with open(image, "wb") as file:
        file.truncate(size)
        _set_aside(file.fileno(), size)
    # No journal: after a crash of the machine nobody goes on from here.
    _run(
        *(_mkfs(), "-q", "-F", "-m0", "-O", "^has_journal,^resize_inode"),
        *("-I", str(_INODE_BYTES), "-N", str(inodes)),
        *("-E", f"nodiscard,lazy_itable_init=1,root_owner={uid}:{uid}", str(image)),
    )


def _set_aside(fd: int, size: int) -> None:
    """Takes the disk at once, where the file system can: others may fill it up, and what a job
    has booked stays its own. A file system that can't leaves it to luck."""
    if _libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(size)) != 0:
        error = ctypes.get_errno()
        if error not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise WorkspaceError(f"no room for the {size >> 20} MiB that it books: "
                                 f"{os.strerror(error)}")  # fmt: skip


def _mount(folder: Path) -> None:
    """By mount(8): it finds a free loop device, or the one the image already has."""
    options = "loop,nosuid,nodev,noatime,noinit_itable"
    _run("mount", "-t", "ext4", "-o", options, str(folder / IMAGE), str(folder / "job"))


def _mkfs() -> str:
    return shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin") or ""


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WorkspaceError(f"{argv[0]}: {done.stderr.strip() or done.returncode}")
