"""What a running job tells: its metrics, its output, and by silence that it hangs.

All of it is a stranger's: lines are bounded, numbers finite, control characters dropped, and more
than a node may pass on is left out rather than kept waiting.
"""

import contextlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from agent.sandbox import outputs

_MAX_LINE: Final = 8 * 1024
_A_LOOK: Final = 256 * 1024
"""Bytes of metrics read at once."""
_MAX_VALUES: Final = 32
_MAX_NAME: Final = 60
_MAX_STEP: Final = 2**53
_RATE, _BURST = 20.0, 200.0
"""Lines a second that are passed on, and how many at once after a pause."""
_CHUNK: Final = 12 * 1024
"""Bytes of output in one message: JSON may double them, and a message has 64 KiB."""
_TOO_FAR: Final = 256 * 1024
"""Output behind which the tail is what counts."""
_IDLE_CORE: Final = 0.02
_IDLE_GPU: Final = 1.0
_UNSEEMLY: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_ESCAPES: Final = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")


@dataclass(frozen=True)
class Point:
    """One line of metrics."""

    step: int
    values: dict[str, float]


class MetricsTail:
    """Follows a job's metrics file. `step` is the furthest it has named, `save_s` how long its
    last checkpoint took to write, where it says so."""

    def __init__(self, job: Path, path: str, offset: int = 0) -> None:
        """`offset`: bytes that an earlier agent has taken in."""
        self.offset = offset
        self.step = 0
        self.save_s = 0.0
        self._job, self._path = job, path
        self._skips = False
        self._tokens, self._at_s = _BURST, 0.0

    def read(self, now_s: float) -> list[Point]:
        """Whole lines since the last look, as many as may be passed on."""
        self._tokens = min(_BURST, self._tokens + _RATE * (now_s - self._at_s))
        self._at_s = now_s
        points = []
        for line in self._lines():
            point = parse(line)
            if point is None:
                continue
            self.step = max(self.step, point.step)
            self.save_s = max(0.0, point.values.get("save_s", self.save_s))
            if self._tokens >= 1 and point.values:
                self._tokens -= 1
                points.append(point)
        return points

    def _lines(self) -> list[bytes]:
        data = self._more()
        *lines, rest = data.split(b"\n")
        if len(rest) > _MAX_LINE:
            # A line without an end: what follows up to the next one belongs to it.
            self.offset += len(data)
            begins_amid, self._skips = self._skips, True
        else:
            self.offset += len(data) - len(rest)
            begins_amid, self._skips = self._skips, self._skips and not lines
        return [line for line in lines[begins_amid:] if line and len(line) <= _MAX_LINE]

    def _more(self) -> bytes:
        """What follows the offset; from the start again if the file was made anew."""
        try:
            fd = outputs.open_file(self._job, self._path)
        except (OSError, outputs.OutputRefused):
            return b""  # not there yet, or nothing that we would read
        try:
            if os.fstat(fd).st_size < self.offset:
                self.offset = 0
            return os.pread(fd, _A_LOOK, self.offset)
        finally:
            os.close(fd)


def parse(line: bytes) -> Point | None:
    """A metrics line, or None if it is none: an object with a whole `step` from 0 on; of the
    rest, what is a finite number with a plain name."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return point_of(told)


def point_of(told: object) -> Point | None:
    """The same of what such a line holds; takes `told` apart."""
    if not isinstance(told, dict):
        return None
    step = told.pop("step", None)
    if type(step) is not int or not 0 <= step < _MAX_STEP:
        return None
    values: dict[str, float] = {}
    for name, value in told.items():
        if len(values) < _MAX_VALUES and _is_name(name) and _is_number(value):
            values[name] = float(value)
    return Point(step, values)


class LogPlace(Struct):
    """How far a stream has been passed on; survives a restart of the agent."""

    inode: int = 0
    at: int = 0
    """Within the file of that inode."""
    before: int = 0
    """Bytes of the stream in files before it."""


@dataclass(frozen=True)
class Chunk:
    """Some output: `offset` counts the stream's bytes from its start."""

    stream: Literal["stdout", "stderr"]
    offset: int
    text: str


class LogTail:
    """Follows one of the keeper's logs, also over its rotation."""

    def __init__(self, folder: Path, stream: Literal["stdout", "stderr"], place: LogPlace) -> None:
        self.place = place
        self._stream: Literal["stdout", "stderr"] = stream
        self._paths = (folder / f"{stream}.log.1", folder / f"{stream}.log")

    def read(self) -> Chunk | None:
        """The next of the output, some kilobytes at most; None if there is nothing new."""
        files = self._files()
        for index, (path, info) in enumerate(files):
            current = info.st_ino == self.place.inode
            if not current and any(one.st_ino == self.place.inode for _, one in files[index:]):
                continue  # an older file than the one that we are in
            if not current:
                before = self.place.before + self.place.at
                self.place = LogPlace(inode=info.st_ino, before=before)
            if info.st_size > self.place.at:
                return self._chunk(path, info.st_size)
        return None

    def _chunk(self, path: Path, size: int) -> Chunk | None:
        place = self.place
        at = place.at if size - place.at <= _TOO_FAR else size - _CHUNK
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_ino != place.inode:
                    return None  # rotated just now: at the next look
                data = _whole(os.pread(file.fileno(), _CHUNK, at))
        except FileNotFoundError:
            return None
        self.place = LogPlace(inode=place.inode, at=at + len(data), before=place.before)
        return Chunk(self._stream, place.before + at, clean(data))

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self._paths:
            with contextlib.suppress(FileNotFoundError):
                found.append((path, path.stat()))
        return found


def clean(data: bytes) -> str:
    """Output as text to be shown: no escape sequences, no control characters but line ends and
    tabs; a lone carriage return, as progress bars use it, ends a line."""
    text = _ESCAPES.sub("", data.decode("utf-8", errors="replace"))
    return _UNSEEMLY.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


class Quiet:
    """How long a job has neither made a step nor used a processor."""

    def __init__(self, hang_s: float) -> None:
        self._hang_s = hang_s
        self._since_s: float | None = None
        self._step, self._cpu_s, self._at_s = -1, 0.0, 0.0

    def is_hung(self, now_s: float, *, step: int, cpu_s: float, gpu_percent: float) -> bool:
        """One more look: `cpu_s` is the processor time of all its processes so far."""
        elapsed = now_s - self._at_s
        busy = cpu_s - self._cpu_s > _IDLE_CORE * elapsed or gpu_percent > _IDLE_GPU
        if self._since_s is None or step != self._step or busy:
            self._since_s = now_s
        self._step, self._cpu_s, self._at_s = step, cpu_s, now_s
        return 0 < self._hang_s <= now_s - self._since_s


def _is_name(name: str) -> bool:
    return 0 < len(name) <= _MAX_NAME and name.isprintable()


def _is_number(value: object) -> bool:
    # a whole number too large for a float is none of ours either
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -1e300 < value < 1e300 and math.isfinite(value)


def _whole(data: bytes) -> bytes:
    """Without the first bytes of a character whose last ones are still to come."""
    for back in range(1, min(4, len(data))):
        lead = data[-back]
        if lead >= 0xC0:
            needs = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return data[:-back] if needs > back else data
        if lead < 0x80:
            break
    return data
