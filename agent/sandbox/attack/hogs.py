"""Jobs that take more than they booked, or won't end. Each stops by itself at a few times the
limit, so that a missing limit costs the host little."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

_MIB = 2**20


def memory(limit: int) -> None:
    """Touches four times the limit, a quarter of it as files in memory, and stays."""
    held: list[object] = []
    for at in range(4 * limit // (8 * _MIB)):
        if at % 4 < 3:
            held.append(bytearray(b"x") * (8 * _MIB))
            continue
        file = os.memfd_create("hog") if at % 8 == 3 else _nameless("/dev/shm")
        os.write(file, bytes(8 * _MIB))
    time.sleep(5)


def _nameless(folder: str) -> int:
    return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)


def disk(limit: int) -> None:
    """Writes four times the limit, half of it to files without a name, until it is stopped."""
    files = [os.open(f"hog-{at}", os.O_WRONLY | os.O_CREAT) for at in range(16)]
    for at in range(0, 16, 2):
        os.unlink(f"hog-{at}")
    written, block = 0, b"x" * (256 * 1024)
    try:
        while written < 4 * limit:
            written += os.write(files[written // len(block) % 16], block)
        say(f"wrote {written}")
        time.sleep(5)
    except OSError:
        say(f"stopped {written}")


def say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def survivor(seconds: int) -> None:
    """Ignores SIGTERM and leaves daemons behind in sessions of their own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    daemon = f"import os, time; os.fork() or os.setsid(); time.sleep({seconds})"
    subprocess.Popen(
        [sys.executable, "-c", daemon],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(seconds)


HOGS: dict[str, Callable[[int], None]] = {"memory": memory, "disk": disk, "survivor": survivor}
