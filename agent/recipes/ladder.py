"""Which rung a job stands on, and what runs it."""

from collections.abc import Callable

from agent.recipes import arithmetic, artifact, chain, prompt, run, sweep
from agent.recipes.catalog import Exit
from agent.recipes.job import Job, RecipeError, Stop, parameters_of
from agent.recipes.parameters import (
    ArithmeticParameters,
    ChainParameters,
    PromptParameters,
    ScriptParameters,
    SweepParameters,
)


def climb(job: Job, stop: Stop, tell: Callable[[str], None]) -> None:
    """Run the job's recipe, telling a person how it goes; in each process of a gang.

    Raises RecipeError, or Stopped once what was learnt is saved.
    """
    with artifact.start(job) as started:
        _climb(started, stop, tell)


def _climb(job: Job, stop: Stop, tell: Callable[[str], None]) -> None:
    match parameters_of(job):
        case PromptParameters() as parameters:
            prompt.run(job, parameters, stop, tell)
        case ChainParameters() as parameters:
            chain.run(job, parameters, stop, tell)
        case SweepParameters() as parameters:
            sweep.run(job, parameters, stop, tell)
        case ArithmeticParameters() as parameters:
            arithmetic.run(job, parameters, stop, tell)
        case ScriptParameters():
            raise RecipeError(
                Exit.PARAMETERS, f"{job.recipe} runs the user's own files, not a recipe of ours"
            )
        case _:
            run.run(job, stop, tell)
