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

import difflib
import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import PurePosixPath
from typing import Any, Final, get_type_hints

import msgspec

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
)

JOB_FILE: Final = "/job/job.json"
WORK_FOLDER: Final = "/job/work"
"""The project's copy, which a script may write to: its working directory."""
REWARD_FILE: Final = "reward.py"


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
            raise ParameterError(_unknown(recipe, name, properties), field=str(name))
        values[name] = _converted(name, value, types[name], properties[name])
    for name in described.get("required", []):
        if name not in values:
            raise ParameterError(
                f"{name} is missing: {properties[name]['description']}", field=name
            )
    parameters = kind(**values)
    _check_together(parameters)
    return _filled_in(parameters)


def stage_of(stage: Stage) -> FineTuning:
    """The parameters of a chain's stage; raises ParameterError."""
    found = validate(stage.recipe, stage.parameters)
    if not isinstance(found, FineTuning) or found.method == "reward":
        raise ParameterError(
            f"stages: {stage.recipe} makes no model to go on from; use sft, dpo, grpo, lora, full, "
            "continue or distill",
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


def _unknown(recipe: str, name: object, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(sorted(known))}"
    return f"{recipe} has no parameter {name!r}; {hint}"


def _converted(name: str, value: object, kind: Any, spec: Mapping[str, Any]) -> object:
    """One value in its own type, or a ParameterError that says what would do."""
    finite = not isinstance(value, float) or math.isfinite(value)
    if isinstance(value, str) and spec.get("type") in ("array", "object"):
        value = _decoded(value)
    # In lax mode "inf" would pass as a float and true as text, so they are refused by hand.
    if finite and not isinstance(value, bool):
        try:
            found: object = msgspec.convert(value, kind, strict=False)
        except (msgspec.ValidationError, OverflowError):
            pass
        else:
            if not isinstance(found, float) or math.isfinite(found):
                return found
    raise ParameterError(f"{name} must be {_wanted(spec)}, not {_shown(value)}", field=name)


def _decoded(text: str) -> object:
    """Lists and objects come as JSON where only text can be sent."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _wanted(spec: Mapping[str, Any]) -> str:
    """In words, what a field's JSON Schema allows."""
    if "enum" in spec:
        return "one of " + ", ".join(map(str, spec["enum"]))
    match spec.get("type"):
        case "integer":
            return f"a whole number from {spec['minimum']:,} to {spec['maximum']:,}"
        case "number" if "exclusiveMinimum" in spec:
            return f"a number above {spec['exclusiveMinimum']:g}, at most {spec['maximum']:g}"
        case "number":
            return f"a number from {spec['minimum']:g} to {spec['maximum']:g}"
        case "object":
            return f"an object ({spec['description']})"
        case "array" if "$ref" in spec["items"] or spec["items"].get("type") != "string":
            return f"a list of at most {spec['maxItems']} ({spec['description']})"
        case "array":
            return f"a list of at most {spec['maxItems']} texts ({spec['description']})"
        case _:
            return f"a text of 1 to {spec['maxLength']} characters"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


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
            return msgspec.structs.replace(parameters, parameters=given)
    if isinstance(parameters, FineTuning) and not parameters.learning_rate:
        rate = RATES[parameters.weights, parameters.method]
        return msgspec.structs.replace(parameters, learning_rate=rate)
    return parameters


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
        case ArithmeticParameters() | PromptParameters():
            pass
        case _:
            _check_tuning(parameters)


def _check_tuning(parameters: FineTuning) -> None:
    if isinstance(parameters, Adapting | LoraParameters):
        if ALL_LINEAR in parameters.targets and len(parameters.targets) > 1:
            raise ParameterError(f"targets: {ALL_LINEAR!r} stands alone", field="targets")
        if len(set(parameters.targets)) < len(parameters.targets):
            raise ParameterError("targets names a layer twice; name it once", field="targets")
    if parameters.accumulate > parameters.batch_size:
        raise ParameterError(
            f"accumulate: a step of {parameters.batch_size} rows has no {parameters.accumulate} "
            "parts; lower it, or raise batch_size",
            field="accumulate",
        )
    if isinstance(parameters, GrpoParameters | LoraParameters | FullParameters):
        _check_groups(parameters)


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
    for trial in sweep_trials(msgspec.structs.replace(parameters, trials=10_000), seed=0):
        try:
            validate(parameters.recipe, trial)
        except ParameterError as error:
            raise ParameterError(f"space: {error}", field="space") from None
    if fixed := sorted({"steps", "seed"} & set(parameters.space)):
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
            f"not {_shown(entry)}",
            field="entry",
        )


def _check_arguments(name: str, arguments: Sequence[str]) -> None:
    for argument in arguments:
        if "\0" in argument:
            raise ParameterError(f"{name} can't hold a NUL character; remove it", field=name)
