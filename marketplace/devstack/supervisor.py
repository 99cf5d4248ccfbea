"""Starts services together, waits until they are ready, notices a death, stops from the top."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Self

from marketplace.devstack.process import Child, Service, StackError, Stage

_POLL_S = 0.03
_WATCH_S = 0.3
_FREE_BYTES = 1 << 30
_RESTARTS, _RESTARTS_WITHIN_S = 3, 60


class Supervisor:
    """The children of one stack. Used from the main thread, as a context: it leaves nobody."""

    def __init__(self, logs: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self._logs = logs
        self._say = say
        self._children: list[Child] = []
        self._restarted: dict[str, deque[float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *services: Service) -> None:
        """Starts these at once and waits for all to be ready.

        Raises StackError with the tail of its log if one dies or is not ready in time.
        """
        started = [
            (self._spawn(service), time.monotonic() + service.ready_s) for service in services
        ]
        for child, deadline in started:
            _wait_ready(child, deadline)

    def run(self, *commands: Service) -> list[str]:
        """Runs these at once to their ends; returns what each printed.

        Raises StackError with the tail of its output if one fails.
        """
        self.start(*commands)
        ended = [child for child in self._children if child.service in commands]
        self._children = [child for child in self._children if child not in ended]
        return [child.log.read_text(errors="replace") for child in ended]

    def check(self) -> None:
        """Notices whatever has ended that nobody stopped.

        Starts it again, says so, if it may be; else, or if that happens too often, raises
        StackError with the tail of its log.
        """
        for child in list(self._children):
            code = child.exit_code()
            if code is None:
                continue
            obituary = _obituary(child, code)
            if not child.service.restarts or self._restarts_too_often(child.service.name):
                raise StackError(obituary)
            self._say(f"{obituary}\nIt is started again.")
            self._children.remove(child)
            self.start(child.service)

    def watch(self) -> None:
        """Watches over the children until interrupted; raises StackError as `check` does."""
        while True:
            self.check()
            time.sleep(_WATCH_S)

    def pid(self, name: str) -> int:
        """The process of the service of this name."""
        return self._child(name).pid

    def restart(self, name: str) -> None:
        """Stops one service and starts it again, while the others go on."""
        self.start(self.end(name))

    def end(self, name: str) -> Service:
        """Stops one service, and returns how to start it again."""
        child = self._child(name)
        self._children.remove(child)
        _stop_together([child])
        return child.service

    def stop(self, *, down_to: Stage = Stage.POSTGRES) -> None:
        """Stops what stands on `down_to`, and it: stage by stage from the top."""
        chosen = [child for child in self._children if child.service.stage >= down_to]
        self._children = [child for child in self._children if child not in chosen]
        chosen.sort(key=lambda child: -child.service.stage)
        for _, stage in groupby(chosen, key=lambda child: child.service.stage):
            _stop_together(list(stage))

    def _spawn(self, service: Service) -> Child:
        child = Child(service, self._logs / f"{service.name}.log")
        self._children.append(child)
        return child

    def _child(self, name: str) -> Child:
        for child in self._children:
            if child.service.name == name:
                return child
        raise StackError(f"No service named {name} runs.")

    def _restarts_too_often(self, name: str) -> bool:
        times = self._restarted.setdefault(name, deque(maxlen=_RESTARTS))
        now = time.monotonic()
        too_often = len(times) == _RESTARTS and now - times[0] < _RESTARTS_WITHIN_S
        times.append(now)
        return too_often


def need_space(folder: Path, needed: int = _FREE_BYTES) -> None:
    """Raises StackError if the disk under `folder` has less than `needed` bytes free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StackError(
            f"The disk under {folder} is nearly full: {free / 2**20:,.0f} MiB free, "
            f"{needed / 2**20:,.0f} MiB needed. Make room (`make clean` removes this checkout's "
            f"own data) and start again."
        )


def _wait_ready(child: Child, deadline: float) -> None:
    service = child.service
    while not service.is_ready(child):
        code = child.exit_code()
        if code is not None:
            raise StackError(_obituary(child, code))
        if time.monotonic() > deadline:
            raise StackError(
                f"{service.name} was not ready within {service.ready_s:.0f} s. "
                f"Its log ({child.log}) ends:\n{child.tail()}"
            )
        time.sleep(_POLL_S)


def _stop_together(children: Sequence[Child]) -> None:
    now = time.monotonic()
    for child in children:
        child.ask_to_stop()
    for child in children:
        child.wait_gone(now + child.service.grace_s)


def _obituary(child: Child, code: int) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    hint = ""
    if "No space left on device" in child.tail():
        hint = "\nThe disk is full: make room, then start again."
    return f"{child.service.name} {how}. Its log ({child.log}) ends:\n{child.tail()}{hint}"
