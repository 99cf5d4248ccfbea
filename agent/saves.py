"""Where a job has saved its state: found wherever it lies, and taken once all of it is there.

By the convention a checkpoint gets its name, `checkpoint-<step>`, by a rename, and is whole at
once. Scripts that never heard of us write under the final name: Hugging Face's Trainer a folder,
`trainer_state.json` last; others single files (`ckpt.pt`), over and over. Those are whole once
they say so, or have not been touched for a while. Times are the kernel's own (ctime, in ns),
which no job can set.
"""

import contextlib
import errno
import itertools
import json
import os
import re
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from agent.orders import OUTPUT, WORK
from agent.sandbox import outputs, workspace
from agent.sandbox.outputs import OutputFile
from agent.tails import Point, point_of

ARTIFACT: Final = "artifact"
_CHECKPOINT: Final = re.compile(r"checkpoint-(0|[1-9][0-9]{0,14})")
_UNFINISHED: Final = "checkpoint-is-incomplete.txt"
"""Trainer's own mark, while it saves on SIGTERM (`enable_jit_checkpoint`)."""
_TRAINER_STATE: Final = "trainer_state.json"
_WEIGHTS: Final = (".pt", ".pth", ".ckpt", ".safetensors", ".pth.tar", ".pt.tar")
_COMPANIONS: Final = (".json", ".yaml", ".yml", ".txt")
_COMPANION_BYTES: Final = 1 << 20
_STATE_BYTES: Final = 16 << 20
_SURE_NS: Final = 1_000_000_000
"""Of several files that are each whole, another may be about to be written."""
_STILL_NS: Final = 3_000_000_000
"""What doesn't is taken for whole after so long without a change."""
_MOST_ENTRIES: Final = 20_000
_MOST_TRIED: Final = 8
"""Of the newest folders, so many are looked into at once."""
_MOST_HELD: Final = 256
"""Files held open while they are sent, so that a job that removes its old checkpoints can't
take one away from under us."""
_COPY: Final = 1 << 20


@dataclass(frozen=True)
class Look:
    """What there is to know for judging what a job has saved."""

    script: bool
    """Whether it is somebody's own code, which may save anywhere and anyhow."""
    since_ns: int
    """When it began: what is older was laid there for it."""
    now_ns: int
    """This moment; of a job that is gone, its last."""
    orderly: bool = False
    """It has left by itself and well: whatever it was writing, it has written."""
    torn: bool = False
    """Nobody saw when it ended: for how long something was not touched says nothing."""
    restored: frozenset[str] = frozenset()
    """Paths of what it was given to go on from."""


@dataclass(frozen=True)
class Save:
    """A state that was found whole."""

    place: str
    """The folder it lies in, below the work folder: what is sent is what it holds."""
    number: int | None
    """The step in its name, if it has one."""
    at_ns: int
    """When it was last written to."""
    wrote_s: float = 0.0
    """How long that took, from its first file's end to its last's."""
    files: tuple[OutputFile, ...] = ()
    """If not all that is in the folder."""

    @property
    def name(self) -> str:
        """As it is spoken of."""
        return PurePosixPath(self.place).name if not self.files else self.files[0].path


_Entry = tuple[str, os.stat_result]


def newest(
    job: Path, look: Look, *, after_ns: int, but: frozenset[int] = frozenset()
) -> Save | None:
    """The newest state that is whole and was written after that time; the ones before it are not
    worth sending any more. `but`: times of those that can't be taken."""
    after_ns = max(after_ns, look.since_ns)
    trees = {tree: _entries(job, tree) for tree in ((OUTPUT, WORK) if look.script else (OUTPUT,))}
    folders = [one for tree, entries in trees.items() for one in _folders(tree, entries)]
    own = [one for one in folders if one.at_ns > look.since_ns]
    if own or not look.script:
        fresh = [one for one in own if one.at_ns > after_ns and one.at_ns not in but]
        fresh.sort(key=lambda one: -one.at_ns)
        return next((one.save() for one in fresh[:_MOST_TRIED] if _is_whole(job, one, look)), None)
    singles = [_singles(job, tree, entries, look) for tree, entries in trees.items()]
    new = [s for s in singles if s is not None and s.at_ns > after_ns and s.at_ns not in but]
    return max(new, key=lambda save: save.at_ns, default=None)


def leftovers(job: Path, look: Look) -> list[tuple[str, OutputFile]]:
    """(name, file) of all that a script has made or changed, wherever it was: its result, if it
    names no other. Of its checkpoints only the last one counts."""
    found: dict[str, OutputFile] = {}
    for tree in (OUTPUT, WORK):
        entries = _entries(job, tree)
        tops = {top: int(name[1]) for top, name in _checkpoints(entries).items()}
        last = max(tops, key=lambda top: tops[top], default=None)
        for path, info in entries:
            top = _within(path, tops)
            old = top is not None and top != last
            new = stat.S_ISREG(info.st_mode) and info.st_ctime_ns > look.since_ns
            if new and not old and not _is_hidden(path):
                found[path] = OutputFile.of(job, tree, path, info)
    return sorted(found.items())


