"""Jobs before they are placed: what a buyer asks for, checked against what there is, and kept.

Datasets have `buyers.datasets`, public bases `buyers.bases`. What happens to a job once it may
run is the engine's (`scheduler.jobs`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.conf import settings
from django.contrib.auth.models import User

from agent.recipes import catalog, formats
from agent.recipes.catalog import ParameterError
from agent.recipes.parameters import (
    Parameters,
    ScriptParameters,
)
from buyers import reads, references
from buyers.models import Artifact, Dataset, Folder, Job
from marketplace.core import estimates
from marketplace.core.errors import Conflict, Invalid
from marketplace.core.estimates import BaseShape
from marketplace.core.hardware import Level
from marketplace.core.ids import uuid7
from marketplace.core.money import accrued, format_amount
from marketplace.core.specs import JobRequest
from marketplace.models import Org
from suppliers.models import Node

# Files by which a project asks for packages of its own. Building those comes later; until then
# a job that would not find what it needs is told so before it has cost anything.
_REQUIREMENTS: Final = frozenset(
    "requirements.txt environment.yml environment.yaml Pipfile poetry.lock uv.lock Dockerfile "
    "Containerfile".split()
)
# Measured with SmolLM2's tokenizer on rows of code and English: 4.9 bytes of JSON a token, and
# 32 tokens that its chat template puts around each pair.
_BYTES_A_TOKEN: Final = 4.9
_CHAT_TOKENS: Final = 32


@dataclass(frozen=True)
class Plan:
    """A request with everything it names found, and everything it left open filled in."""

    recipe: str
    parameters: Mapping[str, Any]
    """As the recipe's catalogue validated them, defaults included."""
    base: Artifact | None
    dataset: Dataset | None
    script: Dataset | None
    mix: Dataset | None
    other: Artifact | None
    third: Artifact | None
    shape: BaseShape | None
    memory_bytes: int
    """Needed on each GPU."""
    disk_bytes: int
    bytes_in: int
    """To be fetched by a node that has none of it cached."""
    hours: float
    """The buyer's own guess; 0 where the recipe's arithmetic tells."""
    row_tokens: float | None
    """About how long a training row is."""
    total_steps: int
    """0 where only its author knows."""

    def seconds_on(self, gpu_class: str) -> float:
        """Estimated seconds of running on one GPU of this class, by its data sheet."""
        if self.hours:
            return self.hours * 3600
        tflops = estimates.class_tflops(gpu_class)
        return estimates.estimate(
            self.recipe, self.parameters, self.shape, tflops=tflops, row_tokens=self.row_tokens
        ).seconds


def plan(org: Org, request: JobRequest, *, now: datetime) -> Plan:
    """Checks a request without writing anything.

    Raises Invalid, naming the field: an unknown recipe or parameter, a base, dataset or script
    that the org has none of or that the recipe can't use, a deadline in the past, an environment
    that no node offers, a script without memory and hours.
    """
    if request.deadline is not None and request.deadline <= now:
        raise Invalid("the deadline has already passed; give a later one", field="deadline")
    _require_one_node(request)
    parameters = _parameters(request)
    base, dataset, script = _inputs(org, request)
    mix = reads.mix(org, request, parameters)
    _require_environment(request.environment)
    if isinstance(parameters, ScriptParameters):
        _check_script(request, parameters, script)
    else:
        _check_tuning(request, base)
        reads.require_rows(request, parameters, dataset, script)
    shape = _shape(base)
    plain = catalog.as_json(parameters)
    other, third = (reads.model(org, request, name) for name in ("other", "third"))
    return Plan(
        recipe=request.recipe,
        parameters=plain,
        base=base,
        dataset=dataset,
        script=script,
        mix=mix,
        other=other,
        third=third,
        shape=shape,
        memory_bytes=request.memory_bytes or _memory(request.recipe, plain, shape),
        disk_bytes=request.disk_bytes,
        bytes_in=_bytes(base, dataset, script, mix, other, third),
        hours=request.hours,
        row_tokens=_row_tokens(dataset),
        total_steps=catalog.total_steps(parameters),
    )


