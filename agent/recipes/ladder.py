"""Which rung a job stands on, and what runs it."""

from collections.abc import Callable

from agent.recipes import arithmetic, chain, prompt, run
from agent.recipes.catalog import Exit
from agent.recipes.job import Job, RecipeError, Stop, parameters_of
from agent.recipes.parameters import (
    ArithmeticParameters,
    ChainParameters,
    FineTuning,
    PromptParameters,
)


def climb(job: Job, stop: Stop, tell: Callable[[str], None]) -> None:
    """Run the job's recipe, telling a person how it goes; in each process of a gang.

    Raises RecipeError or Stopped.
    """
    parameters = parameters_of(job)
    if isinstance(parameters, FineTuning):
        run.run(job, stop, tell)
    elif isinstance(parameters, PromptParameters):
        prompt.run(job, parameters, stop, tell)
    elif isinstance(parameters, ChainParameters):
        chain.run(job, parameters, stop, tell)
    elif isinstance(parameters, ArithmeticParameters):
        arithmetic.run(job, parameters, stop, tell)
    else:
        raise RecipeError(Exit.PARAMETERS, f"{job.recipe} runs the user's own file")
