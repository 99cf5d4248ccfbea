"""Which rows each step reads: a pure function of (seed, step, shard). No torch here.

So a run that resumes, or goes on with another number of workers, sees the rows that it would have
seen. The rows of a step are those of all workers together; a worker takes its share of them.
"""

import random
from collections.abc import Sequence
from typing import Final

# Rows of like length are put together within so many batches: little padding, still random.
_WINDOW: Final = 16


class Order:
    """Which rows of one table each step reads."""

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self.size = min(batch_size, len(lengths))
        self._seed = seed
        self._epoch = -1
        self._batches: list[list[int]] = []

    def rows(self, step: int) -> list[int]:
        """The rows of `step` (from 0)."""
        epoch, index = divmod(step, len(self._lengths) // self.size)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[index]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        """An epoch's batches: each row at most once, the odd rest left for other epochs."""
        chance = random.Random(f"{self._seed}:{epoch}")  # noqa: S311  # no secret hangs on it
        rows = list(range(len(self._lengths)))
        chance.shuffle(rows)
        batches: list[list[int]] = []
        for start in range(0, len(rows), self.size * _WINDOW):
            window = rows[start : start + self.size * _WINDOW]
            window = window[: len(window) // self.size * self.size]
            window.sort(key=lambda row: self._lengths[row])
            cut = [window[i : i + self.size] for i in range(0, len(window), self.size)]
            chance.shuffle(cut)
            batches += cut
        return batches


class Blend:
    """A table's order, some of whose rows give way to another table's.

    After n steps, n × batch × share rows of the other one have been read, rounded down.
    """

    def __init__(self, main: Order, other: Order | None, *, share: float, seed: int) -> None:
        self._main, self._other = main, other
        self._share = share if other is not None else 0.0
        self._seed = seed

    def rows(self, step: int, *, shard: int = 0, shards: int = 1) -> list[tuple[int, int]]:
        """(table, row) of each row of `step` that this shard reads; table 1 is the other one."""
        picked = [(0, row) for row in self._main.rows(step)]
        if self._other is not None:
            size = len(picked)
            due = int((step + 1) * size * self._share) - int(step * size * self._share)
            others = self._other.rows(step)
            chance = random.Random(f"{self._seed}:{step}:mix")  # noqa: S311  # nor on this
            for count, place in enumerate(chance.sample(range(size), due)):
                picked[place] = (1, others[count % len(others)])
        return picked[shard::shards]
