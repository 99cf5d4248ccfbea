"""Lays out an image's file system, inside a sandbox that reaches nobody.

`python -I unpack.py ARCHIVE FOLDER`: the files of ARCHIVE (a tar, as `podman export` writes it)
under FOLDER, to be bound read-only as the root of a job, which has a uid of its own. So everything
is readable by all, nothing is set-uid, there are no devices, and the folders that a sandbox mounts
into are there. Hostile archives can do no more than the sandbox lets them, and to jobs of this
image alone. Standard library only.
"""

import os
import stat
import sys
import tarfile

MOUNTS = ("dev", "etc", "job", "opt", "opt/gridloom", "proc", "sys", "tmp")
"""Real folders in every image: what is bound over them must lead nowhere else."""
FILES = ("etc/group", "etc/hosts", "etc/passwd", "etc/resolv.conf")
"""Real files in every image, for the same reason."""


def main(archive: str, folder: str) -> str | int:
    """0 once it is there, else what went wrong."""
    os.umask(0o022)
    os.mkdir(folder)
    try:
        with tarfile.open(archive) as found:
            for entry in found:
                if _keep(entry):
                    found.extract(entry, folder)
    except (tarfile.TarError, OSError, ValueError) as error:
        return f"its files can't be laid out: {error}"
    for path in MOUNTS:
        _make(os.path.join(folder, path), is_folder=True)
    for path in FILES:
        _make(os.path.join(folder, path), is_folder=False)
    return 0


def _keep(entry: tarfile.TarInfo) -> bool:
    """Makes the entry what it is laid out as; False leaves it out."""
    entry.name = os.path.normpath(entry.name.lstrip("/"))
    if entry.name == ".." or entry.name.startswith("../"):
        raise ValueError(f"{entry.name!r} leads out of it")
    # The owner may write while it is laid out; where it is used, nobody may.
    runs = entry.isdir() or entry.mode & 0o111
    entry.mode = entry.mode & 0o777 | (0o755 if runs else 0o644)
    return entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()


def _make(path: str, *, is_folder: bool) -> None:
    """A folder or an empty file there, in place of anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        mode = 0
    fits = stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)
    if mode and not fits:
        os.rename(path, f"{path}.image") if stat.S_ISDIR(mode) else os.unlink(path)
    if is_folder:
        os.makedirs(path, 0o755, exist_ok=True)
    elif not fits:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o644))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
