"""What the model can do on rows it never learns from: their loss, and a few answers.

The rows are spread evenly over heldout.jsonl, and the first of them are answered greedily, so
that before and after, and one run and the next, are asked the same.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from msgspec import Struct

from agent.recipes.catalog import Exit, Tuning
from agent.recipes.data import Encoded, Encoder, Row, spread
from agent.recipes.job import RecipeError, Stop
from agent.recipes.loss import answer_loss
from agent.recipes.model import Learner


class Measured(Struct, frozen=True):
    """`loss` in nats per token over `tokens` tokens of `rows` rows; None if none were asked for."""

    rows: int
    tokens: int
    loss: float | None
    answers: list[str]


def chosen(held_out: Sequence[Row], parameters: Tuning) -> tuple[list[Row], list[Row]]:
    """The rows whose loss is measured, and those which are answered."""
    most = max(parameters.evaluate_samples, parameters.answers)
    rows = [held_out[index] for index in spread(len(held_out), most)]
    return rows[: parameters.evaluate_samples], rows[: parameters.answers]


def measure(
    learner: Learner, encoder: Encoder, held_out: Sequence[Row], parameters: Tuning, stop: Stop
) -> Measured:
    """Loss and answers as the model is now; raises Stopped between batches, or RecipeError."""
    measured, answered = chosen(held_out, parameters)
    rows = [encoder.encode(row) for row in measured]
    rows = sorted((row for row in rows if any(row.learn[1:])), key=lambda row: len(row.ids))
    if measured and not rows:
        raise RecipeError(
            Exit.PARAMETERS, "no held-out answer fits into max_length; raise max_length"
        )
    learner.model.eval()
    with torch.inference_mode():
        total, tokens = _summed_loss(learner, rows, parameters.batch_size, stop)
        answers = [_answer(learner, encoder, row, parameters, stop) for row in answered]
    return Measured(len(rows), tokens, total / tokens if tokens else None, answers)


def _summed_loss(
    learner: Learner, rows: Sequence[Encoded], size: int, stop: Stop
) -> tuple[float, int]:
    total, tokens = 0.0, 0
    for start in range(0, len(rows), size):
        stop.check()
        loss, count = answer_loss(learner, rows[start : start + size])
        total += loss.item()
        tokens += count
    if not math.isfinite(total):
        raise RecipeError(
            Exit.DIVERGED, "the held-out loss is not a finite number; check the base's weights"
        )
    return total, tokens


def _answer(learner: Learner, encoder: Encoder, row: Row, parameters: Tuning, stop: Stop) -> str:
    stop.check()
    return answer(learner, encoder.prompt(row), most=parameters.answer_tokens)


def answer(learner: Learner, prompt: list[int], *, most: int) -> str:
    """The greedy answer to `prompt`, at most `most` tokens, without special tokens."""
    from transformers import GenerationConfig

    model: Any = learner.model
    # Only the end marks of the base's own settings: its temperature and the like must not count.
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=_end_marks(learner),
        pad_token_id=learner.tokenizer.eos_token_id or 0,
    )
    ids = torch.tensor([prompt], device=learner.device)
    with learner.arithmetic():
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )
    text: str = learner.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
    return text.strip()


def _end_marks(learner: Learner) -> list[int]:
    """The tokens that end an answer, as the tokenizer and the base's settings know them."""
    config = learner.model.generation_config.eos_token_id
    known = config if isinstance(config, list) else [config]
    marks = {learner.tokenizer.eos_token_id, *known} - {None}
    return sorted(marks)
