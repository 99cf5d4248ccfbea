"""Recipes as people read them: their inputs and parameters, from the catalogue's own schema.

The new-job form, the command line and the page of recipes all show this, so that none of them has
a list of its own that could be wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from agent.recipes import catalog
from agent.recipes.catalog import ParameterError

Kind = Literal["integer", "number", "switch", "choice", "text", "list", "json"]

# What a job form opens with, if there is such a recipe.
_FIRST: Final = "lora"
_FEW: Final = 6
_COMMON: Final = frozenset(
    "method weights steps learning_rate batch_size max_length rank mix".split()
)
_SIMPLE: Final[Mapping[str, Kind]] = {
    "integer": "integer", "number": "number", "boolean": "switch", "string": "text",
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """One parameter. `default` is None where the buyer must say it."""

    name: str
    kind: Kind
    help: str
    default: Any
    required: bool
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    """It must be more than this."""

    @property
    def label(self) -> str:
        """`batch_size` as "Batch size"."""
        return self.name.replace("_", " ").capitalize()

    @property
    def allowed(self) -> str:
        """In words, what may be given."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind in ("integer", "number") and self.high is not None:
            low = f"above {self.above:,}" if self.above is not None else f"{self.low or 0:,}"
            return f"{low} to {self.high:,}"
        return {"list": "one a line", "json": "as JSON"}.get(self.kind, "")


@dataclass(frozen=True)
class Input:
    """A folder that a recipe reads."""

    name: str
    required: bool
    help: str


@dataclass(frozen=True)
class Recipe:
    """One way of training."""

    name: str
    about: str
    inputs: Sequence[Input]
    parameters: Sequence[Parameter]

    @property
    def common(self) -> list[Parameter]:
        """What most jobs set; of a recipe with few parameters, all."""
        if len(self.parameters) <= _FEW:
            return list(self.parameters)
        return [each for each in self.parameters if each.required or each.name in _COMMON]

    @property
    def further(self) -> list[Parameter]:
        """What most jobs leave as it is."""
        common = {each.name for each in self.common}
        return [each for each in self.parameters if each.name not in common]


def first() -> str:
    """The recipe that a form opens with."""
    return _FIRST if _FIRST in catalog.names() else catalog.names()[0]


def every() -> list[Recipe]:
    """All recipes, as the catalogue orders them."""
    return [recipe(name) for name in catalog.names()]


def recipe(name: str) -> Recipe:
    """One recipe; raises ParameterError if there is none of this name."""
    schema = catalog.schema(name)
    needed = set(schema.get("required", ()))
    defaults = _defaults(name)
    return Recipe(
        name=name,
        about=str(schema.get("description", "")).strip(),
        inputs=[Input(each.name, each.required, each.help) for each in catalog.inputs(name)],
        parameters=[
            _parameter(each, spec, defaults.get(each, spec.get("default")), required=each in needed)
            for each, spec in schema["properties"].items()
        ],
    )


def _defaults(name: str) -> dict[str, Any]:
    """What is taken where nothing is said; the schema leaves out the defaults of lists."""
    try:
        return catalog.as_json(catalog.validate(name, {}))
    except ParameterError:
        return {}


def _parameter(name: str, spec: Mapping[str, Any], default: Any, *, required: bool) -> Parameter:
    kind = _kind(spec)
    return Parameter(
        name=name,
        kind=kind,
        help=str(spec.get("description", "")),
        default=default,
        required=required,
        choices=tuple(map(str, spec["enum"])) if kind == "choice" else (),
        low=spec.get("minimum"),
        high=spec.get("maximum"),
        above=spec.get("exclusiveMinimum"),
    )


def _kind(spec: Mapping[str, Any]) -> Kind:
    if "enum" in spec:
        return "choice"
    if spec.get("type") == "array" and spec.get("items", {}).get("type") == "string":
        return "list"
    return _SIMPLE.get(str(spec.get("type")), "json")
