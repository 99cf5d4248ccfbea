"""How long a job will take, from its recipe and its base; how much memory, says `core.memory`.

Time is floating-point operations over measured speed, plus what is not arithmetic. Operations a
token: 2 a weight forward, 2 for the gradient of what flows through, 2 for that of the weights
themselves, which LoRA's frozen ones spare (Kaplan et al., arXiv 2001.08361, section 2.1; Hu et
al., arXiv 2106.09685).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from marketplace.core.hardware import is_cpu
from marketplace.core.paces import Pace, believed
from marketplace.core.shapes import BaseShape, Sizes, trainings

# Below this speed a device is a CPU.
CPU_TFLOPS: Final = 2.0

_ADAM_BYTES: Final = 8

# Passes forward that no gradient follows.
_MORE_PASSES: Final = {"dpo": 1, "distill": 1, "grpo": 1}

# Models that arithmetic reads: the base and two others.
_MERGED: Final = 3

_START_S: Final = 9.0
_READ_BYTES_S: Final = 500e6
_WRITE_BYTES_S: Final = 200e6
_LAYER_S: Final = 0.001
"""Of one layer for one token of an answer: the cost of starting its operations."""
_ANSWER_BYTES_S: Final = 10e9
"""Answers read every weight for each token; a GPU's memory is faster, its start-up isn't."""
_CHECKPOINT_SHARE: Final = 1.02

# Training's speed over the benchmark's: a CPU's benchmark is in float32, which its bfloat16
# products beat (105 GFLOP/s trained, 60 to 85 measured, on a Zen 4 core); a GPU's memory holds
# short batches back.
_CPU_EFFICIENCY: Final = 1.0
_GPU_EFFICIENCY: Final = 0.35
# What is left open, as a factor either way, by rows whose length nobody said.
_LENGTH_SPREAD: Final = 2.5
_TYPICAL_FILL: Final = 0.4
_LEARNT_SHARE: Final = 0.25

# Data sheets, dense bfloat16 (float16 where there is no other), by the beginning of the class.
_SHEET: Final = (
    ("gb200", 2500.0), ("b200", 2250.0), ("h200-nvl", 835.0), ("h200", 989.0),
    ("h100-pcie", 756.0), ("h100", 989.0), ("a100", 312.0), ("l40s", 362.0), ("l40", 181.0),
    ("l4", 121.0), ("a40", 150.0), ("a10g", 70.0), ("a10", 125.0), ("a6000", 155.0),
    ("rtx-a6000", 155.0), ("rtx-6000-ada", 364.0), ("rtx-5090", 209.0), ("rtx-4090", 165.0),
    ("rtx-4080", 97.0), ("rtx-3090", 71.0), ("rtx-3080", 59.0), ("v100", 125.0), ("t4", 65.0),
)  # fmt: skip
_UNKNOWN_GPU_TFLOPS: Final = 50.0
_UNKNOWN_CPU_TFLOPS: Final = 0.1


@dataclass(frozen=True)
class Estimate:
    """A likely figure and its range."""

    seconds_low: float
    seconds: float
    seconds_high: float
    flops: float


@dataclass(frozen=True)
class Course:
    """How long something takes at any speed: what no faster device would save, and what is to be
    divided by TFLOP/s; of each the likely figure and its range, in seconds."""

    fixed_low: float
    fixed: float
    fixed_high: float
    divided_low: float
    divided: float
    divided_high: float
    flops: float = 0.0

    def at(self, tflops: float) -> Estimate:
        """How long at this speed."""
        return Estimate(
            seconds_low=self.fixed_low + self.divided_low / tflops,
            seconds=self.fixed + self.divided / tflops,
            seconds_high=self.fixed_high + self.divided_high / tflops,
            flops=self.flops,
        )


def estimate(
    recipe: str,
    parameters: Mapping[str, object],
    base: BaseShape | None,
    *,
    tflops: float,
    row_tokens: float | None = None,
    pace: Pace | None = None,
    teacher: BaseShape | None = None,
) -> Estimate:
    """A recipe's time on a device of `tflops` TFLOP/s.

    `parameters` as the catalogue validated them; `row_tokens` is the mean length of a row, if it
    is known; `teacher` is distill's second model; `pace` what jobs of its kind have shown on such devices. Raises ValueError for a
    recipe whose needs only its author knows (`script`).
    """
    if not (tflops > 0 and math.isfinite(tflops)):
        raise ValueError(f"a speed must be above 0 TFLOP/s, not {tflops}")
    pace = pace or unseen(slow=tflops < CPU_TFLOPS)
    found = course(recipe, parameters, base, row_tokens=row_tokens, pace=pace, teacher=teacher)
    return found.at(tflops)


def unseen(*, slow: bool) -> Pace:
    """The pace to expect where no job has shown any."""
    return believed(_CPU_EFFICIENCY if slow else _GPU_EFFICIENCY, {}, {})


def course(
    recipe: str,
    parameters: Mapping[str, object],
    base: BaseShape | None,
    *,
    pace: Pace,
    row_tokens: float | None = None,
    teacher: BaseShape | None = None,
) -> Course:
    """`estimate` for devices of any speed."""
    if recipe == "script" or base is None:
        raise ValueError(f"how long a {recipe} job takes is for its buyer to say, in hours")
    parts = [
        (one.share, _part(one, row_tokens=row_tokens, pace=pace))
        for one in trainings(recipe, parameters, base, teacher)
    ]
    return Course(
        fixed_low=sum(share * part.fixed_low for share, part in parts),
        fixed=sum(share * part.fixed for share, part in parts),
        fixed_high=sum(share * part.fixed_high for share, part in parts),
        divided_low=sum(share * part.divided_low for share, part in parts),
        divided=sum(share * part.divided for share, part in parts),
        divided_high=sum(share * part.divided_high for share, part in parts),
        flops=sum(share * part.flops for share, part in parts),
    )


def _part(job: Sizes, *, row_tokens: float | None, pace: Pace) -> Course:
    """One training's."""
    flops, fixed = _flops(job, _length(job, row_tokens)), _overheads(job)
    arithmetic = _arithmetic(flops, 1.0, pace.share)
    unsure = math.log(pace.spread), 0.0 if row_tokens else math.log(_LENGTH_SPREAD)
    spread = math.exp(math.hypot(*unsure))
    beside = fixed * pace.overhead
    return Course(
        fixed_low=beside / pace.overhead_spread,
        fixed=beside,
        fixed_high=beside * pace.overhead_spread,
        divided_low=arithmetic / spread,
        divided=arithmetic,
        divided_high=arithmetic * spread,
        flops=flops,
    )


