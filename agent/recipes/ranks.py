"""What the processes that train one model together need of each other, and nothing if alone.

Set up by whoever starts them (`agent.recipes.worker`); a recipe asks here for its share of a
step's rows and for sums over all.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist


class Lost(Exception):
    """Somebody who trains with us is gone; what we have learnt so far is whole."""


def rank() -> int:
    """Ours, from 0; only rank 0 writes metrics, checkpoints and artifacts."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether it is us who writes."""
    return rank() == 0


def total(value: float) -> float:
    """The sum of everybody's value."""
    if size() == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float64, device=_device())
    _reduce(summed)
    return summed.item()


def add_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces each gradient by the sum of everybody's; one without rows has none of its own."""
    if size() == 1:
        return
    held = list(parameters)
    flat = torch.cat(
        [
            (torch.zeros_like(one) if one.grad is None else one.grad).detach().float().flatten()
            for one in held
        ]
    )
    _reduce(flat)
    for one, part in zip(held, flat.split([one.numel() for one in held]), strict=True):
        one.grad = part.view_as(one).to(one.dtype)


def _reduce(tensor: torch.Tensor) -> None:
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:  # whatever the backend calls a closed connection
        raise Lost(str(error)) from error


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
