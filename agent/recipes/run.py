"""One training, from its inputs to its artifact: what all methods share.

1. Read the dataset and the base; find where to go on from, if there is a checkpoint.
2. Measure the held-out rows before (once: a resumed run remembers it).
3. Train, by the method's trainer (`agent.recipes.trainers`).
4. Measure after, on the weights as they are handed over; judge; write the artifact.

`run` works in each process of a gang: all train, the first one writes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.recipes import artifact, catalog, checkpoint, evaluate, formats, model, trainers, world
from agent.recipes import reward as rewards
from agent.recipes.catalog import Exit
from agent.recipes.checkpoint import State
from agent.recipes.clock import Clock
from agent.recipes.encode import Encoder
from agent.recipes.evaluate import Evaluator, Measured
from agent.recipes.job import Job, RecipeError, Stop, Stopped, fine_tuning_of
from agent.recipes.metrics import Metrics
from agent.recipes.order import Blend, Order
from agent.recipes.packing import Packed, packed
from agent.recipes.parameters import (
    FineTuning,
    FullParameters,
    GrpoParameters,
    LoraParameters,
    Measuring,
)
from agent.recipes.rows import Shelf, Table
from agent.recipes.training import Course, Steady, save, write
from agent.recipes.verdict import TARGET, Evaluation, Training


@dataclass(frozen=True)
class Setting:
    """Where a training stands among others of the same job; alone, it is all of it."""

    base: Path
    dataset: Path
    artifact: Path
    resume: Path | None
    offset: int = 0
    """Steps done before its first."""
    total: int = 0
    upto: int = 0
    """Its last step, if that comes before the schedule's end; 0: the schedule's."""
    keep_the_start: bool = False
    """Whether what was made before must be kept at once, lest it be lost if this stops early."""
    also: Callable[[Path], None] = lambda folder: None
    """Writes what else belongs into its checkpoints."""


def run(job: Job, stop: Stop, tell: Callable[[str], None]) -> None:
    """Train as `job` says, telling a person how it goes; in each process of a gang.

    Raises RecipeError, or Stopped once what was learnt is saved.
    """
    parameters = fine_tuning_of(job)
    setting = Setting(
        base=job.folder("base"),
        dataset=job.folder("dataset"),
        artifact=Path(job.output) / "artifact",
        resume=job.resume,
    )
    Run(job, parameters, setting, stop, tell).to_the_end()


class Run:
    """One attempt of one training."""

    def __init__(
        self,
        job: Job,
        parameters: FineTuning,
        setting: Setting,
        stop: Stop,
        tell: Callable[[str], None],
    ) -> None:
        self._job, self._parameters, self._setting, self._stop = job, parameters, setting, stop
        self._tell = tell
        self._clock = Clock(tell)
        with self._clock.phase("loading"):
            self._learner = self._load_model()
            self._world = world.join(self._learner.device)
            self._shelf = Shelf(Path(job.output), self._world.rank)
            stop.check()
            self._reward = self._load_reward()
            self._encoder = Encoder(self._learner.tokenizer, max_length=parameters.max_length)
            tables = self._tables()
            self._evaluator = self._load_evaluator()
        self._course = self._plan(tables)

    def to_the_end(self) -> Evaluation:
        """Measure, train, measure, write the artifact."""
        course = self._course
        try:
            if self._setting.keep_the_start and self._setting.resume is None:
                save(course, None)
            before = course.state.before or self._measure_before()
            self._train()
            return self._hand_over(before)
        finally:
            course.metrics.close()
            self._shelf.clear()

    def to_the_rung(self) -> float:
        """Train to `upto`, keep a checkpoint, and measure the target; nothing is handed over."""
        course = self._course
        try:
            self._train()
            if course.state.step > course.saved_step:
                save(course, self._optimizer)
            figure = self._evaluator.measure().figures[TARGET].value
        finally:
            course.metrics.close()
            self._shelf.clear()
        assert figure is not None
        return figure

    def _load_model(self) -> model.Learner:
        return model.load(
            self._setting.base,
            self._parameters,
            seed=self._job.seed,
            base_name=artifact.base_name(self._job),
        )

    def _load_reward(self) -> rewards.Reward | None:
        if self._parameters.method != "grpo":
            return None
        return rewards.load(self._job.folder("script"))

    def _tables(self) -> list[Table | Packed]:
        """What is learnt from; and what is blended in, if anything is."""
        kind = formats.KIND_OF[self._parameters.method]
        found = [self._shelf.read(self._setting.dataset, formats.TRAIN, kind)]
        if self._parameters.mix:
            found.append(self._shelf.read(self._job.folder("mix"), formats.TRAIN, kind))
        if self._parameters.method == "continue":
            length = self._parameters.max_length
            return [packed(table, self._encoder, length, self._shelf) for table in found]
        return list(found)

    def _load_evaluator(self) -> Evaluator:
        parameters = self._parameters
        wanted = parameters.evaluate_samples or parameters.answers
        parts = (
            evaluate.parts_of(self._setting.dataset, self._shelf, parameters.method)
            if wanted
            else []
        )
        return Evaluator(
            learner=self._learner,
            encoder=self._encoder,
            parts=parts,
            parameters=parameters,
            reward=self._reward,
            stop=self._stop,
            world=self._world,
        )

    def _plan(self, tables: list[Table | Packed]) -> Course:
        """The course, from the start or from the checkpoint to go on from."""
        job, parameters, setting = self._job, self._parameters, self._setting
        state = State(recipe=job.recipe, parameters=catalog.as_json(parameters), seed=job.seed)
        if setting.resume is not None:
            state = checkpoint.restore_state(setting.resume, state)
            self._tell(f"resuming after step {setting.offset + state.step}")
        orders = [
            Order(table.lengths, batch_size=_rows_a_step(parameters), seed=job.seed)
            for table in tables
        ]
        other = orders[1] if len(orders) > 1 else None
        return Course(
            job=job,
            parameters=parameters,
            learner=self._learner,
            state=state,
            blend=Blend(orders[0], other, share=parameters.mix, seed=job.seed),
            example=lambda row: self._example(tables[row[0]], row[1]),
            metrics=Metrics(Path(job.metrics), setting.total or parameters.steps),
            stop=self._stop,
            tell=self._tell,
            world=self._world,
            upto=setting.upto or parameters.steps,
            offset=setting.offset,
            also=setting.also,
            saved_step=state.step,
        )

    def _example(self, table: Table | Packed, index: int) -> dict[str, Any]:
        if isinstance(table, Table) and self._parameters.method == "grpo":
            self._require_room(table, index)
        found = trainers.example(self._encoder, table, index)
        return trainers.scored(found) if self._parameters.method == "reward" else found

    def _require_room(self, table: Table, index: int) -> None:
        """A prompt is never cut: an answer to half a question would be rewarded for nothing."""
        parameters = self._parameters
        assert isinstance(parameters, GrpoParameters | LoraParameters | FullParameters)
        room = parameters.max_length - parameters.completion_length
        if len(self._encoder.prompt(table[index])) > room:
            raise RecipeError(
                Exit.PARAMETERS,
                f"{table.part}.* row {index + 1}: its prompt has more than {room} tokens, which is "
                "max_length without completion_length; raise max_length, or leave the row out",
            )

    def _measure_before(self) -> Measured:
        with self._clock.phase("evaluation before"):
            found = self._evaluator.measure()
        self._course.state.before = found
        self._show(found)
        return found

    def _show(self, measured: Measured) -> None:
        """The target's figure, where curves are drawn."""
        target = measured.figures.get(TARGET)
        if target is None or target.value is None or not self._world.first:
            return
        measure = self._evaluator.parts[0].measure
        step = self._setting.offset + self._course.state.step
        self._course.metrics.write(step, **{f"heldout_{measure}": target.value})

    def _train(self) -> None:
        """Raises Stopped once what was learnt is saved, if it is asked to leave."""
        course = self._course
        resume = self._setting.resume if course.state.step else None
        trainer = trainers.build(
            course, reference=self._reference(), teacher=self._teacher(), reward=self._reward
        )
        if course.state.step < course.upto:
            self._stop.check()
            with self._clock.phase("training"):
                self._steps(trainer, resume)
            self._optimizer = trainer.optimizer
        elif resume is not None:
            checkpoint.restore_weights(resume, self._learner)
        if course.state.step < course.upto:
            raise Stopped

    def _steps(self, trainer: Steady, resume: Path | None) -> None:
        """Raises Lost if another process has gone, once what was learnt is saved: a step that
        breaks off has changed no weight yet."""
        course = self._course
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except (RuntimeError, world.Lost) as error:
            lost = isinstance(error, world.Lost) or world.is_loss(error)
            if self._world.size == 1 or not lost:
                raise
            if self._world.first and course.state.step > course.saved_step:
                write(course, trainer.optimizer)
            raise world.Lost(str(error)) from error

    def _reference(self) -> Any:
        """The base as it was, where no adapter can be taken off to see it."""
        if self._parameters.method != "dpo" or self._learner.adapter is not None:
            return None
        return model.load_weights(self._setting.base, self._learner.kept).to(self._learner.device)

    def _teacher(self) -> model.Learner | None:
        """distill's second model, which only answers; raises RecipeError unless it fits."""
        if self._parameters.method != "distill":
            return None
        if self._world.size > 1:
            raise RecipeError(Exit.PARAMETERS, "distill runs on one GPU; book one")
        asked = Measuring(precision=self._parameters.precision)
        teacher = model.load(
            self._job.folder("other"), asked, seed=self._job.seed, base_name="the teacher"
        )
        if teacher.tokenizer.get_vocab() != self._learner.tokenizer.get_vocab():
            raise RecipeError(
                Exit.INPUT,
                "the teacher has another vocabulary than the base: take two models of one family",
            )
        teacher.model.eval()
        return teacher

    def _hand_over(self, before: Measured) -> Evaluation:
        """Measure what is about to be written, and write it."""
        course = self._course
        try:
            self._learner.round_to_artifact()
            with self._clock.phase("evaluation after"):
                after = self._evaluator.measure()
        except Stopped:
            self._save_the_end()
            raise
        self._show(after)
        evaluation = self._evaluation(before, after)
        if self._world.first:
            with self._clock.phase("writing"):
                artifact.write(
                    self._job, self._learner, self._setting.base, evaluation, self._setting.artifact
                )
        self._world.wait()
        course.tell(f"dropped: {', '.join(evaluation.dropped) or 'nothing'}")
        return evaluation

    def _save_the_end(self) -> None:
        if self._course.state.step > self._course.saved_step:
            save(self._course, self._optimizer)

    def _evaluation(self, before: Measured, after: Measured) -> Evaluation:
        state = self._course.state
        self._clock.seconds["training"] = state.seconds
        training = Training(
            steps=state.step,
            tokens=state.tokens,
            loss=state.loss,
            seconds=self._clock.rounded(),
            tokens_per_s=state.tokens / state.seconds if state.seconds else 0.0,
            peak_memory_bytes=model.peak_memory(),
            device=model.device_name(self._learner.device),
        )
        return evaluate.judged(self._evaluator, before, after, training)


def _rows_a_step(parameters: FineTuning) -> int:
    """grpo's batch counts answers; its rows are prompts."""
    if isinstance(parameters, GrpoParameters | LoraParameters | FullParameters) and (
        parameters.method == "grpo"
    ):
        return parameters.batch_size // parameters.generations
    return parameters.batch_size