def overhead_shown(
    recipe: str,
    parameters: Mapping[str, object],
    base: BaseShape,
    *,
    seconds: float,
    tflops: float,
    share: float,
    row_tokens: float | None = None,
    teacher: BaseShape | None = None,
) -> float:
    """What a finished job took beside its arithmetic, as a factor of what is reckoned for that.

    It ran for `seconds` on a device of `tflops`, of which it reached `share`. At or below 0 where
    its arithmetic alone would have taken longer: its speed is not what was told.
    """
    parts = trainings(recipe, parameters, base, teacher)
    flops = sum(one.share * _flops(one, _length(one, row_tokens)) for one in parts)
    reckoned = sum(one.share * _overheads(one) for one in parts)
    return (seconds - _arithmetic(flops, tflops, share)) / reckoned


def is_one_training(recipe: str, parameters: Mapping[str, object]) -> bool:
    """Whether its speed is that of one training: not a script's, a chain's, a baseline's."""
    return "steps" in parameters and "max_length" in parameters and recipe != "script"


def flops_per_token(
    recipe: str,
    parameters: Mapping[str, object],
    base: BaseShape,
    *,
    row_tokens: float | None = None,
) -> float:
    """Operations that training spends on one token of a row, both ways."""
    job = Sizes.of(recipe, parameters, base)
    length = _length(job, row_tokens)
    return _both_ways(job) * _forward(base, length) / length


def usual_share(gpu_class: str) -> float:
    """Share of its benchmark that training reaches on a class of which nothing is known."""
    return _CPU_EFFICIENCY if is_cpu(gpu_class) else _GPU_EFFICIENCY


def class_tflops(gpu_class: str) -> float:
    """Dense bfloat16 TFLOP/s of a class by its data sheet, for want of a measurement."""
    if is_cpu(gpu_class):
        return _UNKNOWN_CPU_TFLOPS
    for beginning, tflops in _SHEET:
        if gpu_class.startswith(beginning):
            return tflops
    return _UNKNOWN_GPU_TFLOPS


def _length(job: Sizes, row_tokens: float | None) -> float:
    """Tokens of a row, as they are read."""
    return min(row_tokens, job.max_length) if row_tokens else _TYPICAL_FILL * job.max_length


def _arithmetic(flops: float, tflops: float, share: float) -> float:
    """Seconds, on a device of which training reaches a share."""
    return flops / (tflops * 1e12 * share) * _CHECKPOINT_SHARE


def _flops(job: Sizes, length: float) -> float:
    """Operations of training and its evaluations, on rows of `length` tokens."""
    trained = job.steps * job.batch * _both_ways(job)
    own = (trained + job.evaluations * job.evaluated) * _forward(job.base, length)
    if job.teacher is None:
        return own
    taught = _forward(job.teacher, length) - _forward(job.base, length)
    return own + job.steps * job.batch * taught


def _both_ways(job: Sizes) -> int:
    """Passes: the way back is as dear as the one through, and once more for weights that learn."""
    return (2 if job.lora else 3) + _MORE_PASSES.get(job.method, 0)


def _forward(base: BaseShape, length: float) -> float:
    """Operations of one row of `length` tokens on its way through."""
    body = base.parameters - base.vocab * base.hidden
    return length * (
        2 * body
        + 2 * length * base.hidden * base.layers  # causal attention sees half of length²
        + 2 * _LEARNT_SHARE * base.vocab * base.hidden
    )


def _overheads(job: Sizes) -> float:
    """Seconds that no faster device would save: start, reading, answers, checkpoints, writing."""
    base = job.base
    stored = base.parameters * base.bytes_per_weight
    answer_s = base.layers * _LAYER_S + stored / _ANSWER_BYTES_S
    saved = job.trained() * (4 + _ADAM_BYTES)
    drawn = job.drawn if job.method == "grpo" else 0
    saves = (job.steps - 1) // job.checkpoint_every if job.checkpoint_every else 0
    merges = job.method == "arithmetic"
    written = job.trained() * 4 if job.lora and not merges else stored
    read = stored * (_MERGED if merges else 1)
    return (
        _START_S
        + read / _READ_BYTES_S
        + (job.evaluations * job.answered + drawn) * answer_s
        + (saves * saved + written) / _WRITE_BYTES_S
    )
