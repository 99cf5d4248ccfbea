"""The job as the agent wrote it down, checked before anything slow is imported."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from agent.recipes import catalog
from agent.recipes.catalog import Exit, ParameterError
from agent.recipes.parameters import FineTuning, Parameters

# For libraries, before they are imported. A sandbox has no network; they would look for one first.
# A node's processors are not one job's alone: torch's threads sleep while they wait for one another,
# rather than turn in a circle.
SETTINGS: Final = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "OMP_WAIT_POLICY": "passive",
}


class RecipeError(Exception):
    """The recipe can't go on; `str(error)` says why and what to do, `code` how it leaves."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stopped(Exception):
    """SIGTERM came; what is worth keeping is to be saved on the way out."""


class Stop:
    """SIGTERM as a question, so that a step is finished before it is answered."""

    def __init__(self) -> None:
        self._asked = False
        self._tell: Callable[[], None] | None = None

    @property
    def asked(self) -> bool:
        """Whether it is time to leave."""
        return self._asked

    def pass_on(self, tell: Callable[[], None]) -> None:
        """Whom else to ask, now or when the signal comes."""
        self._tell = tell
        if self._asked:
            tell()

    def install(self) -> "Stop":
        """Listen from now on; called before the slow imports, in the main thread."""
        signal.signal(signal.SIGTERM, self._ask)
        return self

    def check(self) -> None:
        """Raises Stopped if it is time to leave."""
        if self.asked:
            raise Stopped

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._tell is not None:
            self._tell()


class Gang(Struct, frozen=True, kw_only=True):
    """The lease's nodes, by rank: where each is in the lease's network, and its GPUs."""

    rank: int
    addresses: list[str]
    gpus: list[int]
    token: str
    gpus_min: int
    """So many are enough to go on without ranks that are lost."""
    gather_s: float = 180.0
    """How long the ranks wait for each other: the slowest may take that long to start."""

    @property
    def is_elastic(self) -> bool:
        """Whether it can do without some of its GPUs."""
        return self.gpus_min < sum(self.gpus)


class Job(Struct, frozen=True, kw_only=True):
    """job.json. Paths are as seen inside the sandbox."""

    job: str
    recipe: str
    parameters: dict[str, object]
    inputs: dict[str, str]
    output: str
    metrics: str
    resume_from: str | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    checkpoint_s: Annotated[float, Meta(ge=0)] = 0.0
    """Seconds between checkpoints; 0 = none by time. Used where `checkpoint_every` is 0."""
    gang: Gang | None = None
    """Of a job on several GPUs."""
    lineage: dict[str, object] = {}
    """For the model card."""

    def folder(self, name: str) -> Path:
        """An input's folder; raises RecipeError if it wasn't given or isn't there."""
        path = self.inputs.get(name)
        if path is None:
            wanted = next(i.help for i in catalog.inputs(self.recipe) if i.name == name)
            raise RecipeError(Exit.INPUT, f"the input {name!r} is missing; give {wanted}")
        if not Path(path).is_dir():
            raise RecipeError(Exit.INPUT, f"the input {name!r} is not a folder: {path}")
        return Path(path)

    @property
    def resume(self) -> Path | None:
        """The checkpoint to go on from; the environment's word counts most."""
        path = os.environ.get("GRIDLOOM_RESUME_FROM") or self.resume_from
        return Path(path) if path else None


def load(path: Path) -> Job:
    """Read job.json; raises RecipeError."""
    try:
        job = msgspec.json.decode(path.read_bytes(), type=Job)
    except OSError as error:
        raise RecipeError(Exit.PARAMETERS, f"{path} can't be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecipeError(Exit.PARAMETERS, f"{path} is not a job: {error}") from None
    try:
        catalog.inputs(job.recipe)
    except ParameterError as error:
        raise RecipeError(Exit.PARAMETERS, str(error)) from None
    return job


def parameters_of(job: Job) -> Parameters:
    """The job's parameters, checked again: nothing is trusted that came over a network."""
    try:
        return catalog.validate(job.recipe, job.parameters)
    except ParameterError as error:
        raise RecipeError(Exit.PARAMETERS, str(error)) from None


def fine_tuning_of(job: Job) -> FineTuning:
    """The parameters of a job that trains one model; raises RecipeError if it is another."""
    found = parameters_of(job)
    if not isinstance(found, FineTuning):
        raise RecipeError(Exit.PARAMETERS, f"{job.recipe} does not train one model by itself")
    return found


def read_json(path: Path, what: str) -> Mapping[str, object]:
    """A JSON object from a file of an input; raises RecipeError naming `what` it belongs to."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except OSError as error:
        text = f"the {what} has no readable {path.name} ({error.strerror})"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = f"the {what}'s {path.name} is malformed: {error}"
    raise RecipeError(Exit.INPUT, text)
