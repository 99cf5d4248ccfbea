"""How finished jobs ran beside what was foretold: the next quotes learn from it, all may see it.

A run's speed is the median of the tokens a second that its recipe reported, turned into a share of
what its devices' benchmark could do, so that it says something about other base models, too. What
it took beside that is its overhead, told as a factor of what was reckoned.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from statistics import median
from typing import Final

from buyers import sizes
from buyers.models import Job
from buyers.services import Plan
from marketplace.core import estimates, paces
from marketplace.core.paces import Accuracy, Foretold, Pace
from scheduler import timing
from scheduler.models import Assignment, FinishedRun, Lease

_REMEMBERED: Final = timedelta(days=180)
_PUBLISHED: Final = timedelta(days=90)
_ALIKE: Final = 3
"""Bases up to so many times smaller or larger tell something about this one."""
_MOST_RUNS: Final = 1000
_MOST_POINTS: Final = 2000
_LEAST_POINTS: Final = 3


def note(job: Job, lease: Lease, *, now: datetime) -> None:
    """Keeps how a job that has just succeeded ran. Call with the job locked, once."""
    shares = list(lease.assignments.select_related("node").order_by("rank"))
    tokens_per_s = _tokens_per_s(job, lease)
    share, overhead = _shown(job, lease, tokens_per_s)
    FinishedRun.objects.create(
        job=job,
        supplier_id=shares[0].supplier_id,
        recipe=job.recipe,
        gpu_class=lease.gpu_class,
        gpus=lease.gpus_count,
        base_parameters=_size(job),
        tokens_per_s=tokens_per_s,
        share=share,
        overhead=overhead,
        seconds=_seconds(job),
        charged_micros=job.spent_micros,
        quoted_s=job.quoted.get("seconds"),
        quoted_low_s=job.quoted.get("seconds_low"),
        quoted_high_s=job.quoted.get("seconds_high"),
        quoted_micros=job.quoted.get("micros"),
        at=now,
    )


def expected(plan: Plan, *, now: datetime) -> Mapping[str, Pace]:
    """GPU class → the pace to expect of this plan there; classes without a run are left out."""
    if plan.shape is None:
        return {}
    size = plan.shape.parameters
    runs = (
        FinishedRun.objects.filter(
            recipe=plan.recipe,
            share__isnull=False,
            base_parameters__range=(size // _ALIKE, size * _ALIKE),
            at__gte=now - _REMEMBERED,
        )
        .order_by("-at")
        .values_list("gpu_class", "supplier", "share", "overhead")[:_MOST_RUNS]
    )
    shares: dict[str, dict[object, list[float]]] = {}
    overheads: dict[str, dict[object, list[float]]] = {}
    for gpu_class, supplier, share, overhead in runs:
        for seen, value in ((shares, share), (overheads, overhead)):
            if value is not None:
                seen.setdefault(gpu_class, {}).setdefault(supplier, []).append(value)
    return {
        name: paces.believed(estimates.usual_share(name), by_supplier, overheads.get(name, {}))
        for name, by_supplier in shares.items()
    }


def accuracy(*, now: datetime) -> Accuracy | None:
    """How well the quotes of the last three months foretold; None if none was taken to its end."""
    runs = (
        FinishedRun.objects.filter(
            quoted_s__gt=0, quoted_micros__gt=0, at__gte=now - _PUBLISHED
        )
        .order_by("-at")
        .values_list(
            "quoted_s", "quoted_low_s", "quoted_high_s", "seconds", "quoted_micros",
            "charged_micros",
        )[:_MOST_RUNS]
    )  # fmt: skip
    return paces.accuracy(
        [
            Foretold(quoted, low, high, ran, quoted_micros, charged)
            for quoted, low, high, ran, quoted_micros, charged in runs
            if quoted and low is not None and high is not None and quoted_micros
        ]
    )


def _tokens_per_s(job: Job, lease: Lease) -> float | None:
    points = job.metrics.filter(epoch=lease.epoch, values__has_key="tokens_per_s")
    values = points.order_by("-step").values_list("values", flat=True)[:_MOST_POINTS]
    speeds = [value["tokens_per_s"] for value in values if value["tokens_per_s"] > 0]
    return median(speeds) if len(speeds) >= _LEAST_POINTS else None


def _shown(job: Job, lease: Lease, tokens_per_s: float | None) -> tuple[float | None, float | None]:
    """Its share and its overhead, None where nothing can be told: of a script, of recipes made of
    others, of gangs, whose ranks wait for each other; of the overhead of several attempts."""
    shape = sizes.shape_of(job.base)
    if lease.gpus_count > 1 or not estimates.is_one_training(job.recipe, job.parameters):
        return None, None
    nodes = [str(share.node_id) for share in lease.assignments.all()]
    speeds = timing.measured_tflops(nodes)
    slowest = min((speeds.get(node, 0.0) for node in nodes), default=0.0)
    if tokens_per_s is None or shape is None or not slowest:
        return None, None
    row_tokens = sizes.row_tokens(job.dataset)
    flops = estimates.flops_per_token(job.recipe, job.parameters, shape, row_tokens=row_tokens)
    share = tokens_per_s * flops / (slowest * 1e12)
    if job.leases.count() > 1:
        return share, None
    overhead = estimates.overhead_shown(
        job.recipe, job.parameters, shape, seconds=_seconds(job), tflops=slowest, share=share,
        row_tokens=row_tokens, teacher=sizes.shape_of(job.other),
    )  # fmt: skip
    return share, overhead


def _seconds(job: Job) -> float:
    """Billed running time over all attempts; a gang's ranks run at once."""
    first_ranks = Assignment.objects.filter(lease__job=job, rank=0)
    return float(sum(share.paid_s for share in first_ranks))


def _size(job: Job) -> int:
    shape = sizes.shape_of(job.base)
    return shape.parameters if shape else 0
