"""Many parameters of one recipe under one budget: the worse half stops early, the best is kept.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): all trials train to the first rung;
then only the better half, by the held-out target, goes on to twice as many steps, and so on. The
artifact is the best trial's, with `trials.json` and `trials.svg`, a table and a plot of them all.

After each trial's rung there is a checkpoint: what was measured, and where each trial stands. So
what a lost machine costs is one trial's way to its rung, at most.
"""

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from agent.recipes import catalog, plot
from agent.recipes.catalog import Exit
from agent.recipes.checkpoint import complete_folder, linked
from agent.recipes.job import Job, RecipeError, Stop
from agent.recipes.metrics import Metrics
from agent.recipes.parameters import FineTuning, SweepParameters
from agent.recipes.run import Run, Setting

_STATE: Final = "sweep.json"
_TABLE: Final = "trials.json"
_PLOT: Final = "trials.svg"


class Trial(Struct, kw_only=True):
    """One combination, and what it has reached."""

    parameters: dict[str, Any]
    """Those that differ between trials."""
    steps: list[int] = []
    figures: list[float] = []
    """Of the held-out target, after so many steps."""
    saved: str = ""
    """The name of its last checkpoint."""


class Progress(Struct, kw_only=True):
    """sweep.json."""

    recipe: str
    space: dict[str, Any]
    seed: int
    trials: list[Trial]
    done: int = 0
    """Steps of all trials together."""


def run(job: Job, parameters: SweepParameters, stop: Stop, tell: Callable[[str], None]) -> None:
    """Raises RecipeError or Stopped."""
    Sweep(job, parameters, stop, tell).to_the_end()


class Sweep:
    """One attempt of a sweep."""

    def __init__(
        self, job: Job, parameters: SweepParameters, stop: Stop, tell: Callable[[str], None]
    ) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RecipeError(Exit.PARAMETERS, "a sweep runs on one GPU; book one")
        self._job, self._parameters, self._stop, self._tell = job, parameters, stop, tell
        self._raw = catalog.sweep_trials(parameters, job.seed)
        self._folder = Path(job.output) / ".trials"
        self._total = catalog.total_steps(parameters)
        self._progress = self._begun()

    def to_the_end(self) -> None:
        """Climb the rungs, then hand over the best."""
        living, upto = list(range(len(self._raw))), 0
        for count, more in catalog.sweep_rungs(self._parameters):
            living = self._best(living)[:count] if upto else living[:count]
            upto += more
            for index in living:
                if upto not in self._progress.trials[index].steps:
                    self._climb(index, upto, more)
        best = self._best(living)[0]
        self._tell(f"the best is trial {best + 1}: {self._progress.trials[best].parameters}")
        self._hand_over(best)

    def _begun(self) -> Progress:
        """What is known already; raises RecipeError for another sweep's checkpoint."""
        names = sorted(self._parameters.space)
        fresh = Progress(
            recipe=self._parameters.recipe,
            space=self._parameters.space,
            seed=self._job.seed,
            trials=[Trial(parameters={n: raw[n] for n in names}) for raw in self._raw],
        )
        resume = self._job.resume
        if resume is None:
            return fresh
        try:
            found = msgspec.json.decode((resume / _STATE).read_bytes(), type=Progress)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _unusable(resume, str(error)) from None
        same = (found.recipe, found.space, found.seed, len(found.trials))
        if same != (fresh.recipe, fresh.space, fresh.seed, len(fresh.trials)):
            raise _unusable(resume, "it was made by a run with other parameters")
        for path in resume.glob("trial-*"):
            shutil.copytree(path, self._folder / path.name, copy_function=linked)
        return found

    def _best(self, living: list[int]) -> list[int]:
        """Trials, the best first; a tie goes to the earlier one."""
        trials = self._progress.trials
        sign = -1.0 if self._tuning(living[0]).method == "dpo" else 1.0
        return sorted(living, key=lambda index: (sign * trials[index].figures[-1], index))

    def _tuning(self, index: int) -> FineTuning:
        found = catalog.validate(self._parameters.recipe, self._raw[index])
        assert isinstance(found, FineTuning)
        return found

    def _climb(self, index: int, upto: int, more: int) -> None:
        """Train one trial on to its rung, measure it there, and keep what is known."""
        trial = self._progress.trials[index]
        self._tell(f"trial {index + 1} of {len(self._raw)} to step {upto}: {trial.parameters}")
        figure = self._attempt(index, upto).to_the_rung()
        gc.collect()
        trial.steps.append(upto)
        trial.figures.append(figure)
        self._progress.done += more
        trial.saved = f"checkpoint-{self._progress.done}"
        metrics = Metrics(Path(self._job.metrics), self._total)
        metrics.write(self._progress.done, trial=index + 1, trial_steps=upto, trial_figure=figure)
        metrics.close()
        self._keep()

    def _attempt(self, index: int, upto: int) -> Run:
        home = self._folder / f"trial-{index}"
        trial = self._progress.trials[index]
        told = msgspec.structs.replace(
            self._job,
            recipe=self._parameters.recipe,
            parameters=self._raw[index],
            output=str(home),
            checkpoint_s=0.0,
        )
        setting = Setting(
            base=self._job.folder("base"),
            dataset=self._job.folder("dataset"),
            artifact=Path(self._job.output) / "artifact",
            resume=home / trial.saved if trial.saved else None,
            # Its steps are told, and its checkpoints named, as steps of the sweep.
            offset=self._progress.done - max(trial.steps, default=0),
            total=self._total,
            upto=upto,
        )
        return Run(told, self._tuning(index), setting, self._stop, self._tell)

    def _keep(self) -> None:
        """A checkpoint of the sweep: each trial where it stands."""
        with complete_folder(Path(self._job.output) / f"checkpoint-{self._progress.done}") as made:
            (made / _STATE).write_bytes(msgspec.json.encode(self._progress))
            for index, trial in enumerate(self._progress.trials):
                if not trial.saved:
                    continue
                name = Path(f"trial-{index}") / trial.saved
                shutil.copytree(self._folder / name, made / name, copy_function=linked)

    def _hand_over(self, best: int) -> None:
        steps = self._progress.trials[best].steps[-1]
        self._attempt(best, steps).to_the_end()
        artifact = Path(self._job.output) / "artifact"
        trials = self._progress.trials
        (artifact / _TABLE).write_bytes(msgspec.json.format(msgspec.json.encode(trials)) + b"\n")
        curves = [(str(n + 1), trial.steps, trial.figures) for n, trial in enumerate(trials)]
        (artifact / _PLOT).write_text(plot.lines(curves, best=str(best + 1)), encoding="utf-8")
        shutil.rmtree(self._folder, ignore_errors=True)


def _unusable(folder: Path, why: str) -> RecipeError:
    return RecipeError(
        Exit.INPUT,
        f"the checkpoint {folder.name} can't be resumed from: {why}; "
        "resume from an earlier one or start anew",
    )
