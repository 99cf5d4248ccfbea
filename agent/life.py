"""The life of one assignment on this node, from the market's wish to the last byte sent.

`run` can be called again after any failure, and by the next agent after this one was killed: it
looks at what lies in the folder, and goes on from there.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import psutil

from agent import keeper, sampling, starting
from agent import order as files
from agent import record as records
from agent.protocol import AssignmentSpec, AssignmentState, Claim, Drain, Exit, Status
from agent.record import Record
from agent.starting import NotStarted
from agent.tools import Tools
from agent.uploads import Fenced, NotSent
from agent.usage import Meter
from agent.watching import Watch

log = logging.getLogger(__name__)

_STARTING_S: Final = 0.02
_RUNNING_S: Final = 0.25
_SAVE_S: Final = 5.0
_LATE_MS: Final = 2000
"""The keeper itself ends a job in its time; this much later we do, should it fail to."""
_UNSEEN_MS: Final = 10_000
"""Running time of which nobody read the power, since no agent was there."""
HANG: Final = "hang"


class Life:
    """One assignment. All methods belong to the event loop's thread."""

    def __init__(self, folder: Path, record: Record, tools: Tools) -> None:
        self.folder, self.record = folder, record
        self.seen: files.Status | None = None
        self.spec: AssignmentSpec | None = None
        self._tools = tools
        self._bell, self._leave, self._abandoned = (asyncio.Event() for _ in range(3))
        if record.drain or record.is_abandoned:
            self._leave.set()
        if record.is_abandoned:
            self._abandoned.set()
        self._asked: Drain | None = None
        self._meter = self._restored_meter()

    # What is asked of it.

    def pay(self, paid_through_ms: int) -> None:
        """More running time is paid for."""
        self.record.paid_through_ms = paid_through_ms
        files.write_paid_through(self.folder, paid_through_ms)
        self.save()

    def ask_to_leave(self, drain: Drain) -> None:
        """Checkpoint and leave; a later call with less patience counts."""
        by = files.up_ms() + round(drain.grace_s * 1000)
        self.record.drain = drain
        self.record.leave_by_up_ms = min(self.record.leave_by_up_ms or by, by)
        self.save()
        self._leave.set()
        self._bell.set()

    def abandon(self) -> None:
        """Nobody wants it any more: its end, and nothing is sent."""
        self.record.is_abandoned = True
        self.save()
        self._leave.set()
        self._abandoned.set()
        self._bell.set()

    # What is asked about it.

    def status(self) -> Status:
        """As the market is told."""
        record = self.record
        if record.is_gone:
            return record.gone_status()
        return Status(
            id=record.id,
            epoch=record.epoch,
            state=self._state(),
            running_ms=self.running_ms(),
            step=record.step,
            checkpoint=record.checkpoint,
            detail=record.detail[:2000],
        )

    def running_ms(self) -> int:
        """How long its process has run by now, from the keeper's own word of this moment."""
        latest = self._latest()
        if latest is None:
            return self.record.ran_ms
        if latest.state == "gone" or not latest.started_up_ms:
            return latest.running_ms
        return max(latest.running_ms, files.up_ms() - latest.started_up_ms)

    def is_running(self) -> bool:
        """Whether its process runs."""
        return not self.record.is_gone and self._state() in ("running", "draining")

    def devices(self) -> set[str]:
        """What it uses, as long as it is not gone."""
        return set() if self.record.is_gone or self.spec is None else set(self.spec.devices)

    def processes(self) -> list[psutil.Process]:
        """Its keeper and all below it."""
        if self.record.is_gone or self.seen is None:
            return []
        return sampling.tree(self.seen.keeper_pid)

    # What is done with it.

    def claim(self, *, final: bool = False) -> None:
        """Signs what it has used so far. The claim is on the disk when this returns."""
        record, spool, latest = self.record, self._tools.spool, self._latest()
        self._integrate()
        spool.add(
            Claim(
                assignment=record.id,
                epoch=record.epoch,
                n=spool.next_number(record.id),
                boot_id=files.boot_id(),
                # What the keeper has written, a second old at most: never more than has run, even
                # if its process has ended by now and we don't know it yet.
                running_ms=record.ran_ms if latest is None else latest.running_ms,
                step=record.step,
                checkpoint=record.checkpoint,
                millijoules=round(self._meter.millijoules),
                measured=self._meter.measured,
                final=final,
            )
        )

    def save(self) -> None:
        """Keeps the record."""
        records.save(self.folder, self.record)

    def say(self, words: str) -> None:
        """What it is doing, for people. How a job failed is not talked over."""
        exit = self.record.exit
        if words != self.record.detail and (exit is None or exit.code == 0):
            self.record.detail = words
            self._tools.noted()

    async def look(self) -> None:
        """Finds the job that an earlier agent may have started."""
        self.spec = self.spec or starting.known_spec(self.folder, self.record)
        self.seen = await asyncio.to_thread(keeper.read_status, self.folder)

    async def run(self) -> None:
        """To the end: gone and settled. Raises OSError when the disk or the like fails it."""
        await self.look()
        if not self.record.is_gone and self.seen is None:
            try:
                await self._begin()
            except NotStarted as error:
                self._end(Exit(code=None, signal=None, why=error.why), str(error))
        watch = None
        if self.spec is not None:
            watch = Watch(self.folder, self.record, self.spec, self._tools)
        try:
            if not self.record.is_gone:
                await self._follow(watch)
            if not self.record.is_settled:
                await self._finish(watch)
        finally:
            if watch is not None:
                watch.stop_saving()

    # Its course.

    async def _begin(self) -> None:
        """Fetches and starts; raises NotStarted, also when it must leave before it came."""
        record = self.record
        if record.boot_id != files.boot_id():
            record.boot_id, record.accepted_up_ms = files.boot_id(), files.up_ms()
        preparing = asyncio.ensure_future(self._prepare())
        leaving, late = map(asyncio.ensure_future, (self._leave.wait(), self._late()))
        work = (preparing, leaving, late)
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                raise NotStarted("killed" if record.is_abandoned else "drain", record.detail)
            if late.done():
                raise NotStarted("start_failed", f"too slow to start: {record.detail}")
            secrets = preparing.result()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        await starting.start(self.folder, secrets)
        self.say("")

    async def _prepare(self) -> dict[str, str]:
        """All that a start needs; the values of its secrets, which are kept nowhere else."""
        if self.spec is None:
            self.spec = await starting.fetch_spec(self.folder, self.record, self._tools)
            self._tools.changed()
        accepted_ms = self.record.accepted_up_ms
        await starting.prepare(self.folder, self.spec, self._tools, self.say, accepted_ms)
        return await starting.fetch_secrets(self.spec, self._tools)

    async def _late(self) -> None:
        """Returns when the start has taken too long; the spec may say how long that is."""
        while True:
            patience = self.spec.start_timeout_s if self.spec else starting.START_BY_S
            left = patience - (files.up_ms() - self.record.accepted_up_ms) / 1000
            if left <= 0:
                return
            await asyncio.sleep(min(left, 1.0))

    async def _follow(self, watch: Watch | None) -> None:
        """Until the keeper has said its last word."""
        saved_at = files.up_ms()
        while True:
            self._bell.clear()
            before = self.seen
            self.seen = seen = await asyncio.to_thread(keeper.read_status, self.folder)
            assert seen is not None, "a keeper was started here"
            if seen.state == "gone":
                break
            if before is None or before.state != seen.state:
                self._tools.changed()
            await self._obey(seen, hung=watch is not None and watch.is_hung)
            if watch is not None:
                await watch.look(seen, self.running_ms(), self.say)
            self._integrate()
            if files.up_ms() - saved_at > _SAVE_S * 1000:
                saved_at = files.up_ms()
                self.save()
            pause = _STARTING_S if seen.state == "starting" else _RUNNING_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._bell.wait()
        await self._ended(seen, watch)

    async def _obey(self, seen: files.Status, *, hung: bool) -> None:
        """Does what is asked, and what the keeper has left undone."""
        record = self.record
        late = record.leave_by_up_ms and files.up_ms() > record.leave_by_up_ms + _LATE_MS
        if record.is_abandoned or late:
            await asyncio.to_thread(keeper.kill, self.folder)
            return
        if hung and not record.is_hung and self.spec is not None:
            log.warning("%s hangs: no step, no processor time", record.id)
            record.is_hung = True
            record.drain = record.drain or Drain(why=HANG, grace_s=self.spec.grace_s)
            self.save()
        if record.drain != self._asked and record.drain is not None:
            self._asked = record.drain
            grace_ms = round(record.drain.grace_s * 1000)
            keeper.drain(self.folder, record.drain.why, grace_ms)

    async def _ended(self, seen: files.Status, watch: Watch | None) -> None:
        """Takes in how it ended."""
        why = HANG if self.record.is_hung and seen.why == "drain" else seen.why
        exit = Exit(code=seen.exit_code, signal=seen.exit_signal, why=why or "exited")
        detail = "no step and no processor time for too long" if why == HANG else seen.detail
        if watch is not None:
            watch.read_rest(seen.running_ms)
            flaw = await asyncio.to_thread(watch.results.artifact_flaw)
            if seen.exit_code == 0 and flaw:
                exit, detail = Exit(code=None, signal=None, why="output"), flaw
        self._integrate()
        self.record.ran_ms = seen.running_ms
        self._end(exit, detail)

    def _end(self, exit: Exit, detail: str) -> None:
        self.record.detail = detail[:2000]
        self.record.exit = exit
        self.record.is_gone = True
        self.save()

    async def _finish(self, watch: Watch | None) -> None:
        """What is owed is claimed, what is left is sent, and both are waited for; but nothing of
        it for a market that wants it no more."""
        record = self.record
        if record.ran_ms and not record.is_claimed:
            self.claim(final=True)
            record.is_claimed = True
            self.save()
        self._tools.changed()
        await self._unless_abandoned(self._hand_in(watch))
        record.is_settled = True
        self.save()
        self._tools.changed()

    async def _hand_in(self, watch: Watch | None) -> None:
        exit = self.record.exit
        if watch is not None and self.seen is not None:
            try:
                await self._send(watch, done=exit is not None and exit.code == 0)
            except Fenced as fenced:
                log.warning("%s: nothing is taken any more: %s", self.record.id, fenced)
        await self._tools.spool.answered(self.record.id)

    async def _send(self, watch: Watch, *, done: bool) -> None:
        """The artifact of a job that is done, else its newest checkpoint; then its output."""
        results = watch.results
        try:
            if done and await asyncio.to_thread(results.has_result):
                watch.stop_saving()
                await results.send_artifact(self.say)
            else:
                await watch.finish_saving(self.record.ran_ms, self.say)
        except NotSent as error:
            self.say(f"its artifact could not be sent: {error}")
        self.save()
        with contextlib.suppress(NotSent):
            await results.send_logs()
        self.save()

    async def _unless_abandoned(self, work: Coroutine[Any, Any, None]) -> None:
        task, over = asyncio.ensure_future(work), asyncio.ensure_future(self._abandoned.wait())
        try:
            await asyncio.wait((task, over), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            for one in (task, over):
                one.cancel()
            await asyncio.gather(task, over, return_exceptions=True)

    def _state(self) -> AssignmentState:
        if self.seen is not None and self.seen.state in ("running", "draining"):
            return self.seen.state
        return "accepted" if self.spec is None else "starting"

    def _latest(self) -> files.Status | None:
        """The keeper's word as of now; None before it was started, and once it is gone."""
        if self.record.is_gone or self.seen is None:
            return None
        return files.read(self.folder / files.STATUS, files.Status) or self.seen

    def _integrate(self) -> None:
        """The energy of what has run since the last time."""
        if self.spec is None:
            return
        sampler, ran_ms = self._tools.sampler, self.running_ms()
        unseen = ran_ms - self._meter.running_ms > _UNSEEN_MS
        read = sampler.full_power if unseen else sampler.power
        power = read(self.spec.devices)
        self._meter.add(ran_ms, power.watts, measured=power.measured)

    def _restored_meter(self) -> Meter:
        """Goes on from the last claim; what was not claimed is integrated at the next reading."""
        last = self._tools.spool.last(self.record.id)
        if last is None:
            return Meter()
        return Meter(last.running_ms, float(last.millijoules), last.measured)
