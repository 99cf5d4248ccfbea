"""The one loss of supervised fine-tuning: cross entropy of the tokens to be learnt."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agent.recipes.data import Encoded
from agent.recipes.model import Learner

# Logits are kept for so many tokens at once and made again for the way back, so their memory
# (16 bytes × vocabulary × tokens) has a bound; `marketplace.core.estimates` counts on it.
_AT_ONCE: Final = 256


def answer_loss(learner: Learner, rows: Sequence[Encoded]) -> tuple[Tensor, int]:
    """The summed loss in nats over all tokens to be learnt, and how many they are (maybe 0)."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    learn = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        learn[index, : len(row.ids)] = torch.tensor(row.learn)
    # Token i is predicted from what stands before it, so the first one never is.
    before = torch.zeros_like(learn)
    before[:, :-1] = learn[:, 1:]
    wanted = ids[:, 1:][learn[:, 1:]].to(learner.device)
    if not len(wanted):
        return torch.zeros(()), 0
    hidden = learner.hidden(ids.to(learner.device), before.to(learner.device))
    if len(wanted) <= _AT_ONCE:
        return _summed(learner, hidden, wanted), len(wanted)
    total = torch.zeros((), device=learner.device)
    for part, goal in zip(hidden.split(_AT_ONCE), wanted.split(_AT_ONCE), strict=True):
        total = total + checkpoint(_summed, learner, part, goal, use_reentrant=False)
    return total, len(wanted)


def _summed(learner: Learner, hidden: Tensor, wanted: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(learner.logits(hidden), wanted, reduction="sum")
