"""What a job may pay on each GPU class: the buyer's words, made into a bid."""

from datetime import datetime, timedelta
from typing import Final, Protocol

from django.conf import settings

from marketplace.core import checkpoints
from marketplace.core.hardware import is_cpu
from marketplace.core.money import MAX_PRICE
from marketplace.core.specs import JobRequest
from suppliers.models import Gpu

_SLACK: Final = 1.25
"""The estimate may be short by this much before the budget stops the job."""


class Timed(Protocol):
    """What is known of how long a job takes."""

    def seconds_on(self, gpu_class: str) -> float:
        """Estimated seconds on one gang of this class."""


def of(request: JobRequest, plan: Timed, *, now: datetime) -> dict[str, int]:
    """GPU class → most micros per GPU-hour, for all classes that are in the market.

    A class that the buyer names has the limit they gave; else the one limit for all; else what
    the budget allows if the job is to finish within it. A machine without a GPU is never chosen
    for a buyer who named classes and not that one, and a class that would not be done by the
    deadline for none.
    """
    classes = set(Gpu.objects.filter(present=True).values_list("gpu_class", flat=True).distinct())
    found = {}
    for name in sorted(classes | set(request.limits)):
        if request.limits and not request.limit_micros and name not in request.limits:
            continue
        if request.limits and is_cpu(name) and name not in request.limits:
            continue
        if request.deadline and now + timedelta(seconds=plan.seconds_on(name)) > request.deadline:
            continue
        limit = request.limits.get(name) or request.limit_micros or _affordable(request, plan, name)
        if limit > 0:
            found[name] = min(limit, MAX_PRICE)
    return found


def _affordable(request: JobRequest, plan: Timed, gpu_class: str) -> int:
    policy = settings.POLICY
    # A start must cover the last save and one settlement, however short the run is.
    least = checkpoints.reserve_seconds(policy.save_default_s) + policy.settle_s + 1
    hours = max(plan.seconds_on(gpu_class) * _SLACK, least) / 3600
    return int(request.budget_micros / (request.gpus_min * hours))
