"""What a job prints, kept in files that can't fill the disk."""

import contextlib
import os
import selectors
from pathlib import Path

from agent.order import up_ms

# A flood of output is slowed by a full pipe, so that it costs the owner neither disk nor CPU.
_BYTES, _WINDOW_MS = 2 * 2**20, 250
_READ = 256 * 1024
_NEVER_MS = 3_600_000


class CappedLog:
    """`<name>.log`, and before it `<name>.log.1`: together at most `most` bytes, the latest."""

    def __init__(self, path: Path, most: int) -> None:
        self._path = path
        self._half = most // 2
        self._file = path.open("wb", buffering=0)

    def write(self, data: bytes) -> None:
        """Appends; a full half becomes the older one, and the older one is forgotten. On a full
        disk the output is lost, not the job."""
        with contextlib.suppress(OSError):
            while data:
                room = self._half - self._file.tell()
                if room <= 0:
                    self._file.close()
                    os.replace(self._path, self._path.with_name(self._path.name + ".1"))
                    self._file = self._path.open("wb", buffering=0)
                    room = self._half
                self._file.write(data[:room])
                data = data[room:]

    def close(self) -> None:
        self._file.close()


class Mask:
    """Puts a secret's name in place of its value, also where a read ends within it."""

    def __init__(self, secrets: dict[str, str]) -> None:
        # The longest first: one value may begin with another.
        self._secrets = sorted(
            ((value.encode(), f"[{name}]".encode()) for name, value in secrets.items() if value),
            key=lambda pair: -len(pair[0]),
        )
        self._falls = [_falls(value) for value, _ in self._secrets]
        self._held = b""

    def __call__(self, data: bytes) -> bytes:
        """What may be shown by now; the beginning of what may be a secret waits."""
        if not self._secrets:
            return data
        data = self._held + data
        for value, name in self._secrets:
            data = data.replace(value, name)
        each = zip(self._secrets, self._falls, strict=True)
        keep = max(_begun(value, falls, data) for (value, _), falls in each)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def rest(self) -> bytes:
        """What waited, and was none."""
        held, self._held = self._held, b""
        return held


def _begun(value: bytes, falls: list[int], data: bytes) -> int:
    """How many of the last bytes are the value's first, but for the whole of it. In time linear in
    the value's length, whatever the two are: both may be the job's choice."""
    size = 0
    if not value[:-1]:
        return 0
    for byte in data[-(len(value) - 1) :]:
        while size and value[size] != byte:
            size = falls[size - 1]
        size += value[size] == byte
    return size


def _falls(value: bytes) -> list[int]:
    """For each beginning of the value, how many of its last bytes are its first as well (the
    failure function of Knuth, Morris and Pratt)."""
    falls, size = [0] * len(value), 0
    for at in range(1, len(value)):
        while size and value[size] != value[at]:
            size = falls[size - 1]
        size += value[size] == value[at]
        falls[at] = size
    return falls


class Output:
    """Copies pipes to capped logs, some megabytes a second at most, without secrets; owns the
    pipes."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        pipes: dict[int, Path],
        most: int,
        secrets: dict[str, str],
    ) -> None:
        self._selector = selector
        self._masks = {fd: Mask(secrets) for fd in pipes}
        self._logs = {fd: CappedLog(path, most) for fd, path in pipes.items()}
        self._waiting: set[int] = set()
        self._left, self._window = _BYTES, up_ms()
        for fd in pipes:
            selector.register(fd, selectors.EVENT_READ)

    def copy(self, fd: int) -> None:
        """Call when `fd` is readable."""
        if self._left <= 0:
            self._selector.unregister(fd)
            self._waiting.add(fd)
            return
        data = os.read(fd, _READ)
        self._left -= len(data)
        if data:
            self._logs[fd].write(self._masks[fd](data))
        else:
            self._close(fd)

    def resume(self, now: int) -> None:
        """Listens again to pipes that were left to fill up, once their time has come."""
        if now - self._window >= _WINDOW_MS:
            self._left, self._window = _BYTES, now
            for fd in self._waiting:
                self._selector.register(fd, selectors.EVENT_READ)
            self._waiting.clear()

    def wait_ms(self, now: int) -> int:
        """Until `resume` has something to do."""
        return self._window + _WINDOW_MS - now if self._waiting else _NEVER_MS

    def finish(self) -> None:
        """Keeps what still lies in the pipes; their writers must be dead."""
        self._left = 2**62
        self._window = 0
        self.resume(up_ms())
        for fd in tuple(self._logs):
            os.set_blocking(fd, False)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(fd, _READ):
                    self._logs[fd].write(self._masks[fd](data))
            self._close(fd)

    def _close(self, fd: int) -> None:
        self._selector.unregister(fd)
        log = self._logs.pop(fd)
        log.write(self._masks[fd].rest())
        log.close()
        os.close(fd)
