"""How long a job takes, from the recipe's arithmetic and what machines were measured at."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from django.db import connection
from django.db.models import Max, Min

from buyers import sizes
from buyers.models import Job
from buyers.services import Plan
from marketplace.core import estimates
from marketplace.core.estimates import CPU_TFLOPS, Course, Estimate, unseen
from marketplace.core.paces import Pace
from scheduler.matching.arrays import Floats, Ints
from scheduler.models import Lease
from suppliers.models import Node

# A buyer's own guess at a script's hours is taken as it is, with this much either way.
_GUESS_LOW: Final = 0.8
_GUESS_HIGH: Final = 1.25
_UNMEASURED_TFLOPS: Final = 0.05
# A sandbox, and unpacking and compiling an environment: measured on 2 cores with 13 packages of
# 12 MB (13 s, most of it bytecode).
_START_S: Final = 2.0
_BUILD_S: Final = 10.0
_BUILD_BYTES_S: Final = 10e6
# Before a run has made so many steps in so much time, its pace says little.
_LEAST_STEPS: Final = 3
_LEAST_S: Final = 5.0


def measured_tflops(nodes: Sequence[str]) -> dict[str, float]:
    """Node id → TFLOP/s of its last passed benchmark, for one of its devices. One query."""
    with connection.cursor() as cursor:
        cursor.execute(_MEASURED, [list(nodes)])
        return dict(cursor.fetchall())


_MEASURED: Final = """
    SELECT DISTINCT ON (node_id) node_id::text, tflops FROM suppliers_benchmark
    WHERE passed AND node_id = ANY(%s::uuid[]) ORDER BY node_id, asked_at DESC
"""


def start_seconds(plan: Plan, node: Node) -> float:
    """About how long a node that has nothing cached takes to fetch what a job reads, and to build
    its environment or lay out its image."""
    fetching = plan.bytes_in * 8 / (max(node.bandwidth_mbps, 0.1) * 1e6)
    building = _BUILD_S + plan.brought.bytes / _BUILD_BYTES_S if plan.brought else 0.0
    return _START_S + fetching + building


def estimated(
    plan: Plan,
    *,
    tflops: float | None,
    gpus: int,
    efficiency: float = 1.0,
    pace: Pace | None = None,
) -> Estimate:
    """The job's time on `gpus` devices of `tflops` each.

    `efficiency` is the share of their time that is left beside their waiting for each other;
    `pace` what jobs of the kind have shown on such devices, if any have.
    """
    speed = float(speeds(plan, np.array(tflops or 0.0), np.array(gpus), np.array(efficiency)))
    return course(plan, pace or unseen(slow=speed < CPU_TFLOPS)).at(speed)


def speeds(plan: Plan, tflops: Floats, gpus: Ints, efficiency: Floats) -> Floats:
    """Of each gang the speed that its `course` is divided by: its TFLOP/s, where 0 is unmeasured; of a
    job whose buyer says how long it takes, what is left of one."""
    if plan.hours:
        return efficiency
    return np.where(tflops > 0, tflops, _UNMEASURED_TFLOPS) * gpus * efficiency


def course(plan: Plan, pace: Pace) -> Course:
    """How long the job takes at any speed, at this pace."""
    if plan.hours:
        seconds = plan.hours * 3600
        return Course(0.0, 0.0, 0.0, seconds * _GUESS_LOW, seconds, seconds * _GUESS_HIGH)
    return estimates.course(
        plan.recipe, plan.parameters, plan.shape, row_tokens=plan.row_tokens, pace=pace,
        teacher=sizes.shape_of(plan.other),
    )  # fmt: skip


def left(job: Job, lease: Lease) -> float | None:
    """Seconds until a running job's last step, at the pace of this attempt; None while unknown."""
    seen = job.metrics.filter(epoch=lease.epoch, values__has_key="loss").aggregate(
        first=Min("step"), last=Max("step"), since=Min("at"), until=Max("at")
    )
    if seen["last"] is None or not job.total_steps:
        return None
    steps = seen["last"] - seen["first"]
    seconds = (seen["until"] - seen["since"]).total_seconds()
    missing = job.total_steps - seen["last"]
    if steps < _LEAST_STEPS or seconds < _LEAST_S or missing <= 0:
        return None
    return float(missing * seconds / steps)
