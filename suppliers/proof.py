"""The market's half of the proof of hardware: what to ask, which rows to open, what is true.

Pure but for the random draws; the mathematics stands in `agent.protocol.ProofTask`. The node
commits to the rows of X after each segment before it learns which rows it must open, so a row
that was not computed is found with the probability that it is drawn. Nothing but exact integers
is compared: float32 holds every sum below 2²⁴, whatever the order of summation.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import numpy as np
import numpy.typing as npt

from agent.protocol import OpenedRow, ProofOpening, ProofTask, merkle_root

OPENED: Final = 16
"""Rows to open: a node that faked a tenth of its rows passes with 0.9¹⁶ = 19 %, a half 0.002 %."""

_P: Final = 17
_OFFSET: Final = 8
_Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Size:
    """How much to compute: `segments` × `links` products of n × n matrices."""

    n: int
    links: int
    segments: int

    @property
    def flops(self) -> int:
        """Multiplications and additions in all."""
        return 2 * self.n**3 * self.links * self.segments


# A processor of two cores answers in about a second; a GPU of this decade in one to ten, most of
# it at full load, while a processor would take a quarter of an hour. Many short segments, since
# the market computes one segment of each opened row: 0.8 s for a GPU's proof, 0.1 s for the other.
FOR_CPU: Final = Size(n=512, links=8, segments=8)
FOR_GPU: Final = Size(n=4096, links=8, segments=32)


def make_task(task_id: UUID, size: Size) -> ProofTask:
    """A task with a fresh seed: nobody can have computed it before."""
    return ProofTask(
        id=task_id,
        seed=secrets.token_hex(32),
        n=size.n,
        links=size.links,
        segments=size.segments,
    )


def draw_cells(task: ProofTask) -> list[tuple[int, int]]:
    """Distinct random (segment, row) pairs to open, in order."""
    drawn = secrets.SystemRandom().sample(range(task.segments * task.n), OPENED)
    return sorted(divmod(cell, task.n) for cell in drawn)


def flaw(
    task: ProofTask,
    roots: Sequence[str],
    cells: Sequence[tuple[int, int]],
    opening: ProofOpening,
) -> str:
    """What is wrong with an opening, in words; "" if every opened row is as it must be."""
    if [(row.segment, row.row) for row in opening.rows] != [tuple(cell) for cell in cells]:
        return "other rows were opened than were asked for"
    for opened in opening.rows:
        wrong = _flaw_of_row(task, roots, opened)
        if wrong:
            return f"row {opened.row} of segment {opened.segment} {wrong}"
    after = _advance(task, np.stack([_entries(row.before) for row in opening.rows]))
    for opened, truth in zip(opening.rows, after, strict=True):
        if truth.astype(np.int8).tobytes() != opened.after:
            return f"row {opened.row} of segment {opened.segment} was not computed"
    return ""


def matrix(task: ProofTask, name: str, rows: Sequence[int]) -> _Matrix:
    """Rows of X₀ ("x") or B ("b") with entries −8..8: `agent.protocol.proof_row`, at speed."""
    return np.stack([_drawn(f"{task.seed}/{name}/{row}", task.n) for row in rows])


def _flaw_of_row(task: ProofTask, roots: Sequence[str], opened: OpenedRow) -> str:
    """Whether a row is the one committed to, before and after its segment."""
    if len(opened.before) != task.n or len(opened.after) != task.n:
        return f"does not have {task.n} entries"
    if np.abs(_entries(opened.before)).max() > _OFFSET:
        return "has entries outside -8..8"
    depth = task.n.bit_length() - 1
    if len(opened.path_after) != depth:
        return "has a Merkle path of the wrong length"
    if merkle_root(opened.after, opened.row, opened.path_after) != roots[opened.segment]:
        return "is not the one committed to after its segment"
    if opened.segment == 0:
        start = matrix(task, "x", [opened.row])[0].astype(np.int8).tobytes()
        return "" if opened.before == start else "does not start from the seed"
    if len(opened.path_before) != depth:
        return "has a Merkle path of the wrong length"
    if merkle_root(opened.before, opened.row, opened.path_before) != roots[opened.segment - 1]:
        return "is not the one committed to before its segment"
    return ""


def _advance(task: ProofTask, rows: _Matrix) -> _Matrix:
    """The rows one segment later. Rows of X evolve independently of each other."""
    b = matrix(task, "b", range(task.n))
    for _ in range(task.links):
        v = np.mod(rows @ b, _P)
        rows = np.mod(v * v * v, _P) - _OFFSET
    return rows


def _entries(row: bytes) -> _Matrix:
    return np.frombuffer(row, dtype=np.int8).astype(np.float32)


def _drawn(name: str, n: int) -> _Matrix:
    stream = hashlib.shake_256(name.encode()).digest(n + n // 16 + 64)
    drawn = np.frombuffer(stream, dtype=np.uint8)
    return (drawn[drawn < 255] % _P)[:n].astype(np.float32) - _OFFSET
