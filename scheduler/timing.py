"""How long a job takes, from the recipe's arithmetic and what machines were measured at."""

from typing import Final

from buyers.services import Plan
from marketplace.core.estimates import Estimate, estimate
from suppliers.models import Benchmark, Node

# A buyer's own guess at a script's hours is taken as it is, with this much either way.
_GUESS_LOW: Final = 0.8
_GUESS_HIGH: Final = 1.25
_UNMEASURED_TFLOPS: Final = 0.05
# A sandbox, and unpacking and compiling an environment: measured on 2 cores with 13 packages of
# 12 MB (13 s, most of it bytecode).
_START_S: Final = 2.0
_BUILD_S: Final = 10.0
_BUILD_BYTES_S: Final = 10e6


def measured_tflops(nodes: list[Node]) -> dict[object, float]:
    """Node id → TFLOP/s of its last passed benchmark, for one of its devices."""
    passed = (
        Benchmark.objects.filter(node__in=nodes, passed=True)
        .order_by("node", "-asked_at")
        .distinct("node")
    )
    return {row.node_id: row.tflops for row in passed}


def start_seconds(plan: Plan, node: Node) -> float:
    """About how long a node that has nothing cached takes to fetch what a job reads, and to build
    its environment."""
    fetching = plan.bytes_in * 8 / (max(node.bandwidth_mbps, 0.1) * 1e6)
    building = _BUILD_S + plan.packages.bytes / _BUILD_BYTES_S if plan.packages else 0.0
    return _START_S + fetching + building


def estimated(plan: Plan, *, tflops: float | None, gpus: int) -> Estimate:
    """The job's memory and time on `gpus` devices of `tflops` each."""
    if plan.hours:
        seconds = plan.hours * 3600
        return Estimate(
            memory_bytes=plan.memory_bytes,
            seconds_low=seconds * _GUESS_LOW,
            seconds=seconds,
            seconds_high=seconds * _GUESS_HIGH,
            flops=0.0,
        )
    speed = (tflops or _UNMEASURED_TFLOPS) * gpus
    return estimate(
        plan.recipe, plan.parameters, plan.shape, tflops=speed, row_tokens=plan.row_tokens
    )
