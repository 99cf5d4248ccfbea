"""The proof that the hardware is there, and how fast it is; runs in the training environment.

A process of its own (`agent.proving` starts it), with the number of GPUs (0: the processor) and a
folder to write in as arguments: torch stays out of the daemon. Over stdin and stdout, one JSON a
line: ProofTask → ProofCommit, then ProofChallenge → ProofOpening; the matrices stay in memory in
between. The mathematics stands in `agent.protocol.ProofTask`.

On one core all of it takes about two seconds: a processor is measured by numpy, since torch alone
takes longer than that to import; GPUs by torch.
"""

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from agent.protocol import (
    OpenedRow,
    ProofChallenge,
    ProofCommit,
    ProofOpening,
    ProofTask,
    Wire,
    decode,
    encode,
    merkle_levels,
    merkle_path,
)

_P, _OFFSET = 17, 8
_CPU_N, _GPU_N = 1024, 8192
_MATMUL_S: Final = 0.4
_COPY_CPU, _COPY_GPU = 64 * 2**20, 2**30
_DISK_BYTES, _DISK_CHUNK, _DISK_S = 64 * 2**20, 4 * 2**20, 0.7


class Chain:
    """The chain of products, and all of it that may have to be opened."""

    def __init__(self, task: ProofTask, engine: "Engine") -> None:
        """Computes it; `rows[s]` are the rows as int8 bytes after s segments."""
        x = engine.load(drawn(task, "x"))
        b = engine.load(drawn(task, "b"))
        self.rows = [_rows(engine.unload(x))]
        self.trees: list[list[list[bytes]]] = []
        for _ in range(task.segments):
            for _ in range(task.links):
                x = engine.link(x, b)
            self.rows.append(_rows(engine.unload(x)))
            self.trees.append(merkle_levels(self.rows[-1]))

    def roots(self) -> list[str]:
        """What is committed to."""
        return [levels[-1][0].hex() for levels in self.trees]

    def open(self, cells: Sequence[tuple[int, int]]) -> ProofOpening:
        """The rows asked for, each before and after its segment."""
        return ProofOpening(rows=[self._row(segment, row) for segment, row in cells])

    def _row(self, segment: int, row: int) -> OpenedRow:
        before = merkle_path(self.trees[segment - 1], row) if segment else []
        return OpenedRow(
            segment=segment,
            row=row,
            before=self.rows[segment][row],
            after=self.rows[segment + 1][row],
            path_before=before,
            path_after=merkle_path(self.trees[segment], row),
        )


class Engine:
    """The processor, by numpy in float32: exact, since all sums stay below 2²⁴."""

    def __init__(self) -> None:
        import numpy as np

        self._np = np

    def load(self, matrix: Any) -> Any:
        """From numpy's int8."""
        return matrix.astype(self._np.float32)

    def unload(self, x: Any) -> Any:
        """To numpy's int8."""
        return x.astype(self._np.int8)

    def link(self, x: Any, b: Any) -> Any:
        """X ← ((X·B mod 17)³ mod 17) − 8."""
        v = _mod(x @ b, self._np.floor)
        return _mod(v * v * v, self._np.floor) - _OFFSET

    def figures(self) -> dict[str, float]:
        """tflops, memory_gb_s, and what else is worth knowing."""
        np = self._np
        a = np.ones((_CPU_N, _CPU_N), np.float32)
        tflops = _rate(lambda: a @ a, lambda: None) * 2 * _CPU_N**3 / 1e12
        source, target = np.ones(_COPY_CPU, np.uint8), np.empty(_COPY_CPU, np.uint8)
        copies = _rate(lambda: np.copyto(target, source), lambda: None, seconds=0.2)
        return {
            "tflops": tflops,
            "memory_gb_s": copies * 2 * _COPY_CPU / 1e9,
            "fp32_tflops": tflops,
        }


