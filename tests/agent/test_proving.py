"""The proof of hardware, checked by the definition itself: slow, plain Python."""

import asyncio
import time
from pathlib import Path
from uuid import uuid4

import pytest

from agent.benchmark import Chain, Engine, drawn
from agent.config import State
from agent.protocol import ProofOpening, ProofTask, merkle_root, proof_row
from tests.agent import node as nodes
from tests.agent.market import Market

TASK = ProofTask(id=uuid4(), seed="5e" * 32, n=16, links=3, segments=2)


def _matrix(name: str) -> list[list[int]]:
    return [[e - 8 for e in proof_row(TASK.seed, name, row, TASK.n)] for row in range(TASK.n)]


def _after(row: list[int], links: int) -> list[int]:
    b = _matrix("b")
    for _ in range(links):
        v = [sum(row[k] * b[k][j] for k in range(TASK.n)) % 17 for j in range(TASK.n)]
        row = [v_j**3 % 17 - 8 for v_j in v]
    return row


def _bytes(row: list[int]) -> bytes:
    return bytes(entry % 256 for entry in row)


def _check(roots: list[str], opening: ProofOpening) -> None:
    x = _matrix("x")
    for opened in opening.rows:
        before = _after(x[opened.row], TASK.links * opened.segment)
        assert opened.before == _bytes(before)
        assert opened.after == _bytes(_after(before, TASK.links))
        root = merkle_root(opened.after, opened.row, opened.path_after)
        assert root == roots[opened.segment]
        if opened.segment:
            start = merkle_root(opened.before, opened.row, opened.path_before)
            assert start == roots[opened.segment - 1]


def test_matrices_are_drawn_as_the_protocol_says():
    assert drawn(TASK, "x").tolist() == _matrix("x")
    assert drawn(TASK, "b").tolist() == _matrix("b")


def test_every_row_is_what_the_definition_says():
    chain = Chain(TASK, Engine())
    cells = [(segment, row) for segment in range(TASK.segments) for row in range(TASK.n)]
    _check(chain.roots(), chain.open(cells))


def test_the_largest_sums_stay_exact():
    """Entries of 8 everywhere: products of 64 · n, the worst that can come."""
    np = pytest.importorskip("numpy")
    engine, n = Engine(), 4096
    x = engine.load(np.full((2, n), 8, np.int8))
    b = engine.load(np.full((n, 2), 8, np.int8))
    exact = (64 * n % 17) ** 3 % 17 - 8
    assert engine.unload(engine.link(x, b)).tolist() == [[exact] * 2] * 2
    assert engine.unload(engine.link(-x, b)).tolist() == [[(-64 * n % 17) ** 3 % 17 - 8] * 2] * 2


async def test_a_node_proves_itself_when_asked(market: Market, state: State):
    market.proof_task = TASK
    task = asyncio.create_task(nodes.daemon(state).run())
    opening = await market.until(lambda: market.proof_opening)
    assert [(row.segment, row.row) for row in opening.rows] == [(0, 1), (1, 5)]
    commit = market.proof_commit
    assert commit is not None
    _check(commit.roots, opening)
    assert commit.tflops > 0
    assert commit.memory_gb_s > 0
    assert commit.disk_mb_s > 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_the_processor_is_measured_in_seconds(tmp_path: Path):
    """Not how fast it is: that measuring it ends by itself, however slow it is."""
    begun = time.monotonic()
    figures = Engine().figures()
    assert figures["tflops"] == figures["fp32_tflops"] > 0
    assert time.monotonic() - begun < 60
