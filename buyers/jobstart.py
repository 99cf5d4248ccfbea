"""What a new job's form opens with: as it was left, or as the job that made a model was."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from agent.recipes import catalog
from buyers import recipes
from buyers.models import Artifact
from marketplace.models import Org

_KEPT: Final = (
    "name", "base", "dataset", "script", "mix", "other", "third", "budget", "limit", "gpus", "memory_gib", "hours",
    "disk_gib", "trust",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """A recipe, and values for the fields of both forms."""

    recipe: str
    about: str
    fields: Mapping[str, Any]
    parameters: Mapping[str, Any]


def of(org: Org, asked: Mapping[str, Any]) -> Start:
    """From an address or a form: `recipe`, the form's fields by their names, parameters as `p-…`.

    A `base` that a job of the org's made brings the recipe, parameters and dataset of that job,
    where the address says nothing else.
    """
    fields = {name: asked[name] for name in _KEPT if asked.get(name)}
    parameters = {
        name.removeprefix("p-"): value for name, value in asked.items() if name.startswith("p-")
    }
    named = str(asked.get("recipe", ""))
    recipe = named if named in catalog.names() else ""
    before = None if recipe else _made(org, str(fields.get("base", "")))
    if before is not None and before.job is not None:
        recipe = before.job.recipe
        parameters = {**before.job.parameters, **parameters}
        fields = {"dataset": str(before.job.dataset_id or ""), "name": before.name, **fields}
    recipe = recipe if recipe in catalog.names() else recipes.first()
    return Start(recipe, recipes.recipe(recipe).about, fields, parameters)


def _made(org: Org, base: str) -> Artifact | None:
    try:
        pk = UUID(base)
    except ValueError:
        return None
    return Artifact.objects.of(org).filter(pk=pk).select_related("job").first()
