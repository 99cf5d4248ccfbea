"""Recipes one after another under one budget, each starting from what the one before it made.

A stage's result becomes a whole model (an adapter is merged into its base), which is the next
stage's base. From the second stage on, each checkpoint holds that base as well, so that the job can
go on at the right stage on a machine that has seen none of it; the file system's links make that
cheap to write, but it is uploaded whole.
"""

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from agent.recipes import adapters, artifact, catalog
from agent.recipes.catalog import Exit
from agent.recipes.checkpoint import complete_folder, linked
from agent.recipes.job import Job, RecipeError, Stop
from agent.recipes.parameters import ChainParameters
from agent.recipes.run import Run, Setting
from agent.recipes.verdict import TARGET, Domain, Evaluation, judge

_STATE: Final = "chain.json"
_BASE: Final = "base"


class Progress(Struct, kw_only=True):
    """chain.json: which stage a checkpoint is of, and what the stages before have measured."""

    stage: int = 0
    domains: list[Domain] = []
    tokens: int = 0


def run(job: Job, parameters: ChainParameters, stop: Stop, tell: Callable[[str], None]) -> None:
    """Raises RecipeError, or Stopped once what was learnt is saved."""
    _require_one_process()
    progress, base = _progress(job)
    resume = job.resume
    total = catalog.total_steps(parameters)
    tunings = [catalog.stage_of(stage) for stage in parameters.stages]
    # The first stage's base has its adapter in it by now, and what a stage makes becomes whole.
    inputs = {name: path for name, path in job.inputs.items() if name != adapters.INPUT}
    evaluation: Evaluation | None = None
    for index in range(progress.stage, len(tunings)):
        stage, tuning = parameters.stages[index], tunings[index]
        tell(f"stage {index + 1} of {len(tunings)}: {stage.recipe}")
        progress.stage = index
        made = Path(job.output) / f".stage-{index}"
        setting = Setting(
            base=base,
            dataset=job.folder("dataset") / stage.folder,
            artifact=made,
            resume=resume,
            offset=sum(one.steps for one in tunings[:index]),
            total=total,
            keep_the_start=index > 0,
            also=_keeper(progress, base),
        )
        told = msgspec.structs.replace(
            job, recipe=stage.recipe, parameters=stage.parameters, inputs=inputs
        )
        evaluation = Run(told, tuning, setting, stop, tell).to_the_end()
        gc.collect()
        resume = None
        base = _next_base(job, base, made, index)
        progress = Progress(
            stage=index + 1,
            domains=_first(progress.domains, evaluation.domains),
            tokens=progress.tokens + evaluation.training.tokens,
        )
    assert evaluation is not None
    _hand_over(job, base, _whole(evaluation, progress, total))


def _progress(job: Job) -> tuple[Progress, Path]:
    """Where the chain stands, and what its stage starts from; raises RecipeError."""
    if job.resume is None:
        return Progress(), job.folder("base")
    path = job.resume / _STATE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecipeError(
            Exit.INPUT,
            f"the checkpoint {job.resume.name} can't be resumed from: {error}; "
            "resume from an earlier one or start anew",
        ) from None
    return found, (job.resume / _BASE if found.stage else job.folder("base"))


def _keeper(progress: Progress, base: Path) -> Callable[[Path], None]:
    """Writes into a checkpoint what the next attempt must know besides."""
    known = msgspec.json.encode(progress)

    def keep(folder: Path) -> None:
        (folder / _STATE).write_bytes(known)
        if progress.stage:
            shutil.copytree(base, folder / _BASE, copy_function=linked)

    return keep


def _next_base(job: Job, base: Path, made: Path, index: int) -> Path:
    final = Path(job.output) / f".base-{index + 1}"
    artifact.whole(base, made, final)
    shutil.rmtree(made, ignore_errors=True)
    if base.parent == Path(job.output):
        shutil.rmtree(base, ignore_errors=True)
    return final


def _hand_over(job: Job, base: Path, evaluation: Evaluation) -> None:
    """The last stage's model, with what all of them did to it."""
    final = Path(job.output) / "artifact"
    with complete_folder(final) as scratch:
        for path in base.iterdir():
            if path.name not in ("README.md", "evaluation.json"):
                shutil.move(path, scratch / path.name)
        artifact.describe(job, evaluation, scratch)
    shutil.rmtree(base, ignore_errors=True)


def _first(known: list[Domain], found: list[Domain]) -> list[Domain]:
    """Each domain as it was first measured. Every stage has a target of its own."""
    names = {(domain.name, domain.measure) for domain in known}
    return known + [
        domain
        for domain in found
        if (domain.name, domain.measure) not in names and domain.name != TARGET
    ]


def _whole(evaluation: Evaluation, progress: Progress, total: int) -> Evaluation:
    """The last stage's evaluation, held against the first that measured the same."""
    before = {(domain.name, domain.measure): domain.before for domain in progress.domains}
    domains = []
    for last in evaluation.domains:
        first = before.get((last.name, last.measure), last.before)
        verdict = judge(last.measure, first, last.after, last.margin)
        domains.append(msgspec.structs.replace(last, before=first, verdict=verdict))
    training = msgspec.structs.replace(evaluation.training, steps=total, tokens=progress.tokens)
    return msgspec.structs.replace(evaluation, domains=domains, training=training)


def _require_one_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(Exit.PARAMETERS, "a chain runs on one GPU; book one")
