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

from agent.recipes import catalog
from agent.recipes.catalog import ParameterError
from agent.recipes.parameters import FineTuning, Parameters, ScriptParameters, why_not_on
from buyers import fits, images, packages, reads, references, secrets, sizes
from buyers.models import Artifact, Dataset, Folder, Job
from buyers.own_models import ContainerImage, PackageLock
from marketplace.core import checkpoints, estimates
from marketplace.core.errors import Conflict, Invalid
from marketplace.core.hardware import Level
from marketplace.core.ids import uuid7
from marketplace.core.money import accrued, format_amount
from marketplace.core.shapes import BaseShape
from marketplace.core.specs import JobRequest
from marketplace.models import Org
from suppliers.models import Node

_MOST_GANG: Final = 128
"""A gang's network holds twice as many ranks."""


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
    brought: PackageLock | ContainerImage | None
    """What it runs in; None: the node's own environment."""
    secrets_trust: int
    """The worst site that may see the secrets it asks for."""
    shape: BaseShape | None
    memory_bytes: int
    """Needed on each GPU."""
    memory_cpu_bytes: int
    """Needed on a processor instead."""
    disk_bytes: int
    bytes_in: int
    """To be fetched by a node that has none of it cached."""
    hours: float
    """The buyer's own guess; 0 where the recipe's arithmetic tells."""
    row_tokens: float | None
    """About how long a training row is."""
    total_steps: int
    """0 where only its author knows."""
    gpus: int

    @property
    def packages(self) -> PackageLock | None:
        """Its own packages, if it brings some."""
        return self.brought if isinstance(self.brought, PackageLock) else None

    @property
    def image(self) -> ContainerImage | None:
        """Its image, if it brings one."""
        return self.brought if isinstance(self.brought, ContainerImage) else None

    def seconds_on(self, gpu_class: str) -> float:
        """Estimated seconds of running on a gang of this class, by its data sheet, as if its GPUs
        never waited for each other: what waiting costs is taken off a bid's value."""
        if self.hours:
            return self.hours * 3600
        tflops = estimates.class_tflops(gpu_class) * self.gpus
        return estimates.estimate(
            self.recipe, self.parameters, self.shape, tflops=tflops, row_tokens=self.row_tokens,
            teacher=sizes.shape_of(self.other),
        ).seconds  # fmt: skip


def plan(org: Org, request: JobRequest, *, now: datetime) -> Plan:
    """Checks a request without writing anything; raises Invalid, naming the field: what is unknown,
    what the org has none of or the recipe can't use, a deadline in the past, an environment that no
    node offers, a size that nobody knows."""
    _require_place(request, now)
    parameters = _parameters(request)
    base, dataset, script = _inputs(org, request)
    mix = reads.mix(org, request, parameters)
    other, third = (reads.model(org, request, name) for name in ("other", "third"))
    _check(request, parameters, base, dataset, script)
    fits.require_kinds(parameters, dataset, mix)
    brought = images.of_request(request) or packages.of_request(org, request, script)
    shape, plain = sizes.shape_of(base), catalog.as_json(parameters)
    start = reads.base(base, request.recipe)
    folders = _named(**start, dataset=dataset, script=script, mix=mix, other=other, third=third)
    fits.require(org, request, folders)
    on_gpu, on_cpu = sizes.memory_of(request, plain, base, other)
    return Plan(
        recipe=request.recipe,
        parameters=plain,
        base=base,
        dataset=dataset,
        script=script,
        mix=mix,
        other=other,
        third=third,
        brought=brought,
        secrets_trust=secrets.worst_site(org, request.secrets),
        shape=shape,
        memory_bytes=on_gpu,
        memory_cpu_bytes=on_cpu,
        disk_bytes=request.disk_bytes,
        bytes_in=sum(folder.bytes for folder in folders.values())
        + (brought.bytes if brought else 0),
        hours=request.hours,
        row_tokens=sizes.row_tokens(dataset),
        total_steps=catalog.total_steps(parameters),
        gpus=request.gpus_min,
    )


def _check(
    request: JobRequest,
    parameters: Parameters,
    base: Artifact | None,
    dataset: Dataset | None,
    script: Dataset | None,
) -> None:
    """What the recipe itself needs."""
    if isinstance(parameters, ScriptParameters):
        if request.gpus_max > request.gpus_min:
            raise Invalid(
                "a script has one number of GPUs; leave gpus_max out (recipes can do with fewer)",
                field="gpus_max",
            )
        _check_script(request, parameters, script)
    else:
        _check_tuning(request, parameters, base)
        reads.require_rows(request, parameters, dataset, script)
        reads.require_weights(request, parameters)


