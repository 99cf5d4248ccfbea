"""Supervised fine-tuning: the loop that `lora` and `full` share.

1. Read the dataset and the base; put a checkpoint in place if there is one to resume from.
2. Measure the held-out rows before (once: a resumed run remembers it).
3. Train. Each step is a pure function of (weights, optimiser, seed, step), so a run that was
   interrupted ends where an undisturbed one does.
4. Measure after, on the weights as they are handed over; write the artifact.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from agent.recipes import artifact, catalog, checkpoint, evaluate, model, ranks
from agent.recipes.artifact import Answer, Evaluation, HeldOut, Training
from agent.recipes.catalog import Exit, Tuning
from agent.recipes.checkpoint import State
from agent.recipes.data import HELD_OUT, TRAIN, Encoder, Order, Row, read
from agent.recipes.evaluate import Measured
from agent.recipes.job import Job, RecipeError, Stop, Stopped, fine_tuning_of
from agent.recipes.loss import answer_loss
from agent.recipes.metrics import Metrics

# The rate falls to this share of its peak.
_FLOOR = 0.1


def run(job: Job, stop: Stop, tell: Callable[[str], None]) -> None:
    """Train as `job` says, telling a person how it goes.

    Raises RecipeError, or Stopped once what was learnt is saved.
    """
    Run(job, stop, tell).to_the_end()


def rate(step: int, parameters: Tuning, peak: float) -> float:
    """The learning rate of `step` (from 0): a linear rise, then a cosine down to a tenth."""
    rise = math.ceil(parameters.warmup * parameters.steps)
    if step < rise:
        return peak * (step + 1) / (rise + 1)
    share = (step - rise) / max(1, parameters.steps - rise)
    return peak * (_FLOOR + (1 - _FLOOR) * (1 + math.cos(math.pi * share)) / 2)


class Run:
    """One attempt of one job."""

    def __init__(self, job: Job, stop: Stop, tell: Callable[[str], None]) -> None:
        self._job = job
        self._stop = stop
        self._tell = tell
        self._seconds: dict[str, float] = {}
        self._parameters = fine_tuning_of(job)
        self._output = Path(job.output)
        with self._phase("loading"):
            self._read_inputs()
            stop.check()
            self._load_model()
        self._saved_step = self._state.step
        self._saved_at = time.monotonic()

    def to_the_end(self) -> None:
        """Measure, train, measure, write the artifact."""
        kept = Path(self._job.metrics if ranks.is_first() else os.devnull)
        metrics = Metrics(kept, self._parameters.steps)
        try:
            if self._state.before is None:
                self._state.before = self._measure("evaluation before")
                if self._state.before.loss is not None:
                    metrics.write(0, heldout_loss=self._state.before.loss)
            while self._state.step < self._parameters.steps:
                if ranks.total(self._stop.asked):  # all leave after the same step, or none
                    raise Stopped
                self._step(metrics)
                if self._checkpoint_is_due():
                    self._save()
            self._hand_over(metrics, self._state.before)
        except (Stopped, ranks.Lost):
            if self._state.step > self._saved_step:
                self._save()
            raise
        finally:
            metrics.close()

    def _read_inputs(self) -> None:
        folder = self._job.folder("dataset")
        self._base = self._job.folder("base")
        self._train = read(folder, TRAIN)
        asked = self._parameters.evaluate_samples or self._parameters.answers
        self._held_out: list[Row] = read(folder, HELD_OUT) if asked else []
        self._order = Order(
            [row.length for row in self._train],
            batch_size=self._parameters.batch_size,
            seed=self._job.seed,
        )

    def _load_model(self) -> None:
        self._learner = model.load(
            self._base,
            self._parameters,
            seed=self._job.seed,
            base_name=artifact.base_name(self._job),
        )
        self._encoder = Encoder(self._learner.tokenizer, max_length=self._parameters.max_length)
        self._optimizer = torch.optim.AdamW(
            [parameter for _, parameter in self._learner.trained()],
            lr=self._parameters.learning_rate,
            weight_decay=self._parameters.weight_decay,
            fused=True,
        )
        self._state = State(
            recipe=self._job.recipe,
            parameters=catalog.as_json(self._parameters),
            seed=self._job.seed,
        )
        if self._job.resume is not None:
            self._state = checkpoint.restore(
                self._job.resume, self._learner, self._optimizer, self._state
            )
            self._tell(f"resuming after step {self._state.step}")

    def _step(self, metrics: Metrics) -> None:
        """One step of the optimiser; raises RecipeError before a bad one is taken."""
        started = time.monotonic()
        index = self._state.step
        share = self._order.rows(index, shard=ranks.rank(), shards=ranks.size())
        rows = [self._encoder.encode(self._train[i]) for i in share]
        peak = rate(index, self._parameters, self._parameters.learning_rate)
        self._optimizer.param_groups[0]["lr"] = peak
        torch.manual_seed((self._job.seed * 1_000_003 + index) % 2**63)
        self._learner.model.train()
        total, own = answer_loss(self._learner, rows) if rows else (torch.zeros(()), 0)
        count = ranks.total(own)
        if not count:
            raise RecipeError(
                Exit.PARAMETERS,
                f"step {index + 1}: no answer fits into max_length; raise max_length",
            )
        share_of_loss = total / count
        if own:
            share_of_loss.backward()
        learnt = [parameter for _, parameter in self._learner.trained()]
        ranks.add_gradients(learnt)
        loss = ranks.total(share_of_loss.item())
        norm = torch.nn.utils.clip_grad_norm_(learnt, self._parameters.max_grad_norm)
        self._refuse_nonsense(index + 1, loss, norm.item())
        self._optimizer.step()
        self._optimizer.zero_grad()
        took = time.monotonic() - started
        tokens = int(ranks.total(sum(len(row.ids) for row in rows)))
        self._state.step += 1
        self._state.tokens += tokens
        self._state.seconds += took
        self._state.loss = loss
        metrics.write(
            self._state.step,
            loss=self._state.loss,
            tokens_per_s=tokens / took,
            learning_rate=peak,
            grad_norm=norm.item(),
        )

    def _refuse_nonsense(self, step: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        kept = (
            f"checkpoint-{self._saved_step} is the last good one"
            if self._saved_step
            else ("there is no checkpoint before it")
        )
        raise RecipeError(
            Exit.DIVERGED,
            f"training diverged at step {step}: loss {loss}, gradient {norm}; {kept}. "
            "Lower learning_rate, or look for odd rows in train.jsonl",
        )

    def _checkpoint_is_due(self) -> bool:
        """By steps if the user said so, else by the market's time; the end has its artifact."""
        if self._state.step == self._parameters.steps:
            return False
        if self._parameters.checkpoint_every:
            return self._state.step % self._parameters.checkpoint_every == 0
        waited = time.monotonic() - self._saved_at
        return bool(self._job.checkpoint_s) and waited >= self._job.checkpoint_s

    def _save(self) -> None:
        if not ranks.is_first():
            return
        started = time.monotonic()
        folder = checkpoint.save(self._output, self._learner, self._optimizer, self._state)
        self._saved_step = self._state.step
        self._saved_at = time.monotonic()
        self._tell(f"saved {folder.name} in {self._saved_at - started:.2f} s")

    def _measure(self, phase: str) -> Measured:
        with self._phase(phase):
            return evaluate.measure(
                self._learner, self._encoder, self._held_out, self._parameters, self._stop
            )

    def _hand_over(self, metrics: Metrics, before: Measured) -> None:
        """Measure what is about to be written, and write it."""
        learner = self._learner
        learner.round_to_artifact()
        after = self._measure("evaluation after")
        if after.loss is not None:
            metrics.write(self._state.step, heldout_loss=after.loss)
        _, asked = evaluate.chosen(self._held_out, self._parameters)
        self._seconds["training"] = self._state.seconds
        evaluation = Evaluation(
            held_out=HeldOut(
                rows=after.rows,
                tokens=after.tokens,
                loss_before=before.loss,
                loss_after=after.loss,
            ),
            answers=[
                Answer(prompt=_asked(row), expected=_expected(row), before=then, after=now)
                for row, then, now in zip(asked, before.answers, after.answers, strict=True)
            ],
            training=Training(
                steps=self._state.step,
                tokens=self._state.tokens,
                loss=self._state.loss,
                seconds={name: round(value, 2) for name, value in self._seconds.items()},
            ),
        )
        if not ranks.is_first():
            return
        with self._phase("writing"):
            artifact.write(self._job, learner, self._base, evaluation)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Time a part of the run, and say so in the log."""
        self._tell(f"{name} …")
        started = time.monotonic()
        yield
        self._seconds[name] = time.monotonic() - started
        self._tell(f"{name}: {self._seconds[name]:.1f} s")


def _asked(row: Row) -> str:
    """The last thing said before the answer."""
    return row.chat()[-2]["content"] if len(row.chat()) > 1 else ""


def _expected(row: Row) -> str:
    return row.chat()[-1]["content"]
