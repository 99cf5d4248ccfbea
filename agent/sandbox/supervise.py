"""The keeper's loop: one job from its start to the last word about it.

Single-threaded. Every half second it reads what the agent wishes (`paid_through_ms`,
`drain.json`), every second it writes `status.json` and asks the watchdog; deadlines are met to
the millisecond in between.
"""

import contextlib
import os
import selectors
import signal
from pathlib import Path

import msgspec

from agent import order as files
from agent.order import Drain, KeeperOrder, OrderError, Status, Why
from agent.sandbox import traces
from agent.sandbox.gate import Gate
from agent.sandbox.launch import Running, StartFailed, launch
from agent.sandbox.logs import Output
from agent.sandbox.visits import Visits
from agent.sandbox.watchdog import Watchdog

_WISHES_MS, _STATUS_MS, _WATCH_MS = 500, 1000, 1000
_START_WITHIN_MS = 20_000
_NEVER = 2**62


class Supervisor:
    """Runs the order once. `run` returns when nothing of the job is left and that is written."""

    def __init__(self, folder: Path, order: KeeperOrder, secrets: dict[str, str]) -> None:
        self._folder = folder
        self._order = order
        self._secrets = secrets
        self._status = Status(keeper_pid=os.getpid(), boot_id=files.boot_id(), state="starting")
        self._paid_ms = files.read_paid_through(folder) or 0
        self._kill_at_ms = _NEVER  # in running time, once the end has begun
        self._due = {"wishes": 0, "status": 0, "watch": 0}  # boot clock
        self._selector = selectors.DefaultSelector()
        self._wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._told_to_stop = False
        self._gate: Gate | None = None
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._write()

    def run(self) -> Status:
        """From `starting` to `gone`; what came of it."""
        begun = files.up_ms()
        try:
            running = launch(self._folder, self._order, self._secrets)
        except StartFailed as error:
            return self._end("start_failed", str(error))
        traces.record(self._folder, running)
        self._watchdog = Watchdog(self._folder / "job", self._order)
        self._open(running)
        while self._alive(running):
            now = files.up_ms()
            if self._status.state == "starting" and now - begun > _START_WITHIN_MS:
                running.failure = "the job's process did not start in time"
            if running.failure or self._must_die(running, now):
                break
        return self._finish(running)

    # one turn of the loop

    def _alive(self, running: Running) -> bool:
        """Waits for news, at most until something is due; False once init is gone."""
        for key, _ in self._selector.select(self._wait_ms() / 1000):
            if key.fd == running.control:
                alive = running.listen()
                self._open_gate(running)
                self._visits.hand_over(running)
                if running.started_up_ms and self._status.state == "starting":
                    self._set(state="running", started_up_ms=running.started_up_ms)
                if not alive:
                    return False
            elif key.fd == self._visits.fileno():
                self._visits.welcome(running)
            elif key.fd == self._wake:
                os.read(self._wake, 4096)
            else:
                self._output.copy(key.fd)
        return True

    def _must_die(self, running: Running, now: int) -> bool:
        """Does all that is due; True if the job has to be killed here and now."""
        if self._told_to_stop:
            self._blame("killed", "the agent ended it")
            return True
        if self._is_due("wishes", now, _WISHES_MS):
            paid_ms = files.read_paid_through(self._folder)
            self._paid_ms = self._paid_ms if paid_ms is None else paid_ms
            self._obey_drain(running)
        if self._status.state == "running":
            self._begin_unpaid_end(running)
        watching = self._status.state != "starting" and self._is_due("watch", now, _WATCH_MS)
        if watching and self._passed_a_limit(running):
            return True
        if watching and self._gate is not None:
            self._gate.revive()
        if self._is_due("status", now, _STATUS_MS):
            self._write()
        self._output.resume(now)
        if self._running_ms() < min(self._kill_at_ms, self._paid_ms):
            return False
        if not self._status.why:
            self._blame("unpaid", "nothing is paid for")
        return True

    def _open_gate(self, running: Running) -> None:
        """Somebody answers at the door that init has handed up."""
        if running.door >= 0 and self._gate is None:
            self._gate = Gate(
                running.door, self._order.egress, self._order.networks, running.stderr_in
            )

    def _obey_drain(self, running: Running) -> None:
        try:
            drain = files.read(self._folder / files.DRAIN, Drain)
        except OrderError as error:
            drain = Drain(why=str(error))  # somebody wants an end, however badly they say so
        if drain is None or self._status.state == "starting":
            return
        grace = self._order.grace_ms if drain.grace_ms is None else drain.grace_ms
        if self._status.state == "running":
            self._begin_end(running, "drain", drain.why)
            self._kill_at_ms = self._running_ms() + grace
        elif self._status.why != "drain":
            self._kill_at_ms = min(self._kill_at_ms, self._running_ms() + grace)

    def _begin_unpaid_end(self, running: Running) -> None:
        """TERM so long before the end of the paid time as a save takes; raised in time, nothing
        happens."""
        if self._running_ms() >= self._paid_ms - self._order.save_ms:
            self._begin_end(running, "unpaid", f"paid for {self._paid_ms} ms")
            self._kill_at_ms = self._paid_ms

    def _begin_end(self, running: Running, why: Why, detail: str) -> None:
        running.term()
        self._blame(why, detail)
        self._set(state="draining")

    def _passed_a_limit(self, running: Running) -> bool:
        kills = running.groups.oom_kills() if running.groups else 0
        if kills:
            self._blame("memory", self._out_of_memory())
            return True
        verdict = self._watchdog.check(running.init_pid)
        if verdict:
            self._blame(verdict.why, verdict.detail)
        return verdict is not None

    def _out_of_memory(self) -> str:
        return f"out of the {self._order.limits.memory_bytes >> 20} MiB of memory it booked"

    # the end

    def _finish(self, running: Running) -> Status:
        """Kills what is left, keeps the last output, and writes the last word."""
        ran_ms = self._running_ms()
        oom = running.groups.oom_kills() if running.groups else 0
        running.kill()
        self._visits.close()
        if self._gate is not None:
            self._gate.close()
        all_gone = running.destroy()
        self._output.finish()
        os.close(running.control)
        traces.forget(self._folder)
        ended = running.ended
        code, number = (ended.code, ended.signal) if ended else (None, int(signal.SIGKILL))
        if not running.started_up_ms and not self._status.why and ended is None:
            return self._end("start_failed", running.failure or self._last_complaint())
        if oom and code != 0:
            self._blame("memory", self._out_of_memory())
        if not self._status.why:
            self._blame(
                *(("exited", running.failure) if ended else ("killed", "the sandbox was killed"))
            )
        if not all_gone:
            self._blame(self._status.why, "a process of the job could not be killed")
        self._status = msgspec.structs.replace(
            self._status, running_ms=ran_ms, exit_code=code, exit_signal=number
        )
        return self._end(self._status.why, self._status.detail)

    def _last_complaint(self) -> str:
        lines = (self._folder / "stderr.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the sandbox ended before the job began"

    def _end(self, why: Why, detail: str) -> Status:
        self._status = msgspec.structs.replace(
            self._status, state="gone", why=why, detail=detail[:2000]
        )
        self._write()
        return self._status

    def _open(self, running: Running) -> None:
        pipes = {
            running.stdout: self._folder / "stdout.log",
            running.stderr: self._folder / "stderr.log",
        }
        self._output = Output(self._selector, pipes, self._order.limits.log_bytes, self._secrets)
        self._visits = Visits(self._folder)
        for fd in (self._wake, running.control, self._visits.fileno()):
            self._selector.register(fd, selectors.EVENT_READ)

    # time and status

    def _running_ms(self) -> int:
        started = self._status.started_up_ms
        return files.up_ms() - started if started else 0

    def _wait_ms(self) -> int:
        """Until the next thing is due."""
        now = files.up_ms()
        waits = [due - now for due in self._due.values()]
        if self._status.state != "starting":
            ran = self._running_ms()
            waits += [self._kill_at_ms - ran, self._paid_ms - ran]
        if self._status.state == "running":
            waits.append(self._paid_ms - self._order.save_ms - self._running_ms())
        return max(0, min(*waits, self._output.wait_ms(now)))

    def _is_due(self, what: str, now: int, every_ms: int) -> bool:
        if now < self._due[what]:
            return False
        self._due[what] = now + every_ms
        return True

    def _blame(self, why: Why, detail: str) -> None:
        self._status = msgspec.structs.replace(self._status, why=why, detail=detail[:2000])

    def _set(self, **changes: object) -> None:
        self._status = msgspec.structs.replace(self._status, **changes)
        self._write()

    def _write(self) -> None:
        """A full disk must not end the job: the next word may come through."""
        gone = self._status.state == "gone"
        if not gone:
            self._status = msgspec.structs.replace(self._status, running_ms=self._running_ms())
        with contextlib.suppress(OSError):
            files.write(self._folder / files.STATUS, self._status, durable=gone)

    def _on_term(self, *_: object) -> None:
        self._told_to_stop = True
