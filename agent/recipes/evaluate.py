"""What the model can do on rows it never learns from: a figure for each part, and a few answers.

The rows are spread evenly over each file, and the first of the target's are answered greedily, so
that before and after, and one run and the next, are asked the same. The target is measured by the
method's own measure; a domain by the same where its rows fit, else by its loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct

from agent.recipes import formats, verdict
from agent.recipes.catalog import Exit
from agent.recipes.encode import Encoder
from agent.recipes.formats import Kind, Method, Preferred, Prompt, Row
from agent.recipes.job import RecipeError, Stop
from agent.recipes.loss import answer_loss, padded
from agent.recipes.model import Learner
from agent.recipes.parameters import Measuring
from agent.recipes.reward import Reward
from agent.recipes.rows import Shelf, Table, question, spread, text_of
from agent.recipes.rows import answer as wanted
from agent.recipes.verdict import (
    TARGET,
    Answer,
    Evaluation,
    Figure,
    Measure,
    Training,
    domain,
)
from agent.recipes.world import World


class Measured(Struct, frozen=True):
    """All parts, measured once, by name; and the answers to the target's first rows."""

    figures: dict[str, Figure]
    answers: list[str]


@dataclass(frozen=True)
class Part:
    """Some held-out rows, and how they are measured."""

    name: str
    measure: Measure
    table: Table

    def rows(self, most: int) -> list[Row]:
        """At most so many, spread evenly."""
        return [self.table[index] for index in spread(len(self.table), most)]


@dataclass(frozen=True)
class Evaluator:
    """Measures a model as it is now."""

    learner: Learner
    encoder: Encoder
    parts: Sequence[Part]
    parameters: Measuring
    reward: Reward | None
    stop: Stop
    world: World

    def measure(self) -> Measured:
        """Raises Stopped between batches, or RecipeError."""
        self.learner.model.eval()
        most = self.parameters.evaluate_samples
        with torch.inference_mode():
            figures = {part.name: self._figure(part) for part in self.parts} if most else {}
            return Measured(figures, self._answers(self.asked()))

    def asked(self) -> list[Row]:
        """The rows that are answered."""
        targets = [part for part in self.parts if part.name == TARGET]
        most = max(self.parameters.evaluate_samples, self.parameters.answers)
        if not targets or not self._speaks():
            return []
        return targets[0].rows(most)[: self.parameters.answers]

    def _figure(self, part: Part) -> Figure:
        most = max(self.parameters.evaluate_samples, self.parameters.answers)
        rows = part.rows(most)[: self.parameters.evaluate_samples]
        mine = rows[self.world.rank :: self.world.size]
        match part.measure:
            case "loss":
                total, tokens, count = self._losses(mine)
            case "accuracy":
                total, tokens, count = self._right(mine)
            case "reward":
                total, tokens, count = self._rewards(mine, part.table, most)
        total, tokens, count = self.world.summed([total, tokens, count])
        divisor = tokens if part.measure == "loss" else count
        if not divisor:
            raise RecipeError(
                Exit.PARAMETERS, "no held-out answer fits into max_length; raise max_length"
            )
        if not math.isfinite(total):
            raise RecipeError(
                Exit.DIVERGED,
                "the held-out loss is not a finite number; check the base's weights",
            )
        return Figure(rows=int(count), tokens=int(tokens), value=total / divisor)

    def _losses(self, rows: Sequence[Row]) -> tuple[float, float, float]:
        encoded = [self.encoder.encode(row) for row in rows]
        fitting = sorted((r for r in encoded if any(r.learn[1:])), key=lambda row: len(row.ids))
        total, tokens = 0.0, 0
        for batch in self._batches(fitting):
            loss, count = answer_loss(self.learner, *padded(batch))
            total += loss.item()
            tokens += count
        return total, tokens, len(fitting)

    def _right(self, rows: Sequence[Row]) -> tuple[float, float, float]:
        """Pairs whose better answer the model finds better: by its score, or per token."""
        right = 0
        pairs = [self.encoder.pair(row) for row in rows if isinstance(row, Preferred)]
        for pair in pairs:
            chosen, rejected = (
                self._rating(pair.prompt, answer) for answer in (pair.chosen, pair.rejected)
            )
            right += chosen > rejected
        return right, 0.0, len(pairs)

    def _rating(self, prompt: list[int], answer: list[int]) -> float:
        self.stop.check()
        ids = torch.tensor([prompt + answer])
        if not self._speaks():
            with self.learner.arithmetic():
                found = self.learner.model(input_ids=ids.to(self.learner.device), use_cache=False)
            return float(found.logits.squeeze())
        learn = torch.zeros_like(ids, dtype=torch.bool)
        learn[:, len(prompt) :] = True
        loss, count = answer_loss(self.learner, ids, learn)
        return -loss.item() / max(1, count)

    def _rewards(self, rows: Sequence[Row], table: Table, most: int) -> tuple[float, float, float]:
        assert self.reward is not None
        total = 0.0
        indexes = spread(len(table), most)[: self.parameters.evaluate_samples]
        mine = indexes[self.world.rank :: self.world.size]
        for row, index, said in zip(rows, mine, self._answers(rows), strict=True):
            assert isinstance(row, Prompt)
            total += self.reward(text_of(row.prompt), said, table.columns(index))
        return total, 0.0, len(rows)

    def _batches(self, rows: Sequence[Any]) -> Any:
        size = self.parameters.batch_size
        for start in range(0, len(rows), size):
            self.stop.check()
            yield rows[start : start + size]

    def _answers(self, rows: Sequence[Row]) -> list[str]:
        """Prompts of like length together, so that little is padded."""
        prompts = [self.encoder.prompt(row) for row in rows]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        found = [""] * len(prompts)
        for batch in self._batches(order):
            asked = [prompts[index] for index in batch]
            said = answers(self.learner, asked, most=self.parameters.answer_tokens)
            for index, text in zip(batch, said, strict=True):
                found[index] = text
        return found

    def _speaks(self) -> bool:
        """A model that scores has no words."""
        return self.learner.model.get_output_embeddings() is not None


