"""What can be run, with which parameters: shared by the site, the CLI and the agent.

Pure: msgspec and the standard library only. A recipe is a struct of parameters whose bounds and
texts stand beside each field, the inputs it needs, and the command that runs it inside the
sandbox. `validate` is the only way in; what it returns holds every bound.

| recipe | what it does |
|---|---|
| `lora` | supervised fine-tuning of a low-rank adapter; the base stays as it is |
| `full` | supervised fine-tuning of all weights |
| `script` | the user's own Python file in the node's training environment |
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, get_type_hints

import msgspec
from msgspec import Meta, Struct, field

JOB_FILE: Final = "/job/job.json"
WORK_FOLDER: Final = "/job/work"
"""The project's copy, which a script may write to: its working directory."""
ALL_LINEAR: Final = "all-linear"


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


class Input(Struct, frozen=True):
    """A folder that a recipe reads at /job/inputs/<name>."""

    name: str
    required: bool
    help: str


class Tuning(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both kinds of supervised fine-tuning take."""

    steps: Annotated[int, Meta(ge=1, le=1_000_000, description="Optimiser steps.")] = 100
    batch_size: Annotated[int, Meta(ge=1, le=1024, description="Rows in each step.")] = 8
    max_length: Annotated[
        int, Meta(ge=16, le=131_072, description="Tokens of a row; what is longer is cut.")
    ] = 512
    warmup: Annotated[
        float, Meta(ge=0, le=0.5, description="Share of the steps over which the rate rises.")
    ] = 0.1
    weight_decay: Annotated[float, Meta(ge=0, le=1, description="AdamW's weight decay.")] = 0.0
    max_grad_norm: Annotated[
        float, Meta(gt=0, le=1000, description="Longer gradients are shortened to this.")
    ] = 1.0
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        Meta(description="Of matrix products; auto takes bf16 where the hardware has it."),
    ] = "auto"
    checkpoint_every: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Steps between checkpoints; 0: the market says.")
    ] = 0
    evaluate_samples: Annotated[
        int, Meta(ge=0, le=100_000, description="Held-out rows whose loss is measured; 0: none.")
    ] = 64
    answers: Annotated[
        int, Meta(ge=0, le=32, description="Held-out prompts answered before and after.")
    ] = 2
    answer_tokens: Annotated[
        int, Meta(ge=1, le=1024, description="Longest sample answer, in tokens.")
    ] = 48


_Target = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class LoraParameters(Tuning, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Low-rank adaptation (Hu et al., arXiv 2106.09685)."""

    learning_rate: Annotated[
        float, Meta(gt=0, le=1, description="Its peak; a cosine follows the warm-up.")
    ] = 5e-4
    rank: Annotated[int, Meta(ge=1, le=512, description="Rank of the update.")] = 16
    alpha: Annotated[
        float, Meta(gt=0, le=4096, description="The update is scaled by alpha / rank.")
    ] = 32.0
    dropout: Annotated[float, Meta(ge=0, le=0.9, description="Dropout on the adapter's input.")] = (
        0.0
    )
    targets: Annotated[
        list[_Target],
        Meta(
            min_length=1,
            max_length=32,
            description=f"Names of the layers to adapt, or {ALL_LINEAR!r} alone.",
        ),
    ] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])


class FullParameters(Tuning, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All weights, in float32 with AdamW."""

    learning_rate: Annotated[
        float, Meta(gt=0, le=1, description="Its peak; a cosine follows the warm-up.")
    ] = 2e-5


class ScriptParameters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The user's own Python file."""

    entry: Annotated[
        str,
        Meta(min_length=1, max_length=200, description="The .py file to run, inside the project."),
    ]
    args: Annotated[
        list[Annotated[str, Meta(max_length=4096)]],
        Meta(max_length=100, description="Its arguments, each as it is."),
    ] = field(default_factory=list)


FineTuning = LoraParameters | FullParameters
Parameters = LoraParameters | FullParameters | ScriptParameters

_BASE: Final = Input("base", True, "a model in Hugging Face's layout, with safetensors weights")
_DATASET: Final = Input(
    "dataset",
    True,
    "train.jsonl and heldout.jsonl; rows are {prompt, completion} or {messages}",
)
_RECIPES: Final[Mapping[str, type[Parameters]]] = {
    "lora": LoraParameters,
    "full": FullParameters,
    "script": ScriptParameters,
}
_INPUTS: Final[Mapping[str, tuple[Input, ...]]] = {
    "lora": (_BASE, _DATASET),
    "full": (_BASE, _DATASET),
    "script": (
        Input("script", True, "the project's folder with its .py files"),
        Input("dataset", False, "any files, at /job/inputs/dataset"),
        Input("base", False, "a model, at /job/inputs/base"),
    ),
}


def names() -> tuple[str, ...]:
    """All recipes."""
    return tuple(_RECIPES)


def inputs(recipe: str) -> tuple[Input, ...]:
    """What a recipe reads; raises ParameterError for an unknown recipe."""
    _struct_of(recipe)
    return _INPUTS[recipe]


def schema(recipe: str) -> dict[str, Any]:
    """The JSON Schema of a recipe's parameters, for forms and for the API's description."""
    kind = _struct_of(recipe)
    _, components = msgspec.json.schema_components([kind])
    found: dict[str, Any] = components[kind.__name__]
    return found


def validate(recipe: str, raw: Mapping[str, object]) -> Parameters:
    """The recipe's parameters, every bound held and every default filled in.

    Numbers may come as text, as forms and command lines send them. Raises ParameterError.
    """
    kind = _struct_of(recipe)
    types = get_type_hints(kind, include_extras=True)
    properties: dict[str, dict[str, Any]] = schema(recipe)["properties"]
    required = schema(recipe).get("required", [])
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name not in types:
            raise ParameterError(_unknown(recipe, name, properties), field=str(name))
        values[name] = _converted(name, value, types[name], properties[name])
    for name in required:
        if name not in values:
            raise ParameterError(
                f"{name} is missing: {properties[name]['description']}", field=name
            )
    parameters = kind(**values)
    _check_together(parameters)
    return parameters


def command(recipe: str, parameters: Parameters) -> list[str]:
    """The argv inside the sandbox; `python` is the training environment's."""
    if isinstance(parameters, ScriptParameters):
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
        case "array":
            return f"a list of at most {spec['maxItems']} texts ({spec['description']})"
        case _:
            return f"a text of 1 to {spec['maxLength']} characters"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _check_together(parameters: Parameters) -> None:
    """What no single field can say."""
    if isinstance(parameters, ScriptParameters):
        _check_entry(parameters.entry)
        _check_arguments(parameters.args)
    elif isinstance(parameters, LoraParameters):
        if ALL_LINEAR in parameters.targets and len(parameters.targets) > 1:
            raise ParameterError(f"targets: {ALL_LINEAR!r} stands alone", field="targets")
        if len(set(parameters.targets)) < len(parameters.targets):
            raise ParameterError("targets names a layer twice; name it once", field="targets")


def _check_entry(entry: str) -> None:
    path = PurePosixPath(entry)
    inside = not path.is_absolute() and ".." not in path.parts and "\\" not in entry
    if not inside or path.suffix != ".py" or str(path) != entry or not entry.isprintable():
        raise ParameterError(
            f"entry must be a .py file inside the project, like train.py or src/train.py, "
            f"not {_shown(entry)}",
            field="entry",
        )


def _check_arguments(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if "\0" in argument:
            raise ParameterError("args can't hold a NUL character; remove it", field="args")