def _named(**found: Folder | None) -> dict[str, Folder]:
    """All that was named, by its field."""
    return {name: each for name, each in found.items() if each is not None}


def create_job(
    org: Org,
    request: JobRequest,
    *,
    plan: Plan,
    limits: Mapping[str, int],
    order: str,
    by: User,
    now: datetime,
    quoted: Mapping[str, float] | None = None,
) -> Job:
    """A queued job, which the engine places; `quoted` is as in `Job.quoted`.

    `limits` is GPU class → most micros per GPU-hour. Raises Invalid if there is no class to bid
    on or the budget pays for no checkpoint on the cheapest, Conflict if the org has too many.
    """
    _require_a_class(limits)
    _require_a_save(request, min(limits.values()))
    require_room(org)
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
        quoted=dict(quoted or {}),
        estimated_seconds=min(plan.seconds_on(name) for name in limits),
        queued_at=now,
        total_steps=plan.total_steps,
        state=Job.MACHINE.initial,
        state_since=now,
        **_what(request, plan),
        **_where(request, plan),
    )


def _require_a_class(limits: Mapping[str, int]) -> None:
    if not limits:
        raise Invalid(
            "no GPU class that you accept is in the market; name others, or raise the budget",
            field="limits",
        )


def require_room(org: Org) -> None:
    """Raises Conflict if the org has as many jobs waiting or running as it may.

    Two at once may both be the last: a flood is kept out, and nobody waits for a lock.
    """
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
        "packages": plan.packages,
        "image": plan.image,
        "mix": plan.mix,
        "other": plan.other,
        "third": plan.third,
        "environment": request.environment,
        "seed": request.seed,
        "egress": list(request.egress),
        "secrets": list(request.secrets),
    }


def _where(request: JobRequest, plan: Plan) -> dict[str, Any]:
    """The columns that say on what it may run."""
    return {
        "gpus_min": request.gpus_min,
        "gpus_max": request.gpus_max,
        "memory_bytes": plan.memory_bytes,
        "memory_cpu_bytes": plan.memory_cpu_bytes,
        "disk_bytes": plan.disk_bytes,
        "level": request.level,
        "regions": list(request.regions),
        "trust": request.trust,
        "tier": request.tier,
        "kappa": request.kappa,
        "service": request.service,
        "premium_bps": settings.POLICY.premium_of(request.service),
    }


def _require_place(request: JobRequest, now: datetime) -> None:
    """Whether there is a time and a place for it at all."""
    if request.deadline is not None and request.deadline <= now:
        raise Invalid("the deadline has already passed; give a later one", field="deadline")
    _require_one_site(request)
    _require_environment(request.environment)


def _require_one_site(request: JobRequest) -> None:
    """Gangs over several sites are not run by agents yet."""
    if request.level > Level.SITE and request.gpus_max > 1:
        raise Invalid(
            "jobs over several sites can't be run yet; ask for GPUs in one site (level site)",
            field="level",
        )
    if request.gpus_max > _MOST_GANG:
        field = "gpus" if request.gpus_min > _MOST_GANG else "gpus_max"
        raise Invalid(f"a job has at most {_MOST_GANG} GPUs", field=field)


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
    if not request.memory_bytes:
        raise Invalid(
            "a script must say how much memory it needs on each GPU (memory_gib)",
            field="memory_gib",
        )
    if not request.hours:
        raise Invalid("a script must say how long it will about run (hours)", field="hours")


def _check_tuning(request: JobRequest, parameters: Parameters, base: Artifact | None) -> None:
    alone = not isinstance(parameters, FineTuning) or parameters.method == "distill"
    if request.gpus_max > 1 and alone:
        raise Invalid(
            f"{request.recipe} runs on one GPU; ask for 1, or bring a script that uses more",
            field="gpus",
        )
    if isinstance(parameters, FineTuning):
        # An elastic gang may be left with any number in between.
        for gpus in range(request.gpus_min, request.gpus_max + 1):
            if why := why_not_on(parameters, gpus):
                raise Invalid(why, field="gpus" if gpus == request.gpus_min else "gpus_max")
    reads.require_start(base, parameters)


def _require_a_save(request: JobRequest, price: int) -> None:
    """The cheapest thinkable checkpoint; the engine looks again, at the price that it pays."""
    reserve = checkpoints.reserve_seconds(settings.POLICY.save_default_s)
    least = accrued(price, request.gpus_min, reserve)
    if request.budget_micros < least:
        raise Invalid(
            f"a budget of {format_amount(request.budget_micros)} does not even pay for saving "
            f"one checkpoint: that takes {format_amount(least)} at your lowest limit",
            field="budget",
        )
