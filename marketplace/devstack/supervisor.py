"""Starts services together, waits until they are ready, notices a death, stops from the top."""

import shutil
import threading
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Self

from marketplace.devstack.process import Child, Service, StackError

_POLL_S = 0.03
_WATCH_S = 0.3
_FREE_BYTES = 1 << 30


class Supervisor:
    """The children of one stack. Used from the main thread, as a context: it leaves nobody."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def children(self) -> Sequence[Child]:
        """What runs, in the order of starting."""
        return tuple(self._children)

    def start(self, *services: Service) -> None:
        """Starts these at once and waits for all to be ready.

        Raises StackError with the tail of its log if one dies or is not ready in time.
        """
        started = []
        for service in services:
            child = Child(service, self._logs / f"{service.name}.log")
            self._children.append(child)
            started.append((child, time.monotonic() + service.ready_s))
        for child, deadline in started:
            _wait_ready(child, deadline)

    def check(self) -> None:
        """Raises StackError if a service has ended that nobody stopped."""
        for child in self._children:
            code = child.exit_code()
            if code is not None:
                raise StackError(_obituary(child, code))

    def watch(self, stop: threading.Event) -> None:
        """Returns when `stop` is set; raises StackError when a service dies before."""
        while not stop.wait(_WATCH_S):
            self.check()

    def restart(self, name: str) -> None:
        """Stops one service and starts it again, while the others go on."""
        child = next(child for child in self._children if child.service.name == name)
        self._children.remove(child)
        _stop_together([child])
        self.start(child.service)

    def stop(self) -> None:
        """Stops stage by stage from the top; within a stage together."""
        by_stage = sorted(self._children, key=lambda child: -child.service.stage)
        self._children = []
        for _, stage in groupby(by_stage, key=lambda child: child.service.stage):
            _stop_together(list(stage))


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