def _bytes(*folders: Folder | None) -> int:
    return sum(folder.bytes for folder in folders if folder is not None)


def create_job(
    org: Org,
    request: JobRequest,
    *,
    plan: Plan,
    limits: Mapping[str, int],
    order: str,
    by: User,
    now: datetime,
) -> Job:
    """A queued job. The engine places it.

    `limits` is GPU class → most micros per GPU-hour. Raises Invalid if there is no class to bid
    on or the budget pays for no checkpoint on the cheapest, Conflict if the org has too many.
    """
    if not limits:
        raise Invalid(
            "no GPU class that you accept is in the market; name others, or raise the budget",
            field="limits",
        )
    _require_a_save(request, min(limits.values()))
    _require_room(org)
    return Job.objects.create(
        id=uuid7(),
        org=org,
        name=request.name,
        created_by=by,
        created_at=now,
        order=order,
        limits=dict(limits),
        budget_micros=request.budget_micros,
        deadline_at=request.deadline,
        estimated_seconds=min(plan.seconds_on(name) for name in limits),
        queued_at=now,
        total_steps=plan.total_steps,
        state=Job.MACHINE.initial,
        state_since=now,
        **_what(request, plan),
        **_where(request, plan),
    )


def _require_room(org: Org) -> None:
    """Two at once may both be the last: a flood is kept out, and nobody waits for a lock."""
    most = settings.POLICY.live_jobs
    if Job.objects.of(org).live().count() >= most:
        raise Conflict(
            f"your organisation has {most} jobs waiting or running, which is the most; "
            "wait until one ends, or cancel one"
        )


def _what(request: JobRequest, plan: Plan) -> dict[str, Any]:
    """The columns that say what runs."""
    return {
        "recipe": plan.recipe,
        "parameters": dict(plan.parameters),
        "base": plan.base,
        "dataset": plan.dataset,
        "script": plan.script,
        "mix": plan.mix,
        "other": plan.other,
        "third": plan.third,
        "environment": request.environment,
        "seed": request.seed,
    }


def _where(request: JobRequest, plan: Plan) -> dict[str, Any]:
    """The columns that say on what it may run."""
    return {
        "gpus_min": request.gpus_min,
        "gpus_max": request.gpus_max,
        "memory_bytes": plan.memory_bytes,
        "disk_bytes": plan.disk_bytes,
        "level": request.level,
        "regions": list(request.regions),
        "trust": request.trust,
        "tier": request.tier,
        "kappa": request.kappa,
    }


def _require_one_node(request: JobRequest) -> None:
    """Gangs over several nodes, and gangs that grow and shrink, are not run by agents yet."""
    if request.level > Level.NODE and request.gpus_min > 1:
        raise Invalid(
            "jobs over several nodes can't be run yet; ask for GPUs in one node (level node)",
            field="level",
        )
    if request.gpus_max > request.gpus_min:
        raise Invalid(
            "jobs that grow and shrink can't be run yet; leave gpus_max out", field="gpus_max"
        )


def _parameters(request: JobRequest) -> Parameters:
    try:
        return catalog.validate(request.recipe, request.parameters)
    except ParameterError as error:
        field = error.field if error.field in ("", "recipe") else f"parameters.{error.field}"
        raise Invalid(str(error), field=field) from None


def _inputs(
    org: Org, request: JobRequest
) -> tuple[Artifact | None, Dataset | None, Dataset | None]:
    """What the request names, found; raises Invalid for what is missing or not read."""
    read = {entry.name: entry for entry in catalog.inputs(request.recipe)}
    named = {
        "base": request.base,
        "dataset": request.dataset,
        "script": request.script,
        "mix": request.mix,
        "other": request.other,
        "third": request.third,
    }
    for name, reference in named.items():
        if reference and name not in read:
            raise Invalid(f"the recipe {request.recipe} reads no {name}; leave it out", field=name)
        article = "an" if name[0] in "aeiou" else "a"
        if not reference and name in read and read[name].required:
            raise Invalid(
                f"the recipe {request.recipe} needs {article} {name}: {read[name].help}",
                field=name,
            )
    return (
        references.base(org, request.base) if request.base else None,
        references.dataset(org, request.dataset, field="dataset") if request.dataset else None,
        references.dataset(org, request.script, field="script") if request.script else None,
    )


