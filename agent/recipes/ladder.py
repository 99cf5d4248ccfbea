"""Which rung a job stands on, and what runs it."""

from collections.abc import Callable

from agent.recipes import run
from agent.recipes.job import Job, Stop


def climb(job: Job, stop: Stop, tell: Callable[[str], None]) -> None:
    """Run the job's recipe, telling a person how it goes; raises RecipeError or Stopped."""
    run.run(job, stop, tell)
