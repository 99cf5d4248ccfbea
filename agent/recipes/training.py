"""What all our trainers share, on top of the Hugging Face Trainer that TRL's are made of.

`Steady` is mixed into each of TRL's trainers. It gives them
- batches by `order.Blend`: a pure function of (seed, step, shard), the same for any world size;
- chance that is seeded anew in each step, so that a resumed run ends where an undisturbed one does;
- our checkpoints: safetensors and JSON, renamed into place, written by rank 0, never unpickled;
- a stop before a bad update: a loss or a gradient that is no number is never taken;
- metrics that the agent forwards, and SIGTERM answered once the step is done.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from transformers import Trainer, TrainerCallback

from agent.recipes import checkpoint
from agent.recipes.catalog import Exit
from agent.recipes.checkpoint import State
from agent.recipes.job import Job, RecipeError, Stop
from agent.recipes.metrics import Metrics
from agent.recipes.model import Learner
from agent.recipes.order import Blend
from agent.recipes.parameters import FineTuning
from agent.recipes.world import World

# The rate falls to this share of its peak.
_FLOOR: Final = 0.1
# What TRL measures in each step, and what we call it.
_SHOWN: Final[Mapping[str, str]] = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "accuracy": "accuracy",
    "margin": "margin",
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "completions/mean_length": "completion_tokens",
}


@dataclass
class Course:
    """One training: what it goes by, and where it is."""

    job: Job
    parameters: FineTuning
    learner: Learner
    state: State
    blend: Blend
    example: Callable[[tuple[int, int]], dict[str, Any]]
    """A row, by its table and number, as the trainer's collator wants it."""
    metrics: Metrics
    stop: Stop
    tell: Callable[[str], None]
    world: World
    upto: int
    """The step at which this training ends; the rate's schedule goes to `parameters.steps`."""
    offset: int = 0
    """Steps that were done before this training's first, by others of the same job."""
    also: Callable[[Path], None] = lambda folder: None
    """Writes what else belongs into a checkpoint."""
    saved_step: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    began_at: float = field(default_factory=time.monotonic)
    """When the step that is under way began."""
    read: int = 0
    """Tokens that this attempt's steps have read, as TRL counts them."""


def rate(step: int, parameters: FineTuning) -> float:
    """The learning rate of `step` (from 0): a linear rise, then a cosine down to a tenth."""
    peak = parameters.learning_rate
    rise = math.ceil(parameters.warmup * parameters.steps)
    if step < rise:
        return peak * (step + 1) / (rise + 1)
    share = (step - rise) / max(1, parameters.steps - rise)
    return peak * (_FLOOR + (1 - _FLOOR) * (1 + math.cos(math.pi * share)) / 2)


class Steps:
    """The batches of a trainer's steps, as many a step as it is worked through in parts."""

    def __init__(self, course: Course, collate: Callable[[Sequence[Any]], Any]) -> None:
        self._course, self._collate = course, collate

    def __len__(self) -> int:
        return self._course.upto * self._course.parameters.accumulate

    def __iter__(self) -> Iterator[Any]:
        course = self._course
        parts = course.parameters.accumulate
        for step in range(course.state.step, course.upto):
            picked = course.blend.rows(step, shard=course.world.rank, shards=course.world.size)
            for part in range(parts):
                yield self._collate([course.example(row) for row in self._share(picked, part)])

    def _share(self, picked: list[tuple[int, int]], part: int) -> list[tuple[int, int]]:
        parts = self._course.parameters.accumulate
        found = picked[part::parts]
        if not found:
            raise RecipeError(
                Exit.PARAMETERS,
                f"a step of {len(picked)} rows on this GPU has no {parts} parts: lower accumulate, "
                "or give train.* more rows than batch_size",
            )
        return found


class Groups(Steps):
    """grpo's batches: each prompt as often as it is answered; a step's whole share in each part,
    for TRL cuts it up itself."""

    def _share(self, picked: list[tuple[int, int]], part: int) -> list[tuple[int, int]]:
        generations: int = self._course.parameters.generations  # type: ignore[union-attr]
        return [row for row in picked for _ in range(generations)]


