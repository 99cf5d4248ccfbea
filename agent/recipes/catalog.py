"""What can be run, with which parameters: shared by the site, the CLI and the agent.

Pure: msgspec and the standard library only. A recipe is a struct of parameters
(`agent.recipes.parameters`), the inputs it needs, and the command that runs it inside the sandbox.
`validate` is the only way in; what it returns holds every bound.

| recipe | what it does |
|---|---|
| `prompt` | no training: what the base reaches on your evaluation |
| `sft` | learns the answers of the rows |
| `dpo` | learns which of two answers is the better one |
| `reward` | makes a model that scores answers |
| `grpo` | learns from your own reward, a Python function |
| `lora` | an adapter by sft, dpo or grpo; the base stays as it is |
| `full` | all weights, by sft, dpo or grpo |
| `continue` | goes on with pre-training, on raw text |
| `distill` | learns a teacher's answers with its doubts |
| `sweep` | tries many parameters of one recipe, and keeps the best |
| `arithmetic` | adds, subtracts or merges finished models |
| `chain` | recipes one after another, each from what the last one made |
| `script` | the user's own project, by its file or its command |
"""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import PurePosixPath
from typing import Any, Final, get_type_hints

import msgspec

from agent.recipes.convert import converted, shown, unknown
from agent.recipes.inputs import INPUTS, Input
from agent.recipes.parameters import (
    ALL_LINEAR,
    RATES,
    Adapting,
    ArithmeticParameters,
    ChainParameters,
    ContinueParameters,
    DistillParameters,
    DpoParameters,
    FineTuning,
    FullParameters,
    GrpoParameters,
    LoraParameters,
    Parameters,
    PromptParameters,
    RewardParameters,
    ScriptParameters,
    SftParameters,
    Stage,
    SweepParameters,
    why_not_on,
)

JOB_FILE: Final = "/job/job.json"
WORK_FOLDER: Final = "/job/work"
"""The project's copy, which a script may write to: its working directory."""
REWARD_FILE: Final = "reward.py"
_MAX_GRID: Final = 1024
# What trials share, so that they can be compared and read the same inputs.
_SAME_FOR_ALL: Final = frozenset({"steps", "evaluate_samples", "method", "mix"})


class ParameterError(ValueError):
    """A parameter that can't be used; `str(error)` says what to do, `field` which one it is."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class Exit(IntEnum):
    """How our recipes leave (numbers from sysexits.h where they fit); scripts may use them too."""

    DONE = 0
    PARAMETERS = 64
    """job.json or a parameter can't be used on this base."""
    DIVERGED = 65
    """The loss stopped being a number; the last checkpoint is from before that."""
    INPUT = 66
    """An input is missing or malformed."""
    REWARD = 67
    """The user's reward raised, or gave something that is no number."""
    PEER_LOST = 69
    """Another rank of the gang is gone: resumable from the last checkpoint."""
    FAILED = 70
    """A process of the gang broke again and again; the message says how."""
    MEMORY = 71
    """The device has too little memory."""
    DISK = 73
    """The output folder can't be written."""
    STOPPED = 75
    """Asked to leave before the end: resumable from the last checkpoint."""


_RECIPES: Final[Mapping[str, type[Parameters]]] = {
    "prompt": PromptParameters,
    "sft": SftParameters,
    "dpo": DpoParameters,
    "reward": RewardParameters,
    "grpo": GrpoParameters,
    "lora": LoraParameters,
    "full": FullParameters,
    "continue": ContinueParameters,
    "distill": DistillParameters,
    "sweep": SweepParameters,
    "arithmetic": ArithmeticParameters,
    "chain": ChainParameters,
    "script": ScriptParameters,
}


def names() -> tuple[str, ...]:
    """All recipes."""
    return tuple(_RECIPES)


def inputs(recipe: str) -> tuple[Input, ...]:
    """What a recipe reads; raises ParameterError for an unknown recipe."""
    _struct_of(recipe)
    return INPUTS[recipe]


def schema(recipe: str) -> dict[str, Any]:
    """The JSON Schema of a recipe's parameters, for forms and for the API's description."""
    kind = _struct_of(recipe)
    _, components = msgspec.json.schema_components([kind])
    found: dict[str, Any] = components.pop(kind.__name__)
    return {**found, "$defs": components} if components else found