def curve(job: Path, save: Save) -> list[Point]:
    """What Trainer has noted of its run in a checkpoint; [] if it is none of Trainer's."""
    state = _trainer_state(job, save.place) if not save.files else None
    if state is None:
        return []
    history, total = state.get("log_history"), state.get("max_steps")
    points = []
    for told in history if isinstance(history, list) else []:
        point = point_of(told)
        if point is not None and point.values:
            if isinstance(total, int) and total > 0:
                point.values["total_steps"] = float(total)
            points.append(point)
    return points


@contextlib.contextmanager
def held(
    job: Path, save: Save, spare: Path, *, most_bytes: int, most_files: int
) -> Iterator[list[tuple[str, int, Callable[[], int]]]]:
    """(path, size, how to open it) of a state's files, which stay as they are while they are
    sent: those of a folder are held open, single ones, which a job writes over, are copied to
    `spare`. Raises OutputRefused, OSError."""
    with contextlib.ExitStack() as stack:
        if save.files:
            _check_room(save.files, spare, most_bytes=most_bytes, most_files=most_files)
            copies = [(f, stack.enter_context(_copied(f, spare))) for f in save.files]
            yield [(f.path, f.size, _duplicate(copy.fileno())) for f, copy in copies]
            return
        files = outputs.walk(job, save.place, max_bytes=most_bytes, max_files=most_files)
        if len(files) > _MOST_HELD:
            yield [(file.path, file.size, file.open) for file in files]
            return
        opened = [(file, file.open()) for file in files]
        for _, fd in opened:
            stack.callback(os.close, fd)
        yield [(file.path, file.size, _duplicate(fd)) for file, fd in opened]


def _entries(job: Path, tree: str) -> list[_Entry]:
    """Files and folders below a tree that may be taken, so many at most; none if it is missing."""
    with contextlib.suppress(outputs.OutputRefused):
        every = itertools.islice(outputs.entries(job, tree), _MOST_ENTRIES)
        return [(path, info) for path, info, reason in every if not reason]
    return []


@dataclass(frozen=True)
class _Folder:
    """A folder that is named like a checkpoint, and what it holds."""

    place: str
    number: int
    top: os.stat_result
    inside: Sequence[_Entry]

    @property
    def at_ns(self) -> int:
        return max(map(_written_ns, (self.top, *(info for _, info in self.inside))))

    def save(self) -> Save:
        ends = [info.st_mtime_ns for _, info in self.inside if stat.S_ISREG(info.st_mode)]
        wrote_s = (max(ends) - min(ends)) / 1e9 if ends else 0.0
        return Save(self.place, self.number, self.at_ns, wrote_s)


def _written_ns(info: os.stat_result) -> int:
    """When a file was written, or a folder renamed. That something was made in a folder or removed from it
    says nothing: Trainer's oldest checkpoints are removed file by file, and are not the newest by that."""
    if stat.S_ISDIR(info.st_mode) and info.st_ctime_ns <= info.st_mtime_ns:
        return 0
    return info.st_ctime_ns


def _folders(tree: str, entries: Sequence[_Entry]) -> list[_Folder]:
    tops = _checkpoints(entries)
    inside: dict[str, list[_Entry]] = {top: [] for top in tops}
    for path, info in entries:
        top = _within(path, tops)
        if top is not None and path != top:
            inside[top].append((path, info))
    infos = dict(entries)
    return [
        _Folder(f"{tree}/{top}", int(name[1]), infos[top], inside[top])
        for top, name in tops.items()
    ]


def _checkpoints(entries: Sequence[_Entry]) -> dict[str, re.Match[str]]:
    """The folders that are named like one, the outermost of each path."""
    named = {
        path: match
        for path, info in entries
        if stat.S_ISDIR(info.st_mode)
        and (match := _CHECKPOINT.fullmatch(path.rpartition("/")[2]))
        and not _is_hidden(path)
    }
    return {path: match for path, match in named.items() if _within(path, named) == path}


def _within(path: str, tops: Mapping[str, object]) -> str | None:
    """The first of the folders on a path that is one of these."""
    parts = path.split("/")
    above = ("/".join(parts[:end]) for end in range(1, len(parts) + 1))
    return next((one for one in above if one in tops), None)


def _is_whole(job: Path, folder: _Folder, look: Look) -> bool:
    place, top, inside = folder.place, folder.top, folder.inside
    names = {path.rpartition("/")[2] for path, info in inside if stat.S_ISREG(info.st_mode)}
    if _UNFINISHED in names:
        return False
    if look.orderly:
        return True
    changed = max((info.st_ctime_ns for _, info in inside), default=0)
    # A rename changes a folder's inode and nothing that is in it.
    if top.st_ctime_ns > top.st_mtime_ns and top.st_ctime_ns >= changed:
        return True
    idle = look.now_ns - max(changed, top.st_ctime_ns)
    if _TRAINER_STATE in names:
        return _trainer_state(job, place) is not None
    return idle >= _STILL_NS and not look.torn