class Steady(Trainer):
    """The mixin; to be named before TRL's trainer. `course` must be set before it is made."""

    course: Course
    teacher: Any = None
    batches: type[Steps] = Steps
    optimizer: Any

    def _prepare_dataset(self, dataset: Any, *rest: Any, **named: Any) -> Any:
        """Rows are encoded when they are read, by `Course.example`."""
        return dataset

    def get_train_dataloader(self) -> Any:
        return self.batches(self.course, self.data_collator)

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                [parameter for _, parameter in self.course.learner.trained()],
                lr=self.course.parameters.learning_rate,
                weight_decay=self.course.parameters.weight_decay,
                fused=True,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        parameters, started = self.course.parameters, self.course.state.step
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: rate(started + step, parameters) / parameters.learning_rate,
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss_context_manager(self) -> Any:
        found = contextlib.ExitStack()
        found.enter_context(self.course.learner.arithmetic())
        return found

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The last thing before the optimiser's step; raises RecipeError before a bad one."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._refuse_nonsense(float(self._tr_loss), float(norm or 0.0))
        return norm

    def _refuse_nonsense(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        saved = self.course.offset + self.course.saved_step
        kept = f"checkpoint-{saved} is the last good one" if saved else (
            "there is no checkpoint before it"
        )  # fmt: skip
        step = self.course.offset + self.course.state.step + 1
        raise RecipeError(
            Exit.DIVERGED,
            f"training diverged at step {step}: loss {loss}, gradient "
            f"{norm}; {kept}. Lower learning_rate, or look for odd rows in the training data",
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL adds its own figures to `logs`; those that people know are told."""
        super().log(logs, start_time)
        if "loss" in logs:
            report(self.course, logs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        save(self.course, self.optimizer)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint.restore_weights(Path(resume_from_checkpoint), self.course.learner)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder:
            checkpoint.restore_optimizer(
                Path(checkpoint_folder), self.course.learner, self.optimizer, self.course.state
            )

    def _load_scaler(self, checkpoint_folder: str | None) -> None:
        """There is none: nothing is scaled in bfloat16."""

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        """Chance is seeded in each step."""


class Watch(TrainerCallback):
    """Seeds each step, and says after it whether to save and whether to leave."""

    def __init__(self, course: Course) -> None:
        self._course = course

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._course.began_at = self._course.saved_at = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        course = self._course
        index = state.global_step * course.world.size + course.world.rank
        torch.manual_seed((course.job.seed * 1_000_003 + index) % 2**63)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        course = self._course
        course.state.step = state.global_step
        due, leave = course.world.agreed([_is_due(course), course.stop.asked])
        control.should_log = True
        control.should_save = due or (leave and course.state.step > course.saved_step)
        control.should_training_stop = control.should_training_stop or leave


def save(course: Course, optimizer: Any) -> None:
    """A checkpoint of where the training is, written by rank 0 while the others wait."""
    if course.world.first:
        write(course, optimizer)
    course.world.wait()
    course.saved_step = course.state.step
    course.saved_at = course.began_at = time.monotonic()


def write(course: Course, optimizer: Any) -> None:
    """The same by this process alone, whoever is still there."""
    started = time.monotonic()
    step = course.offset + course.state.step
    folder = checkpoint.save(
        Path(course.job.output) / f"checkpoint-{step}",
        course.learner, optimizer, course.state, also=course.also,
    )  # fmt: skip
    took = time.monotonic() - started
    course.metrics.write(step, save_s=took)
    course.tell(f"saved {folder.name} in {took:.2f} s")


def report(course: Course, logs: Mapping[str, Any]) -> None:
    """One line of metrics for the step that was done."""
    now = time.monotonic()
    took = now - course.began_at
    course.began_at = now
    read = int(logs.get("num_tokens") or course.read)
    tokens = read - course.read
    course.read = read
    course.state.tokens += tokens
    course.state.seconds += took
    course.state.loss = float(logs["loss"])
    shown = {ours: float(logs[name]) for name, ours in _SHOWN.items() if logs.get(name) is not None}
    if course.world.first:
        step = course.offset + course.state.step
        course.metrics.write(step, **shown, tokens_per_s=tokens / took)


def _is_due(course: Course) -> bool:
    """By steps if the user said so, else by the market's time; the end has its artifact."""
    step = course.state.step
    if step == course.upto or not course.world.first:
        return False
    if course.parameters.checkpoint_every:
        return (course.offset + step) % course.parameters.checkpoint_every == 0
    waited = time.monotonic() - course.saved_at
    return bool(course.job.checkpoint_s) and waited >= course.job.checkpoint_s
