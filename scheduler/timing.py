"""How long a job takes, from the recipe's arithmetic and what machines were measured at."""

from typing import Final

from buyers.services import Plan
from marketplace.core.estimates import Estimate, estimate
from suppliers.models import Benchmark, Node

# A buyer's own guess at a script's hours is taken as it is, with this much either way.
_GUESS_LOW: Final = 0.8
_GUESS_HIGH: Final = 1.25
_UNMEASURED_TFLOPS: Final = 0.05


def measured_tflops(nodes: list[Node]) -> dict[object, float]:
    """Node id → TFLOP/s of its last passed benchmark, for one of its devices."""
    passed = (
        Benchmark.objects.filter(node__in=nodes, passed=True)
        .order_by("node", "-asked_at")
        .distinct("node")
    )
    return {row.node_id: row.tflops for row in passed}


def estimated(plan: Plan, *, tflops: float | None, gpus: int, efficiency: float = 1.0) -> Estimate:
    """The job's memory and time on `gpus` devices of `tflops` each, of which the share
    `efficiency` is left beside their waiting for each other."""
    if plan.hours:
        seconds = plan.hours * 3600 / efficiency
        return Estimate(
            memory_bytes=plan.memory_bytes,
            seconds_low=seconds * _GUESS_LOW,
            seconds=seconds,
            seconds_high=seconds * _GUESS_HIGH,
            flops=0.0,
        )
    speed = (tflops or _UNMEASURED_TFLOPS) * gpus * efficiency
    return estimate(
        plan.recipe, plan.parameters, plan.shape, tflops=speed, row_tokens=plan.row_tokens
    )
