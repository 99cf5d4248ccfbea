"""The other processes of this training, if there are any: as torchrun and Ray start them."""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import distributed

# What gloo and NCCL say when somebody is gone; torch has no class of its own for gloo's.
_GONE: Final = ("gloo", "connection closed", "connection reset", "broken pipe", "timed out")


class Lost(Exception):
    """Somebody who trains with us is gone; what we have learnt so far is whole."""


def is_loss(error: RuntimeError) -> bool:
    """Whether a failure comes from another process's end, not from ours."""
    text = str(error).lower()
    return isinstance(error, distributed.DistError) or any(word in text for word in _GONE)


@dataclass(frozen=True)
class World:
    """This process's place among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def summed(self, values: Sequence[float]) -> list[float]:
        """Each value, summed over all processes, which wait for each other; raises Lost."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        try:
            distributed.all_reduce(found)
        except RuntimeError as error:  # whatever the backend calls a closed connection
            raise Lost(str(error)) from error
        return [float(value) for value in found]

    def wait(self) -> None:
        """Until all have come this far."""
        self.summed([0.0])

    def agreed(self, asked: Sequence[bool]) -> list[bool]:
        """Each question, answered yes by all if any says so."""
        return [value > 0 for value in self.summed([float(one) for one in asked])]


def join(device: torch.device) -> World:
    """The world that this process was started into; of one, if nobody said otherwise."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # Before the interpreter goes: a group's threads that still run by then abort the process.
        atexit.register(distributed.destroy_process_group)
    return World(int(os.environ.get("RANK", "0")), size, device)
