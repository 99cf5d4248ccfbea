"""What a job leaves behind, found and sent: checkpoints while it runs, artifact and logs after."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from agent import order as files
from agent import saves
from agent.orders import OUTPUT, SCRIPT
from agent.protocol import AssignmentSpec, UploadKind
from agent.record import Record
from agent.sandbox import outputs
from agent.saves import ARTIFACT, Look, Save
from agent.transfer import Progress
from agent.uploads import Folder, NotSent, Outgoing, Uploads

log = logging.getLogger(__name__)

_LOGS: Final = ("stdout.log.1", "stdout.log", "stderr.log.1", "stderr.log")
_MAX_FILES: Final = 10_000
_ORDERLY: Final = (0, 75, 130, 143)
"""Exit codes of a process that has done what it wanted to do before it left."""


class Results:
    """One assignment's output, and what of it has been sent."""

    def __init__(
        self, folder: Path, record: Record, spec: AssignmentSpec, uploads: Uploads
    ) -> None:
        self._folder, self._record, self._spec, self._uploads = folder, record, spec, uploads
        self._job = folder / "job"
        self._not_taken: set[int] = set()
        resume = spec.resume
        self._restored = frozenset(
            f"{resume.place}/{file.path}" for file in resume.files if resume.place
        ) if resume else frozenset()  # fmt: skip

    def newest(self) -> Save | None:
        """The newest checkpoint that is whole and was not sent."""
        if not (self._folder / files.LOCK).exists():
            return None
        sent, but = self._record.saved_ns, frozenset(self._not_taken)
        return saves.newest(self._job, self._look(), after_ns=sent, but=but)

    def step_of(self, save: Save) -> int:
        """The number it is sent under, rising within a lease whatever a script calls its saves."""
        sent, resume = self._record.checkpoint, self._spec.resume
        if save.number is not None:
            return save.number if sent is None else max(save.number, sent + 1)
        before = resume.step if sent is None and resume is not None else -1
        return max(self._record.step, 1 + max(before, -1 if sent is None else sent))

    async def send_checkpoint(
        self, save: Save, seconds: float, running_ms: int, say: Callable[[str], None]
    ) -> str:
        """Sends one; why it can't be taken, or "" if it was: the job goes on either way. Raises
        Fenced."""
        step = self.step_of(save)
        since_ms = (time.time_ns() - save.at_ns) // 1_000_000
        folder = Folder(
            assignment=self._record.id,
            epoch=self._record.epoch,
            kind="checkpoint",
            step=step,
            files=[],
            seconds=seconds or save.wrote_s,
            running_ms=max(0, running_ms - max(0, since_ms)),
            place=save.place if self._spec.recipe == SCRIPT else "",
        )
        try:
            await self._send_held(save, folder, say)
        except (NotSent, OSError, outputs.OutputRefused) as error:
            # Not taken, or removed by the job itself in the meantime.
            self._not_taken.add(save.at_ns)
            log.info("%s of %s was not taken: %s", save.name, self._record.id, error)
            return f"{save.name} was not taken: {error}"
        self._record.checkpoint, self._record.saved_ns = step, save.at_ns
        return ""

    def has_artifact(self) -> bool:
        """Whether the job has named its result."""
        return ARTIFACT in outputs.folders(self._job, OUTPUT)

    def has_result(self) -> bool:
        """Whether there is anything that `send_artifact` would send. Raises NotSent."""
        return self._record.is_artifact_sent or bool(self.has_artifact() or self._result())

    def artifact_flaw(self) -> str:
        """Why what stands in the artifact's place can't be taken; "" if it can, or nothing does."""
        if not self.has_artifact():
            stands = os.path.lexists(self._job / OUTPUT / ARTIFACT)
            return "the artifact is not a folder" if stands else ""
        try:
            found = self._walk(ARTIFACT)
        except outputs.OutputRefused as refused:
            return f"the artifact can't be taken: {refused}"
        return "" if found else "the artifact is empty"

    async def send_artifact(self, say: Callable[[str], None]) -> None:
        """Sends the final result: the folder `artifact`, else all that a script has left where it
        ran. Raises Fenced, and NotSent if it can't be sent at all."""
        if self._record.is_artifact_sent:
            return
        try:
            found = await asyncio.to_thread(self._result)
            await self._send("artifact", self._record.step, found, ARTIFACT, say=say)
        except (OSError, outputs.OutputRefused) as error:
            raise NotSent(f"the artifact can't be taken: {error}") from None
        self._record.is_artifact_sent = True

    async def send_logs(self) -> None:
        """Sends what the job printed. Raises Fenced, NotSent."""
        if self._record.is_log_sent:
            return
        found = self._logs()
        if found:
            folder = Folder(self._record.id, self._record.epoch, "log", 0, found)
            await self._uploads.send(folder, lambda size: None)
        self._record.is_log_sent = True

    async def _send_held(self, save: Save, folder: Folder, say: Callable[[str], None]) -> None:
        most_bytes = self._spec.disk_bytes
        holding = saves.held(
            self._job, save, self._folder, most_bytes=most_bytes, most_files=_MAX_FILES
        )
        held = await asyncio.to_thread(holding.__enter__)
        try:
            if not held:
                raise NotSent("there is no file in it")
            whole = replace(folder, files=[Outgoing(*one) for one in held])
            await self._uploads.send(whole, Progress(f"sending {save.name}", whole.size, say).add)
        finally:
            holding.__exit__(None, None, None)

    async def _send(
        self,
        kind: UploadKind,
        step: int,
        found: Sequence[tuple[str, outputs.OutputFile]],
        name: str,
        *,
        say: Callable[[str], None],
    ) -> None:
        outgoing = [Outgoing(path, file.size, file.open) for path, file in found]
        folder = Folder(self._record.id, self._record.epoch, kind, step, outgoing)
        await self._uploads.send(folder, Progress(f"sending {name}", folder.size, say).add)

    def _result(self) -> list[tuple[str, outputs.OutputFile]]:
        if self.has_artifact():
            return [(file.path, file) for file in self._walk(ARTIFACT)]
        exit = self._record.exit
        if self._spec.recipe != SCRIPT or exit is None or exit.why != "exited":
            # Asked to leave, it may well have left half way.
            return []
        found = saves.leftovers(self._job, self._look())
        size = sum(file.size for _, file in found)
        if len(found) > _MAX_FILES or size > self._spec.disk_bytes:
            raise NotSent(
                f"it left {len(found)} files of {size} bytes in all, and {_MAX_FILES} files of "
                f"{self._spec.disk_bytes} bytes are taken: put what counts into "
                "$GRIDLOOM_OUTPUT/artifact"
            )
        return found

    def _look(self) -> Look:
        """What decides what is whole, as of now or of the job's end."""
        record, exit = self._record, self._record.exit
        ended = (self._folder / files.STATUS).stat().st_mtime_ns if record.is_gone else None
        return Look(
            script=self._spec.recipe == SCRIPT,
            # The keeper takes its lock when all is laid out and before the job begins.
            since_ns=(self._folder / files.LOCK).stat().st_mtime_ns,
            now_ns=ended or time.time_ns(),
            orderly=exit is not None and exit.code in _ORDERLY,
            torn=exit is not None and exit.why in ("keeper_lost", "rebooted"),
            restored=self._restored,
        )

    def _walk(self, name: str) -> list[outputs.OutputFile]:
        return outputs.walk(
            self._job, f"{OUTPUT}/{name}", max_bytes=self._spec.disk_bytes, max_files=_MAX_FILES
        )

    def _logs(self) -> list[Outgoing]:
        """The keeper's files, which are not the job's to change; empty ones are left out."""
        found = []
        for name in _LOGS:
            path = self._folder / name
            if path.exists() and path.stat().st_size:
                opener = partial(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
                found.append(Outgoing(name, path.stat().st_size, opener))
        return found