def validate(recipe: str, raw: Mapping[str, object]) -> Parameters:
    """The recipe's parameters, every bound held and every default filled in.

    Numbers may come as text, as forms and command lines send them. Raises ParameterError.
    """
    kind = _struct_of(recipe)
    types = get_type_hints(kind, include_extras=True)
    described = schema(recipe)
    properties: dict[str, dict[str, Any]] = described["properties"]
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name not in properties:
            raise ParameterError(unknown(recipe, name, properties), field=str(name))
        try:
            values[name] = converted(name, value, types[name], properties[name])
        except ValueError as error:
            raise ParameterError(str(error), field=name) from None
    for name in described.get("required", []):
        if name not in values:
            raise ParameterError(
                f"{name} is missing: {properties[name]['description']}", field=name
            )
    parameters = kind(**values)
    _check_together(parameters)
    return _filled_in(parameters)


def tunings(parameters: Parameters) -> list[FineTuning]:
    """The trainings that a recipe is made of, as far as they differ in what they read."""
    match parameters:
        case ChainParameters(stages=stages):
            return [stage_of(stage) for stage in stages]
        case SweepParameters():
            found = validate(parameters.recipe, parameters.parameters)
            return [found] if isinstance(found, FineTuning) else []
        case PromptParameters() | ScriptParameters() | ArithmeticParameters():
            return []
        case _:
            return [parameters]


def stage_of(stage: Stage) -> FineTuning:
    """The parameters of a chain's stage; raises ParameterError."""
    found = validate(stage.recipe, stage.parameters)
    if isinstance(found, DistillParameters):
        raise ParameterError(
            "stages: distill needs a second model, which a chain has not: run it as a job of its "
            "own",
            field="stages",
        )
    if not isinstance(found, FineTuning) or found.method == "reward":
        raise ParameterError(
            f"stages: {stage.recipe} makes no model to go on from; use sft, dpo, grpo, lora, full "
            "or continue",
            field="stages",
        )
    return found


def total_steps(parameters: Parameters) -> int:
    """Optimiser steps from start to end; 0 where only its author knows."""
    match parameters:
        case ChainParameters(stages=stages):
            return sum(stage_of(stage).steps for stage in stages)
        case SweepParameters():
            return sum(count * steps for count, steps in sweep_rungs(parameters))
        case PromptParameters() | ScriptParameters() | ArithmeticParameters():
            return 0
        case _:
            return parameters.steps


def sweep_trials(parameters: SweepParameters, seed: int) -> list[dict[str, object]]:
    """The combinations that are tried, as parameters of the recipe; the same for the same seed."""
    names = sorted(parameters.space)
    grid = list(itertools.product(*(parameters.space[name] for name in names)))
    random.Random(f"{seed}:sweep").shuffle(grid)  # noqa: S311  # no secret hangs on it
    return [
        {**parameters.parameters, **dict(zip(names, values, strict=True))}
        for values in grid[: parameters.trials]
    ]


def sweep_rungs(parameters: SweepParameters) -> list[tuple[int, int]]:
    """Successive halving (arXiv 1603.06560): how many trials go on, and how many steps each.

    A trial has all of its recipe's steps when it comes to the last rung; each rung before gives
    it half of what the next one has brought it to.
    """
    steps = validate(parameters.recipe, parameters.parameters)
    assert isinstance(steps, FineTuning)
    count = min(parameters.trials, math.prod(map(len, parameters.space.values())))
    found, done = [], 0
    for rung in range(parameters.rungs):
        upto = max(1, steps.steps >> (parameters.rungs - 1 - rung))
        found.append((max(1, count >> rung), upto - done))
        done = upto
    return [(trials, more) for trials, more in found if more > 0]


def command(recipe: str, parameters: Parameters) -> list[str]:
    """The argv inside the sandbox; `python` is the training environment's."""
    if isinstance(parameters, ScriptParameters):
        if parameters.command:
            return list(parameters.command)
        return ["python", f"{WORK_FOLDER}/{parameters.entry}", *parameters.args]
    _struct_of(recipe)
    return ["python", "-m", "agent.recipes", JOB_FILE]


def as_json(parameters: Parameters) -> dict[str, Any]:
    """Plain values, defaults included, as kept with a job; `validate` takes them back."""
    plain: dict[str, Any] = msgspec.to_builtins(parameters)
    return plain


def _struct_of(recipe: str) -> type[Parameters]:
    if recipe not in _RECIPES:
        raise ParameterError(
            f"there is no recipe {recipe!r}; there are {', '.join(_RECIPES)}", field="recipe"
        )
    return _RECIPES[recipe]


def _filled_in(parameters: Parameters) -> Parameters:
    """With the rate that suits where none was given, and with all of each part's parameters."""
    match parameters:
        case ChainParameters(stages=stages):
            whole = [
                msgspec.structs.replace(stage, parameters=as_json(stage_of(stage)))
                for stage in stages
            ]
            return msgspec.structs.replace(parameters, stages=whole)
        case SweepParameters():
            given = as_json(validate(parameters.recipe, parameters.parameters))
            return msgspec.structs.replace(
                parameters, parameters=given, space=_converted_space(parameters)
            )
    if isinstance(parameters, FineTuning) and not parameters.learning_rate:
        rate = RATES[parameters.weights, parameters.method]
        return msgspec.structs.replace(parameters, learning_rate=rate)
    return parameters


