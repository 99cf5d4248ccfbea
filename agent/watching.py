"""One running job, looked at again and again: its curve, its output, its checkpoints, its pulse."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent import order as files
from agent import sampling, saves
from agent.orders import METRICS
from agent.protocol import AssignmentSpec
from agent.record import Record
from agent.results import Results
from agent.saves import Save
from agent.tails import LogTail, MetricsTail, Quiet
from agent.tools import Tools
from agent.uploads import Fenced

log = logging.getLogger(__name__)

_TAILS_S: Final = 0.5
_CHECKPOINTS_S: Final = 1.0
_QUIET_S: Final = 5.0
_DUTY: Final = 20
"""A look that took so long is repeated after that many times as long, at the earliest: a job that
makes a hundred thousand folders must not keep us busy."""


class Watch:
    """What the agent sees of one job while its process runs."""

    def __init__(self, folder: Path, record: Record, spec: AssignmentSpec, tools: Tools) -> None:
        self.is_hung = False
        self.saving: asyncio.Task[None] | None = None
        """The upload of a checkpoint that is on its way."""
        self.results = Results(folder, record, spec, tools.uploads)
        self._folder, self._record, self._spec, self._tools = folder, record, spec, tools
        self._metrics = MetricsTail(folder / "job", METRICS, record.metrics_offset)
        self._metrics.step = record.step
        self._logs = (
            LogTail(folder, "stdout", record.stdout),
            LogTail(folder, "stderr", record.stderr),
        )
        self._quiet = Quiet(spec.hang_s)
        self._due = {"tails": 0.0, "checkpoints": 0.0, "quiet": 0.0}
        self._fenced = False
        self._rested_at = 0.0
        """A job that saves all the time gets half of the line: after each checkpoint it rests for
        as long as that took."""

    async def look(self, seen: files.Status, running_ms: int, say: Callable[[str], None]) -> None:
        """One look at all that is due; quick, since the keeper's word is read in between."""
        now = time.monotonic()
        if now >= self._due["tails"]:
            self._due["tails"] = now + _TAILS_S
            self.read_tails(running_ms)
        if now >= max(self._due["checkpoints"], self._rested_at):
            await self._look_for_checkpoint(running_ms, say)
            self._due["checkpoints"] = self._after(now, _CHECKPOINTS_S)
        if now >= self._due["quiet"]:
            await self._feel_pulse(seen, now)
            self._due["quiet"] = self._after(now, min(_QUIET_S, self._spec.hang_s / 4))

    def read_tails(self, running_ms: int) -> bool:
        """Takes in metrics and output; whether there was any."""
        record, outbox = self._record, self._tools.outbox
        points = self._metrics.read(time.monotonic())
        for point in points:
            outbox.add_point(record.id, running_ms, point)
        record.step, record.metrics_offset = self._metrics.step, self._metrics.offset
        chunks = [chunk for tail in self._logs if outbox.takes_logs and (chunk := tail.read())]
        for chunk in chunks:
            outbox.add_log(record.id, chunk)
        record.stdout, record.stderr = (tail.place for tail in self._logs)
        return bool(points or chunks)

    def read_rest(self, running_ms: int) -> None:
        """The last lines of a job that is gone."""
        while self.read_tails(running_ms):
            pass

    def stop_saving(self) -> None:
        """No checkpoint is worth sending any more."""
        if self.saving is not None:
            self.saving.cancel()

    async def finish_saving(self, running_ms: int, say: Callable[[str], None]) -> None:
        """Sees the checkpoint on its way through, and then a newer one, if there is."""
        if self.saving is not None:
            await asyncio.wait((self.saving,))
        await self._look_for_checkpoint(running_ms, say)
        if self.saving is not None:
            await asyncio.wait((self.saving,))
            self.saving.result()

    async def _look_for_checkpoint(self, running_ms: int, say: Callable[[str], None]) -> None:
        """Begins to send the newest one, unless another is on its way; training goes on."""
        if self._fenced or (self.saving is not None and not self.saving.done()):
            return
        save = await asyncio.to_thread(self.results.newest)
        if save is not None:
            await self._draw(save, running_ms)
            self.saving = asyncio.create_task(self._save(save, running_ms, say))

    async def _draw(self, save: Save, running_ms: int) -> None:
        """The curve of a script that leaves it to Hugging Face's Trainer to keep one."""
        if self._metrics.offset:
            return
        record, resume = self._record, self._spec.resume
        goes_on = resume is not None and (save.number or 0) > resume.step
        drawn = max(record.step, resume.step if resume is not None and goes_on else -1)
        for point in await asyncio.to_thread(saves.curve, self._folder / "job", save):
            if point.step > drawn:
                self._tools.outbox.add_point(record.id, running_ms, point)
                record.step = self._metrics.step = max(record.step, point.step)

    async def _save(self, save: Save, running_ms: int, say: Callable[[str], None]) -> None:
        begun = time.monotonic()
        try:
            seconds = self._metrics.save_s
            say(await self.results.send_checkpoint(save, seconds, running_ms, say))
        except Fenced as fenced:
            log.warning("%s: nothing is taken any more: %s", self._record.id, fenced)
            self._fenced = True
        self._rested_at = 2 * time.monotonic() - begun
        self._tools.changed()

    async def _feel_pulse(self, seen: files.Status, now: float) -> None:
        if seen.state != "running":
            return
        cpu_s = await asyncio.to_thread(_cpu_seconds, seen.keeper_pid)
        gpus = [uuid for uuid in self._spec.devices if uuid in self._tools.machine.minors]
        self.is_hung = self._quiet.is_hung(
            now,
            step=self._record.step,
            cpu_s=cpu_s,
            gpu_percent=self._tools.sampler.utilisation(gpus),
        )

    def _after(self, begun: float, pause: float) -> float:
        took = time.monotonic() - begun
        return begun + max(pause, _DUTY * took)


def _cpu_seconds(keeper_pid: int) -> float:
    return sampling.cpu_seconds(sampling.tree(keeper_pid))
