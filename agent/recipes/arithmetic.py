"""Task arithmetic: what finished models learnt, added to their common base, taken away, or merged.

A task vector is a model minus its base (Ilharco et al., arXiv 2212.04089). Vectors are summed with
their weights, or merged by the signs they agree on (TIES, Yadav et al., arXiv 2306.01708), both by
peft. Nothing is trained; with a dataset, the result is measured against the base.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from agent.recipes import adapters, artifact, checkpoint, evaluate, model, world
from agent.recipes.catalog import Exit
from agent.recipes.clock import Clock
from agent.recipes.encode import Encoder
from agent.recipes.evaluate import Evaluator
from agent.recipes.job import Job, RecipeError, Stop, read_json
from agent.recipes.parameters import ArithmeticParameters
from agent.recipes.rows import Shelf
from agent.recipes.verdict import Training


def run(
    job: Job, parameters: ArithmeticParameters, stop: Stop, tell: Callable[[str], None]
) -> None:
    """Raises RecipeError or Stopped; there is nothing to save before the end."""
    clock, output, base = Clock(tell), Path(job.output), job.folder("base")
    shelf = Shelf(output, rank=0)
    try:
        with clock.phase("loading"):
            learner = model.load(base, parameters, seed=job.seed, base_name=artifact.base_name(job))
            evaluator = _evaluator(job, parameters, learner, shelf, stop)
        with clock.phase("evaluation before"):
            before = evaluator.measure()
        with clock.phase("arithmetic"):
            _add(job, parameters, learner.model, stop)
        with clock.phase("evaluation after"):
            after = evaluator.measure()
    finally:
        shelf.clear()
    training = Training(
        steps=0,
        tokens=0,
        loss=0.0,
        seconds=clock.rounded(),
        peak_memory_bytes=model.peak_memory(),
        device=model.device_name(learner.device),
    )
    evaluation = evaluate.judged(evaluator, before, after, training)
    made = output / ".made"
    artifact.write_model(learner.model, base, learner.artifact_dtype, made)
    with checkpoint.complete_folder(output / "artifact") as scratch:
        for path in made.iterdir():
            shutil.move(path, scratch / path.name)
        artifact.describe(job, evaluation, scratch)
    shutil.rmtree(made)


def _evaluator(
    job: Job, parameters: ArithmeticParameters, learner: model.Learner, shelf: Shelf, stop: Stop
) -> Evaluator:
    """Of the dataset, if one was given; else of nothing."""
    found = Evaluator(
        learner=learner,
        encoder=Encoder(learner.tokenizer, max_length=parameters.max_length),
        parts=[],
        parameters=parameters,
        reward=None,
        stop=stop,
        world=world.World(0, 1, learner.device),
    )
    if "dataset" not in job.inputs:
        return found
    return replace(found, parts=evaluate.parts_of(job.folder("dataset"), shelf, "sft"))


def _add(job: Job, parameters: ArithmeticParameters, target: Any, stop: Stop) -> None:
    """Move the base's weights by the sum of the others' differences from it."""
    from peft.utils.merge_utils import task_arithmetic, ties

    given = {"other": parameters.first, "third": parameters.second}
    named = {name: weight for name, weight in given.items() if name in job.inputs}
    others = {name: _weights(job, name) for name in named}
    factors = torch.tensor(list(named.values()))
    with torch.no_grad():
        for name, weight in target.named_parameters():
            stop.check()
            vectors = [
                _same(other, name, weight, whose).float() - weight.float().cpu()
                for whose, other in others.items()
            ]
            moved = (
                ties(vectors, factors, parameters.density)
                if parameters.by == "ties"
                else task_arithmetic(vectors, factors)
            )
            weight.copy_(weight.float() + moved.to(weight.device))


def _weights(job: Job, name: str) -> Mapping[str, torch.Tensor]:
    """All weights of a finished model; an adapter is merged into the base first."""
    folder, base = job.folder(name), job.folder("base")
    if (folder / checkpoint.ADAPTER).is_file():
        found = adapters.merged(base, folder)
    else:
        read_json(folder / "config.json", name)
        found = model.load_weights(folder, torch.float32)
    return dict(_named(found))


def _named(found: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in found.named_parameters():
        yield name, weight.detach()


def _same(
    other: Mapping[str, torch.Tensor], name: str, weight: torch.Tensor, whose: str
) -> torch.Tensor:
    found = other.get(name)
    if found is None or found.shape != weight.shape:
        raise RecipeError(
            Exit.INPUT,
            f"the input {whose!r} was not made from this base: its weight {name} is missing or "
            "has another shape",
        )
    return found
