"""Answers the market's demand for a proof of hardware, while nothing runs here."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

import agent
from agent import protocol
from agent.api import Api, Refused
from agent.config import State
from agent.hardware import Machine
from agent.protocol import ProofCommit, ProofOpening, ProofTask
from agent.transfer import Bandwidth

log = logging.getLogger(__name__)

_FIRST_S, _LONGEST_S = 10.0, 600.0
"""Asked for soon after a connect (the owner may just be confirming the node), then more rarely."""
_FAILED_S: Final = 3600.0
_WITHIN_S: Final = 600.0
_LINE: Final = 64 * 2**20
_RUN: Final = "import sys; sys.path.append({home!r}); from agent.benchmark import main; main()"
_Reply = TypeVar("_Reply", bound=protocol.Wire)


class NotProven(RuntimeError):
    """The benchmark could not be run; says why."""


class Prover:
    """Looks whether a proof is due, and gives it."""

    def __init__(self, state: State, machine: Machine, api: Api, bandwidth: Bandwidth) -> None:
        self._state, self._machine, self._api = state, machine, api
        self._bandwidth = bandwidth
        self._again = asyncio.Event()

    def look_again(self) -> None:
        """A socket has opened: what the market wants may have changed."""
        self._again.set()

    async def run(self, is_idle: Callable[[], bool]) -> None:
        """For as long as the agent lives."""
        wait = _FIRST_S
        while True:
            self._again.clear()
            if is_idle():
                wait = await self._look(wait)
            try:
                async with asyncio.timeout(wait):
                    await self._again.wait()
                wait = _FIRST_S
            except TimeoutError:
                wait = min(2 * wait, _LONGEST_S)

    async def _look(self, wait: float) -> float:
        """Gives the proof that is due, if one is; when to look again."""
        try:
            task = await self._api.proof()
        except Refused as no:
            if no.status != 404:
                log.warning("no proof of hardware is taken now: %s", no)
            return wait if no.status == 404 else _FAILED_S
        try:
            await self._prove(task)
        except Refused as no:
            log.error("the proof of hardware was not accepted: %s", no)
            return _FAILED_S
        except NotProven as error:
            log.error("the benchmark failed: %s", error)
            return _FAILED_S
        log.info("the proof of hardware has passed")
        return _FIRST_S

    async def _prove(self, task: ProofTask) -> None:
        gpus, scratch = len(self._machine.minors), self._state.root
        async with _benchmark(self._machine.training.python, gpus, scratch) as process:
            commit = await _ask(process, task, ProofCommit)
            if self._bandwidth.mbps:
                details = {**commit.details, "storage_mbps": self._bandwidth.mbps}
                commit = msgspec.structs.replace(commit, details=details)
            challenge = await self._api.commit_proof(task.id, commit)
            opening = await _ask(process, challenge, ProofOpening)
        await self._api.open_proof(task.id, opening)


@asynccontextmanager
async def _benchmark(
    python: Path, gpus: int, scratch: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, which does not outlive the block. Our package comes last on its path: what the
    training environment has of its own counts first."""
    home = str(Path(agent.__file__ or "").parent.parent)
    argv = [str(python), "-I", "-c", _RUN.format(home=home), str(gpus), str(scratch)]
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, stderr=pipe, limit=_LINE
        )
    except OSError as error:
        raise NotProven(f"{python} does not run: {error}") from None
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ask(
    process: asyncio.subprocess.Process, question: protocol.Wire, kind: type[_Reply]
) -> _Reply:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(protocol.encode(question) + b"\n")
    try:
        async with asyncio.timeout(_WITHIN_S):
            line = await process.stdout.readline()
    except TimeoutError:
        raise NotProven(f"it took longer than {_WITHIN_S:g} s") from None
    if not line:
        said = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
        raise NotProven(said[-1] if said else "it ended without a word")
    return protocol.decode(line, kind)
