"""The cheapest rung: what the base already reaches, without training, as the baseline of the rest.

With `shots`, the same once more with rows of train.* shown before each question; the artifact has
no weights, only what was measured.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from agent.recipes import artifact, checkpoint, evaluate, formats, model, world
from agent.recipes import reward as rewards
from agent.recipes.clock import Clock
from agent.recipes.encode import Encoder
from agent.recipes.evaluate import Evaluator, Measured
from agent.recipes.formats import Answered
from agent.recipes.job import Job, Stop
from agent.recipes.metrics import Metrics
from agent.recipes.parameters import PromptParameters
from agent.recipes.rows import Shelf, spread
from agent.recipes.verdict import TARGET, Training


def run(job: Job, parameters: PromptParameters, stop: Stop, tell: Callable[[str], None]) -> None:
    """Raises RecipeError or Stopped; there is nothing to save."""
    clock, shelf = Clock(tell), Shelf(Path(job.output), rank=0)
    metrics = Metrics(Path(job.metrics), 0)
    try:
        with clock.phase("loading"):
            evaluator = _evaluator(job, parameters, stop, shelf)
        with clock.phase("evaluation"):
            before = evaluator.measure()
        _show(metrics, evaluator, before)
        after = None
        if parameters.shots:
            shown = _shown(job.folder("dataset"), parameters.shots, shelf)
            encoder = Encoder(
                evaluator.learner.tokenizer, max_length=parameters.max_length, shown=shown
            )
            with clock.phase("evaluation with examples"):
                after = replace(evaluator, encoder=encoder).measure()
            _show(metrics, evaluator, after)
    finally:
        metrics.close()
        shelf.clear()
    training = Training(
        steps=0,
        tokens=0,
        loss=0.0,
        seconds=clock.rounded(),
        peak_memory_bytes=model.peak_memory(),
        device=model.device_name(evaluator.learner.device),
    )
    evaluation = evaluate.judged(evaluator, before, after, training)
    with checkpoint.complete_folder(Path(job.output) / "artifact") as scratch:
        artifact.describe(job, evaluation, scratch)


def _evaluator(job: Job, parameters: PromptParameters, stop: Stop, shelf: Shelf) -> Evaluator:
    learner = model.load(
        job.folder("base"), parameters, seed=job.seed, base_name=artifact.base_name(job)
    )
    return Evaluator(
        learner=learner,
        encoder=Encoder(learner.tokenizer, max_length=parameters.max_length),
        parts=evaluate.parts_of(job.folder("dataset"), shelf, parameters.method),
        parameters=parameters,
        reward=rewards.load(job.folder("script")) if parameters.method == "grpo" else None,
        stop=stop,
        world=world.World(0, 1, learner.device),
    )


def _shown(dataset: Path, shots: int, shelf: Shelf) -> list[Answered]:
    """Examples, spread evenly over the training rows."""
    table = shelf.read(dataset, formats.TRAIN, "answers")
    rows = [table[index] for index in spread(len(table), shots)]
    return [row for row in rows if isinstance(row, Answered)]


def _show(metrics: Metrics, evaluator: Evaluator, measured: Measured) -> None:
    figure = measured.figures.get(TARGET)
    if figure is not None and figure.value is not None:
        metrics.write(0, **{f"heldout_{evaluator.parts[0].measure}": figure.value})
