"""A waiting job made easier to place: one change of those that `scheduler.explaining` tells of.

Only such as no match that is on its way could break, but for the number of GPUs, which a round
looks at again before it places a job.
"""

from datetime import datetime

from django.contrib.auth.models import User
from django.db import transaction

from buyers import secrets
from buyers.models import Job
from marketplace import telemetry
from marketplace.core.errors import Conflict, Invalid
from marketplace.core.hardware import REGIONS, Level, Tier, Trust
from marketplace.core.money import MAX_PRICE, format_amount
from marketplace.models import remark
from scheduler import explaining, jobs, metering
from scheduler.matching.explain import Term


@transaction.atomic
def accept(job: Job, *, term: str, to: str, gpu_class: str, by: User, now: datetime) -> Job:
    """Changes one term of a waiting job: `to` is micros for a limit (on `gpu_class`), a number of
    GPUs, or the name of a level, a region, a trust or a tier.

    Raises Conflict if it doesn't wait, Invalid for what would not make it easier to place,
    NotEnoughMoney if the wallet doesn't cover a start at the new limit.
    """
    job = metering.locked_job(job.pk)
    if job.state != "queued":
        raise Conflict(f"it no longer waits: it is {job.state}")
    said = _change(job, term, to, gpu_class)
    job.save(update_fields=["limits", "gpus_min", "gpus_max", "level", "regions", "trust", "tier"])
    remark(job, "change", now=now, reason=said, by=by.get_username())
    explaining.forget(job)
    transaction.on_commit(lambda: telemetry.job_changed(job.pk), robust=True)
    return job


def _change(job: Job, term: str, to: str, gpu_class: str) -> str:
    """Makes it on the row; says what was changed."""
    if term == Term.LIMIT:
        return _raise_limit(job, gpu_class, _number(to))
    if term == Term.GPUS:
        return _fewer(job, _number(to))
    if term == Term.LEVEL:
        _require(job.gpus_max > 1 and job.level == Level.NODE and to == "site", term)
        job.level = Level.SITE
        return "it accepts a gang over several nodes of one site"
    if term == Term.REGION:
        _require(to in REGIONS and bool(job.regions) and to not in job.regions, term)
        job.regions = [*job.regions, to]
        return f"it accepts region {to}"
    if term == Term.TRUST:
        worst = secrets.worst_site_now(job.org, job.secrets) if job.secrets else Trust.COMMUNITY
        trust = Trust.__members__.get(to.upper())
        _require(trust is not None and job.trust < trust <= worst, term)
        job.trust = Trust[to.upper()]
        return f"it accepts {to} sites"
    _require(term == Term.TIER and Tier.__members__.get(to.upper(), -1) > job.tier, term)
    job.tier = Tier[to.upper()]
    return f"it accepts {to} nodes"


def _raise_limit(job: Job, gpu_class: str, to: int) -> str:
    now = job.limits.get(gpu_class)
    _require(now is not None and now < to <= MAX_PRICE, Term.LIMIT)
    jobs.require_start(job, to)
    job.limits = {**job.limits, gpu_class: to}
    return (
        f"its limit on {gpu_class} is {format_amount(to)} a GPU-hour, it was {format_amount(now)}"
    )


def _fewer(job: Job, to: int) -> str:
    # A recipe's memory and batches go by the number of GPUs that it was ordered for.
    _require(job.recipe == "script" and 1 <= to < job.gpus_min, Term.GPUS)
    job.gpus_min = job.gpus_max = to
    return f"it does with {to} GPU{'' if to == 1 else 's'}"


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Invalid("this change is to a whole number", field="to")
    return int(text)


def _require(right: bool, term: str) -> None:
    if not right:
        raise Invalid(f"this change of its {term} would not make it easier to place", field="to")