def _require_environment(lock: str) -> None:
    """The only environments there are, so far, are those that nodes advertise."""
    if not lock:
        return
    offered = Node.objects.exclude(state="retired").exclude(environment="")
    locks = set(offered.values_list("environment", flat=True).distinct())
    if lock not in locks:
        shown = ", ".join(sorted(locks)[:5]) or "none yet"
        raise Invalid(
            f"no node offers the training environment {lock[:64]}; there are: {shown}. "
            "Leave it out to run in the node's own",
            field="environment",
        )


def _check_script(
    request: JobRequest, parameters: ScriptParameters, script: Dataset | None
) -> None:
    paths = {entry["path"] for entry in script.manifest} if script else set()
    if parameters.entry and parameters.entry not in paths:
        files = ", ".join(sorted(path for path in paths if path.endswith(".py"))[:5])
        raise Invalid(
            f"there is no {parameters.entry} in {script}; its Python files are: {files or 'none'}",
            field="parameters.entry",
        )
    if asked := sorted(_REQUIREMENTS & paths):
        raise Invalid(
            f"{script} asks for packages of its own ({asked[0]}), which can't be installed yet: "
            "jobs run in the node's advertised training environment. Remove the file if that is "
            "enough, and name the environment's lock if it must be an exact one",
            field="script",
        )
    if not request.memory_bytes:
        raise Invalid(
            "a script must say how much memory it needs on each GPU (memory_gib)",
            field="memory_gib",
        )
    if not request.hours:
        raise Invalid("a script must say how long it will about run (hours)", field="hours")


def _check_tuning(request: JobRequest, base: Artifact | None) -> None:
    if request.gpus_min > 1:
        raise Invalid(
            f"{request.recipe} runs on one GPU; ask for 1, or bring a script that uses more",
            field="gpus",
        )
    paths = {entry["path"] for entry in base.manifest} if base else set()
    weights = any(
        path.endswith(".safetensors") and not path.startswith("adapter") for path in paths
    )
    if "config.json" not in paths or not weights:
        raise Invalid(
            f"{base} is no whole model (config.json and *.safetensors): start from the base that "
            "it was made from",
            field="base",
        )
    if not (_shape(base) or (request.memory_bytes and request.hours)):
        raise Invalid(
            "the size of this base is not known; say how much memory it needs on each GPU "
            "(memory_gib) and how long it will about run (hours)",
            field="hours" if request.memory_bytes else "memory_gib",
        )


def _shape(base: Artifact | None) -> BaseShape | None:
    """A base's own shape, or that of what it was made from."""
    while base is not None:
        if base.shape:
            return BaseShape(**base.shape)
        base = base.job.base if base.job else None
    return None


def _memory(recipe: str, parameters: Mapping[str, Any], shape: BaseShape | None) -> int:
    return estimates.estimate(recipe, parameters, shape, tflops=1.0).memory_bytes


def _row_tokens(dataset: Dataset | None) -> float | None:
    """The mean length of a dataset's rows, guessed from their bytes."""
    if dataset is None or not dataset.rows:
        return None
    parts = (formats.TRAIN, formats.HELD_OUT)
    size: int = sum(
        entry["bytes"] for entry in dataset.manifest if formats.part_of(entry["path"]) in parts
    )
    return size / dataset.rows / _BYTES_A_TOKEN + _CHAT_TOKENS


def _require_a_save(request: JobRequest, price: int) -> None:
    """The cheapest thinkable checkpoint; the engine looks again, at the price that it pays."""
    least = accrued(price, request.gpus_min, 2 * settings.POLICY.save_default_s)
    if request.budget_micros < least:
        raise Invalid(
            f"a budget of {format_amount(request.budget_micros)} does not even pay for saving "
            f"one checkpoint: that takes {format_amount(least)} at your lowest limit",
            field="budget",
        )