def _converted_space(parameters: SweepParameters) -> dict[str, list[Any]]:
    """Numbers as numbers, however they were sent: what a job needs is told from them."""
    kind = _struct_of(parameters.recipe)
    types = get_type_hints(kind, include_extras=True)
    properties = schema(parameters.recipe)["properties"]
    return {
        name: [converted(name, value, types[name], properties[name]) for value in values]
        for name, values in parameters.space.items()
    }


def _check_together(parameters: Parameters) -> None:
    """What no single field can say."""
    match parameters:
        case ScriptParameters():
            _check_script(parameters)
        case ChainParameters(stages=stages):
            for stage in stages:
                stage_of(stage)
        case SweepParameters():
            _check_sweep(parameters)
        case PromptParameters(method=method, shots=shots):
            if shots and method != "sft":
                raise ParameterError(
                    f"shots shows rows with their answers, as sft reads them; leave it out for "
                    f"{method}",
                    field="shots",
                )
        case ArithmeticParameters():
            pass
        case _:
            _check_tuning(parameters)


def _check_tuning(parameters: FineTuning) -> None:
    if isinstance(parameters, Adapting | LoraParameters):
        if ALL_LINEAR in parameters.targets and len(parameters.targets) > 1:
            raise ParameterError(f"targets: {ALL_LINEAR!r} stands alone", field="targets")
        if len(set(parameters.targets)) < len(parameters.targets):
            raise ParameterError("targets names a layer twice; name it once", field="targets")
    if isinstance(parameters, GrpoParameters | LoraParameters | FullParameters):
        _check_groups(parameters)
    if why := why_not_on(parameters, 1):
        raise ParameterError(why, field="accumulate")


def _check_groups(parameters: GrpoParameters | LoraParameters | FullParameters) -> None:
    if parameters.method != "grpo":
        return
    if parameters.batch_size % (parameters.generations * parameters.accumulate):
        raise ParameterError(
            f"batch_size counts grpo's answers: make it a multiple of generations × accumulate "
            f"({parameters.generations} × {parameters.accumulate})",
            field="batch_size",
        )
    if parameters.completion_length >= parameters.max_length:
        raise ParameterError(
            "completion_length must leave room for the prompt: keep it below max_length",
            field="completion_length",
        )


def _check_sweep(parameters: SweepParameters) -> None:
    common = validate(parameters.recipe, parameters.parameters)
    assert isinstance(common, FineTuning)
    if not common.evaluate_samples or common.method == "grpo":
        raise ParameterError(
            "parameters: trials are compared by held-out rows, by sft, dpo or continue; leave "
            "evaluate_samples above 0",
            field="parameters",
        )
    count = math.prod(map(len, parameters.space.values()))
    if count > _MAX_GRID:
        raise ParameterError(
            f"space: {count:,} combinations are too many to draw from; at most {_MAX_GRID:,}",
            field="space",
        )
    for trial in sweep_trials(msgspec.structs.replace(parameters, trials=_MAX_GRID), seed=0):
        try:
            validate(parameters.recipe, trial)
        except ParameterError as error:
            raise ParameterError(f"space: {error}", field="space") from None
    if fixed := sorted(_SAME_FOR_ALL & set(parameters.space)):
        raise ParameterError(
            f"space: {fixed[0]} is the same for all trials; put it into parameters", field="space"
        )


def _check_script(parameters: ScriptParameters) -> None:
    if bool(parameters.entry) == bool(parameters.command):
        raise ParameterError(
            "entry is missing: name the .py file to run, or give a command (not both)",
            field="entry",
        )
    if parameters.command and parameters.args:
        raise ParameterError("args belong to entry; add them to command", field="args")
    if parameters.entry:
        _check_entry(parameters.entry)
    _check_arguments("args", parameters.args)
    _check_arguments("command", parameters.command)


def _check_entry(entry: str) -> None:
    path = PurePosixPath(entry)
    inside = not path.is_absolute() and ".." not in path.parts and "\\" not in entry
    if not inside or path.suffix != ".py" or str(path) != entry or not entry.isprintable():
        raise ParameterError(
            f"entry must be a .py file inside the project, like train.py or src/train.py, "
            f"not {shown(entry)}",
            field="entry",
        )


def _check_arguments(name: str, arguments: Sequence[str]) -> None:
    for argument in arguments:
        if "\0" in argument:
            raise ParameterError(f"{name} can't hold a NUL character; remove it", field=name)