def _trainer_state(job: Path, place: str) -> dict[str, object] | None:
    """What Trainer writes last into a checkpoint; None if it is missing, or not all there."""
    data = _read(job, f"{place}/{_TRAINER_STATE}", _STATE_BYTES)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _singles(job: Path, tree: str, entries: Sequence[_Entry], look: Look) -> Save | None:
    """The single files that hold a job's state: of each kind of name the newest one, with the
    small files beside them. None unless one of them is new, and all are whole."""
    tops = _checkpoints(entries)
    files = [
        (path, info)
        for path, info in entries
        if stat.S_ISREG(info.st_mode)
        and not (_is_hidden(path) or _is_result(tree, path) or _within(path, tops))
    ]
    latest: dict[str, _Entry] = {}
    for path, info in files:
        ours = info.st_ctime_ns > look.since_ns or f"{tree}/{path}" in look.restored
        kind = re.sub("[0-9]+", "#", path)
        newer = kind not in latest or info.st_ctime_ns > latest[kind][1].st_ctime_ns
        if path.endswith(_WEIGHTS) and info.st_size and ours and newer:
            latest[kind] = path, info
    if not latest or not all(_is_whole_file(job, tree, *one, look) for one in latest.values()):
        return None
    beside = {path.rpartition("/")[0] for path, _ in latest.values()}
    small = [
        (path, info)
        for path, info in files
        if path.endswith(_COMPANIONS)
        and info.st_size <= _COMPANION_BYTES
        and path.rpartition("/")[0] in beside
    ]
    at_ns = max(info.st_ctime_ns for _, info in latest.values())
    chosen = [*sorted(latest.values()), *small]
    return Save(tree, None, at_ns, files=tuple(OutputFile.of(job, tree, p, i) for p, i in chosen))


def _is_whole_file(job: Path, tree: str, path: str, info: os.stat_result, look: Look) -> bool:
    """torch.save writes a zip, whose directory comes last; of others only time tells."""
    idle = look.now_ns - info.st_ctime_ns
    if info.st_ctime_ns <= look.since_ns:
        return True
    if _read(job, f"{tree}/{path}", 4) == b"PK\x03\x04":
        sure = look.orderly or look.torn or idle >= _SURE_NS
        return sure and _ends_like_a_zip(job, f"{tree}/{path}")
    return look.orderly or (idle >= _STILL_NS and not look.torn)


def _ends_like_a_zip(job: Path, path: str) -> bool:
    try:
        with open(outputs.open_file(job, path), "rb") as file:
            return zipfile.is_zipfile(file)
    except (OSError, outputs.OutputRefused):
        return False


def _read(job: Path, path: str, most: int) -> bytes:
    """The beginning of a job's file; nothing if it can't be read."""
    try:
        with open(outputs.open_file(job, path), "rb") as file:
            return file.read(most)
    except (OSError, outputs.OutputRefused):
        return b""


def _check_room(
    these: Sequence[OutputFile], spare: Path, *, most_bytes: int, most_files: int
) -> None:
    """Copies are the owner's disk, not the job's: raises OutputRefused where they are too much."""
    size = sum(max(file.size, file.allocated) for file in these)
    free = workspace.free_bytes(spare) - workspace.RESERVE_BYTES
    why = ""
    if len(these) > most_files:
        why = f"{len(these)} files, and {most_files} are taken"
    elif size > most_bytes:
        why = f"{size} bytes in all, {most_bytes} are allowed"
    elif size > free:
        why = f"{size} bytes in all, and the node has no room to copy them"
    if why:
        raise outputs.OutputRefused([outputs.Refusal(these[0].path, why)])


@contextlib.contextmanager
def _copied(file: OutputFile, spare: Path) -> Iterator[IO[bytes]]:
    """A copy that has no name, with the file's holes as they are."""
    fd = file.open()
    try:
        copy = tempfile.TemporaryFile(dir=spare)  # noqa: SIM115 - closed below
        at = 0
        while (at := _next_data(fd, at, file.size)) < file.size:
            end = min(os.lseek(fd, at, os.SEEK_HOLE), file.size)
            data = os.pread(fd, min(_COPY, end - at), at)
            if not data:
                refusal = outputs.Refusal(file.path, "it was changed while it was read")
                raise outputs.OutputRefused([refusal])
            at += os.pwrite(copy.fileno(), data, at)
        os.ftruncate(copy.fileno(), file.size)
    finally:
        os.close(fd)
    with copy:
        yield copy


def _next_data(fd: int, at: int, size: int) -> int:
    """Where the next bytes lie that are no hole; `size` if there are none."""
    try:
        return min(os.lseek(fd, at, os.SEEK_DATA), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def _duplicate(fd: int) -> Callable[[], int]:
    return lambda: os.dup(fd)


def _is_hidden(path: str) -> bool:
    """Caches and the like: nothing that is meant to be kept."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.split("/"))


def _is_result(tree: str, path: str) -> bool:
    return tree == OUTPUT and (path == ARTIFACT or path.startswith(f"{ARTIFACT}/"))