def parts_of(folder: Path, shelf: Shelf, method: Method) -> list[Part]:
    """The target, and each held-out domain; raises RecipeError for rows that nobody can read."""
    kind = formats.KIND_OF[method]
    found = [Part(TARGET, verdict.MEASURE_OF[method], shelf.read(folder, formats.HELD_OUT, kind))]
    paths = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    try:
        names = formats.domains(paths)
    except ValueError as error:
        raise RecipeError(Exit.INPUT, f"the dataset can't be read: {error}") from None
    for name in names:
        table = shelf.read(folder, f"{formats.DOMAINS}/{name}", *_told_apart(kind))
        if method == "reward" and table.kind != kind:
            continue  # it has no words whose loss could be measured
        measure = verdict.MEASURE_OF[method] if table.kind == kind else "loss"
        found.append(Part(name, measure, table))
    return found


def judged(
    evaluator: Evaluator, before: Measured, after: Measured | None, training: Training
) -> Evaluation:
    """What was measured before and after, with its verdicts; `after` is None if nothing was done."""
    later = after.answers if after else [""] * len(before.answers)
    return Evaluation(
        domains=[
            domain(
                part.name,
                part.measure,
                evaluator.parameters.margin,
                before.figures.get(part.name),
                after.figures.get(part.name) if after else None,
            )
            for part in evaluator.parts
        ],
        answers=[
            Answer(prompt=question(row), expected=wanted(row), before=then, after=now)
            for row, then, now in zip(evaluator.asked(), before.answers, later, strict=True)
        ],
        training=training,
    )


def _told_apart(kind: Kind) -> tuple[Kind, ...]:
    """What a domain's rows may be, the most telling first: an answered row is a prompt, too."""
    others: tuple[Kind, ...] = ("answers", "text")
    return (*others, kind) if kind == "prompts" else (kind, *others)


def answers(learner: Learner, prompts: Sequence[list[int]], *, most: int) -> list[str]:
    """The greedy answers to `prompts`, at most `most` tokens each, without special tokens."""
    from transformers import GenerationConfig

    model: Any = learner.model
    filler = learner.tokenizer.eos_token_id or 0
    # Only the end marks of the base's own settings: its temperature and the like must not count.
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=_end_marks(learner),
        pad_token_id=filler,
    )
    # Filled up on the left: an answer goes on where its prompt ends.
    longest = max(map(len, prompts))
    ids = torch.tensor([[filler] * (longest - len(each)) + each for each in prompts])
    read = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    device = learner.device
    with learner.arithmetic():
        found = model.generate(
            input_ids=ids.to(device), attention_mask=read.to(device), generation_config=settings
        )
    said: list[str] = learner.tokenizer.batch_decode(found[:, longest:], skip_special_tokens=True)
    return [text.strip() for text in said]


def _end_marks(learner: Learner) -> list[int]:
    """The tokens that end an answer, as the tokenizer and the base's settings know them."""
    config = learner.model.generation_config.eos_token_id
    known = config if isinstance(config, list) else [config]
    marks = {learner.tokenizer.eos_token_id, *known} - {None}
    return sorted(marks)
