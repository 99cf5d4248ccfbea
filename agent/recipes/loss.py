"""The loss of supervised learning: cross entropy of the tokens to be learnt, and of no others.

TRL's fused head is the same on a GPU, where Triton scores the learnt tokens only. On a CPU it
scores every position (trl 1.16, `add_fused_lm_head`), which costs SmolLM2-135M 1.6 to 1.9 times
the time of a step and 1.5 times the memory (4 and 16 rows of 60 tokens, a fifth of them learnt:
6.9 s against 11.2 s and 28.5 s against 55.6 s for ten steps; 2.5 GB against 3.8 GB). So a single
process on a CPU trains with this one, and the evaluation always measures with it.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agent.recipes.encode import Encoded
from agent.recipes.model import Learner

# Logits are kept for so many tokens at once and made again for the way back, so their memory
# (16 bytes × vocabulary × tokens) has a bound; `marketplace.core.estimates` counts on it.
_AT_ONCE: Final = 256


def padded(rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Rows as one batch: their tokens, and which of them are to be learnt."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    learn = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        learn[index, : len(row.ids)] = torch.tensor(row.learn)
    return ids, learn


def answer_loss(learner: Learner, ids: Tensor, learn: Tensor) -> tuple[Tensor, int]:
    """The summed loss in nats over all tokens to be learnt, and how many they are (maybe 0)."""
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


def distilled_loss(
    learner: Learner, teacher: Learner, ids: Tensor, learn: Tensor, softness: float
) -> Tensor:
    """How far the learner's distributions are from the teacher's, summed over the learnt tokens.

    KL(teacher ‖ learner) of both at the temperature `softness`, times its square, so that the
    gradient keeps its size (Hinton et al., arXiv 1503.02531).
    """
    before = torch.zeros_like(learn)
    before[:, :-1] = learn[:, 1:]
    ids, before = ids.to(learner.device), before.to(learner.device)
    with torch.no_grad():
        known = teacher.hidden(ids, before)
    found = learner.hidden(ids, before)
    total = 0 * found.sum()
    for part, goal in zip(found.split(_AT_ONCE), known.split(_AT_ONCE), strict=True):
        total = total + checkpoint(
            _apart, learner, teacher, part, goal, softness, use_reentrant=False
        )
    return total


def _apart(
    learner: Learner, teacher: Learner, found: Tensor, known: Tensor, softness: float
) -> Tensor:
    with torch.no_grad():
        wanted = torch.log_softmax(teacher.logits(known) / softness, dim=-1)
    ours = torch.log_softmax(learner.logits(found) / softness, dim=-1)
    apart = torch.nn.functional.kl_div(ours, wanted, reduction="sum", log_target=True)
    return apart * softness**2


def _summed(learner: Learner, hidden: Tensor, wanted: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(learner.logits(hidden), wanted, reduction="sum")
