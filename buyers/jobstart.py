"""What a new job's form opens with: as it was left, or as the job that made a model was."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.http import QueryDict

from agent.recipes import catalog
from buyers import recipes
from buyers.models import Artifact, Job
from marketplace.core.hardware import Level, Trust
from marketplace.models import Org

_KEPT: Final = (
    "name", "base", "dataset", "script", "mix", "other", "third", "budget", "limit", "gpus",
    "gpus_max",    "level", "memory_gib", "hours", "disk_gib", "egress", "trust",
    "service",
)  # fmt: skip
_SEVERAL: Final = ("secrets", "regions")
"""Fields of which several values may be given."""


@dataclass(frozen=True)
class Start:
    """A recipe, and values for the fields of both forms."""

    recipe: str
    about: str
    fields: Mapping[str, Any]
    parameters: Mapping[str, Any]


def of(org: Org, asked: QueryDict) -> Start:
    """From an address or a form: `recipe`, the form's fields by their names, parameters as `p-…`.

    A `base` that a job of the org's made brings the recipe, parameters, inputs and place of that
    job, where the address says nothing else.
    """
    fields: dict[str, Any] = {name: asked[name] for name in _KEPT if asked.get(name)}
    fields |= {name: asked.getlist(name) for name in _SEVERAL if asked.get(name)}
    parameters = {
        name.removeprefix("p-"): value for name, value in asked.items() if name.startswith("p-")
    }
    named = str(asked.get("recipe", ""))
    recipe = named if named in catalog.names() else ""
    before = None if recipe else _made(org, str(fields.get("base", "")))
    if before is not None and before.job is not None:
        recipe = before.job.recipe
        parameters = {**before.job.parameters, **parameters}
        fields = {**_as_before(before.job), "name": before.name, **fields}
    recipe = recipe if recipe in catalog.names() else recipes.first()
    return Start(recipe, recipes.recipe(recipe).about, fields, parameters)


def _as_before(job: Job) -> dict[str, Any]:
    """What the job read besides its base, where it ran and what it was given."""
    return {
        "dataset": str(job.dataset_id or ""),
        "script": str(job.script_id or ""),
        "mix": str(job.mix_id or ""),
        "other": str(job.other_id or ""),
        "third": str(job.third_id or ""),
        "gpus": job.gpus_min,
        "gpus_max": job.gpus_max if job.gpus_max > job.gpus_min else "",
        "level": Level(job.level).name.lower(),
        "trust": Trust(job.trust).name.lower(),
        "service": job.service,
        "egress": " ".join(job.egress),
        "secrets": job.secrets,
        "regions": job.regions,
    }


def _made(org: Org, base: str) -> Artifact | None:
    try:
        pk = UUID(base)
    except ValueError:
        return None
    return Artifact.objects.of(org).filter(pk=pk).select_related("job").first()
