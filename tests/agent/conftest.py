"""A market to talk to, a node that talks to it, and jobs for it to run."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agent.config import State
from agent.protocol import AssignmentSpec, Input, Resume
from agent.sandbox import outputs
from tests.agent import node as nodes
from tests.agent.market import Market

OBEDIENT = b"""
import os, signal, sys, time
def leave(*_):
    os.makedirs("/job/output/checkpoint-9")
    open("/job/output/checkpoint-9/w", "w").write("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
open("/job/metrics.jsonl", "w").write('{"step": 1, "loss": 2}\\n')
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def device(state: State) -> str:
    return nodes.machine(state).inventory.devices[0].uuid


@pytest.fixture
def market() -> Iterator[Market]:
    it = Market()
    it.start()
    yield it
    it.stop()
    assert it.problems == []


@pytest.fixture
def state(market: Market, tmp_path: Path) -> Iterator[State]:
    """An enrolled node's state folder; its jobs are ended with the test."""
    from agent import keeper

    it = nodes.enrolled(tmp_path / "state", market)
    yield it
    for folder in it.assignments.iterdir():
        keeper.kill(folder)
        outputs.clean(folder)


@pytest.fixture
async def node(state: State) -> AsyncIterator[State]:
    """The same, at work."""
    task = asyncio.create_task(nodes.daemon(state).run())
    yield state
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def spec(script: Input, *inputs: Input, **changes: object) -> AssignmentSpec:
    """A script to run on this machine's processor."""
    fields: dict[str, object] = {
        "assignment": uuid4(),
        "lease": uuid4(),
        "job": uuid4(),
        "org": UUID(int=7),
        "epoch": 5,
        "recipe": "script",
        "parameters": {"entry": "main.py", "args": []},
        "inputs": [script, *inputs],
        "resume": None,
        "seed": 3,
        "rank": 0,
        "world": 1,
        "devices": [],
        "memory_bytes": 512 * 2**20,
        "disk_bytes": 64 * 2**20,
        "environment": nodes.TRAINING.shown.lock,
        "grace_s": 5.0,
        "save_s": 1.0,
        "start_timeout_s": 60.0,
        "hang_s": 600.0,
        "checkpoint_s": 60.0,
        **changes,
    }
    return AssignmentSpec(**fields)  # type: ignore[arg-type]


def resume(step: int, folder: Input, place: str = "") -> Resume:
    return Resume(step=step, files=folder.files, place=place)