class GpuEngine(Engine):
    """CUDA, by torch. TF32 holds −8..8 exactly and sums in float32."""

    def __init__(self, count: int) -> None:
        import torch

        super().__init__()
        self._torch, self._count = torch, count
        torch.backends.cuda.matmul.allow_tf32 = True

    def load(self, matrix: Any) -> Any:
        return self._torch.from_numpy(matrix).to("cuda:0", self._torch.float32)

    def unload(self, x: Any) -> Any:
        return x.to(self._torch.int8).cpu().numpy()

    def link(self, x: Any, b: Any) -> Any:
        v = _mod(x @ b, self._torch.floor)
        return _mod(v * v * v, self._torch.floor) - _OFFSET

    def figures(self) -> dict[str, float]:
        """Of the slowest GPU: a gang is no faster."""
        every = [self._figures_of(f"cuda:{index}") for index in range(self._count)]
        return {name: min(one[name] for one in every) for name in every[0]}

    def _figures_of(self, device: str) -> dict[str, float]:
        torch = self._torch

        def wait() -> None:
            torch.cuda.synchronize(device)

        figures = {}
        for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            a = torch.ones((_GPU_N, _GPU_N), dtype=kind, device=device)
            rate = _rate(lambda a=a: a @ a, wait)  # type: ignore[misc]
            figures[f"{name}_tflops"] = rate * 2 * _GPU_N**3 / 1e12
        source = torch.ones(_COPY_GPU, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copies = _rate(lambda: target.copy_(source), wait, seconds=0.2)
        figures["memory_gb_s"] = copies * 2 * _COPY_GPU / 1e9
        return {"tflops": max(figures["fp32_tflops"], figures["bf16_tflops"]), **figures}


def drawn(task: ProofTask, name: str) -> Any:
    """X₀ ("x") or B ("b") as numpy's int8: `agent.protocol.proof_row` of every row, at speed."""
    import numpy as np

    n = task.n
    matrix = np.empty((n, n), np.int8)
    for row in range(n):
        stream = hashlib.shake_256(f"{task.seed}/{name}/{row}".encode()).digest(n + n // 16 + 64)
        values = np.frombuffer(stream, np.uint8)
        matrix[row] = (values[values < 255] % _P)[:n].astype(np.int8) - _OFFSET
    return matrix


def measured_disk(scratch: str) -> float:
    """MB/s of writing that has reached the disk."""
    block, written = os.urandom(_DISK_CHUNK), 0
    with tempfile.TemporaryFile(dir=scratch) as file:
        begun = time.perf_counter()
        while written < _DISK_BYTES and time.perf_counter() - begun < _DISK_S:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            written += len(block)
        return written / 1e6 / (time.perf_counter() - begun)


def main() -> None:
    """The process: two questions, two answers."""
    gpus, scratch = int(sys.argv[1]), sys.argv[2]
    task = decode(sys.stdin.buffer.readline(), ProofTask)
    engine = GpuEngine(gpus) if gpus else Engine()
    begun = time.perf_counter()
    chain = Chain(task, engine)
    took = time.perf_counter() - begun
    figures = engine.figures()
    commit = ProofCommit(
        roots=chain.roots(),
        tflops=figures.pop("tflops"),
        memory_gb_s=figures.pop("memory_gb_s"),
        disk_mb_s=measured_disk(scratch),
        details={**figures, "proof_s": took},
    )
    _say(commit)
    line = sys.stdin.buffer.readline()
    if line:  # nothing more to say if the market wants no more of it
        _say(chain.open(decode(line, ProofChallenge).cells))


def _say(message: Wire) -> None:
    sys.stdout.buffer.write(encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _rows(matrix: Any) -> list[bytes]:
    return [row.tobytes() for row in matrix]


def _mod(v: Any, floor: Callable[[Any], Any]) -> Any:
    """v mod 17 of whole numbers below 2²⁴: adding a half keeps the quotient's rounding, at most
    10⁻³, from the next whole number."""
    return v - _P * floor((v + 0.5) / _P)


def _rate(do: Callable[[], object], wait: Callable[[], None], seconds: float = _MATMUL_S) -> float:
    """How often a second, once warm."""
    do()
    wait()
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        do()
        wait()
        count += 1
    return count / (time.perf_counter() - begun)
