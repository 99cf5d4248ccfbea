"""What a job leaves behind, found and sent: checkpoints while it runs, artifact and logs after."""

import asyncio
import logging
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from agent.orders import OUTPUT
from agent.protocol import AssignmentSpec, UploadKind
from agent.record import Record
from agent.sandbox import outputs
from agent.transfer import Progress
from agent.uploads import Folder, NotSent, Outgoing, Uploads

log = logging.getLogger(__name__)

ARTIFACT: Final = "artifact"
_CHECKPOINT: Final = re.compile(r"checkpoint-(0|[1-9][0-9]{0,14})")
_LOGS: Final = ("stdout.log.1", "stdout.log", "stderr.log.1", "stderr.log")
_MAX_FILES: Final = 10_000


class Results:
    """One assignment's output folder, and what of it has been sent."""

    def __init__(
        self, folder: Path, record: Record, spec: AssignmentSpec, uploads: Uploads
    ) -> None:
        self._folder, self._record, self._spec, self._uploads = folder, record, spec, uploads
        self._job = folder / "job"
        self._not_taken: set[int] = set()

    def newest(self) -> int | None:
        """Step of the newest checkpoint that is complete, was not sent, and is no older than what
        was; the ones before it are not worth sending any more."""
        found = map(_CHECKPOINT.fullmatch, outputs.folders(self._job, OUTPUT))
        steps = {int(match[1]) for match in found if match} - self._not_taken
        sent = -1 if self._record.checkpoint is None else self._record.checkpoint
        return max((step for step in steps if step > sent), default=None)

    async def send_checkpoint(self, step: int, seconds: float, say: Callable[[str], None]) -> str:
        """Sends one; why it can't be taken, or "" if it was: the job goes on either way. Raises
        Fenced."""
        name = f"checkpoint-{step}"
        try:
            await self._send("checkpoint", step, name, say=say, seconds=seconds)
        except (NotSent, OSError, outputs.OutputRefused) as error:
            # Not taken, or removed by the job itself in the meantime.
            self._not_taken.add(step)
            log.info("%s of %s was not taken: %s", name, self._record.id, error)
            return f"{name} was not taken: {error}"
        self._record.checkpoint = max(step, self._record.checkpoint or 0)
        return ""

    def has_artifact(self) -> bool:
        """Whether there is one to send."""
        return ARTIFACT in outputs.folders(self._job, OUTPUT)

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
        """Sends the final result. Raises Fenced, and NotSent if it can't be sent at all."""
        if not self._record.is_artifact_sent and await asyncio.to_thread(self.has_artifact):
            try:
                await self._send("artifact", self._record.step, ARTIFACT, say=say, seconds=0)
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

    async def _send(
        self, kind: UploadKind, step: int, name: str, *, say: Callable[[str], None], seconds: float
    ) -> None:
        found = await asyncio.to_thread(self._walk, name)
        if not found:
            raise NotSent("there is no file in it")
        folder = Folder(
            assignment=self._record.id,
            epoch=self._record.epoch,
            kind=kind,
            step=step,
            files=[Outgoing(file.path, file.size, file.open) for file in found],
            seconds=seconds,
        )
        await self._uploads.send(folder, Progress(f"sending {name}", folder.size, say).add)

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
