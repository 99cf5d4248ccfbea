"""What is nice to see and may be lost on the way: curves and output, collected and cut to size."""

from collections import deque
from typing import Final
from uuid import UUID

from agent.protocol import MAX_MESSAGE, LogChunk, Metric, Samples, encode
from agent.tails import Chunk, Point

_MOST_METRICS: Final = 2000
_MOST_LOGS: Final = 32
_FULL: Final = MAX_MESSAGE - 4096


class Outbox:
    """Waits for the next message; while the market is away, the oldest points are forgotten."""

    def __init__(self) -> None:
        self._metrics: deque[Metric] = deque(maxlen=_MOST_METRICS)
        self._logs: deque[LogChunk] = deque()

    @property
    def takes_logs(self) -> bool:
        """Whether there is room for output; what isn't read stays in its file."""
        return len(self._logs) < _MOST_LOGS

    def add_point(self, assignment: UUID, running_ms: int, point: Point) -> None:
        """One line of metrics."""
        self._metrics.append(
            Metric(
                assignment=assignment, step=point.step, running_ms=running_ms, values=point.values
            )
        )

    def add_log(self, assignment: UUID, chunk: Chunk) -> None:
        """Some output."""
        if chunk.text:
            self._logs.append(
                LogChunk(
                    assignment=assignment,
                    stream=chunk.stream,
                    offset=chunk.offset,
                    text=chunk.text,
                )
            )

    def take(self) -> Samples | None:
        """As much as one message holds, output first come first; None if there is nothing."""
        metrics: list[Metric] = []
        logs: list[LogChunk] = []
        room = _FULL
        while self._metrics and (size := len(encode(self._metrics[0])) + 1) <= room:
            metrics.append(self._metrics.popleft())
            room -= size
        while self._logs and (size := len(encode(self._logs[0])) + 1) <= room:
            logs.append(self._logs.popleft())
            room -= size
        return Samples(metrics=metrics, logs=logs) if metrics or logs else None
