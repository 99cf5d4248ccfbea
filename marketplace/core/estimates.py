"""What a job will need: memory in bytes and time in seconds, from its recipe and its base.

Memory follows what torch keeps for one step of a Llama-like model, term by term (`_activations`;
counted with `torch.autograd.graph.saved_tensors_hooks`). Thirteen runs on a CPU, from a model of
100,000 weights to SmolLM2-135M, LoRA and full, bf16 and fp32, 16 to 4,096 tokens a step, peaked
at 77 to 94 % of it, never above. GPUs were not measured; there torch's caching allocator takes
the place of the C library's.

Time is floating-point operations over measured speed, plus what is not arithmetic. Operations a
token: 2 a weight forward, 2 for the gradient of what flows through, 2 for that of the weights
themselves, which LoRA's frozen ones spare (Kaplan et al., arXiv 2001.08361, section 2.1; Hu et
al., arXiv 2106.09685).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from marketplace.core.hardware import is_cpu
from marketplace.core.paces import Pace, believed

# A base below this may land on a CPU; nobody trains a larger one there.
_CPU_SIZED: Final = 1_000_000_000
# Below this speed a device is a CPU.
_CPU_TFLOPS: Final = 2.0

# Python, torch, transformers, peft, datasets and TRL once imported, and a trainer made.
_RUNTIME_BYTES: Final = 520_000_000
# What freed pieces of the C library's heap cost on top of the activations: 1.65 to 1.8 measured.
_CPU_HEAP: Final = 1.8
_GPU_HEAP: Final = 1.15
_HEADROOM: Final = 1.1
# Logits exist for so many tokens at once (`agent.recipes.loss`): bf16, fp32, their softmax, and
# the gradients of the first two.
_LOGITS_AT_ONCE: Final = 256
_LOGITS_BYTES: Final = 16
_ADAM_BYTES: Final = 8

# Sequences of a row, where it is not one; and passes forward that no gradient follows.
_ROWS_EACH: Final = {"dpo": 2, "reward": 2}
_MORE_PASSES: Final = {"dpo": 1, "distill": 1, "grpo": 1}

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

_ALIASES: Final = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "vocab": ("vocab_size",),
}
_WIDTHS: Final = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class BaseShape:
    """A base model's sizes; `bytes_per_weight` as it is stored."""

    parameters: int
    layers: int
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    """Width of the feed-forward layer."""
    bytes_per_weight: int

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """From a Hugging Face `config.json`; raises ValueError naming what is missing."""
        sizes = {name: _size(config, *keys) for name, keys in _ALIASES.items()}
        for name, value in sizes.items():
            if value is None:
                raise ValueError(
                    f"config.json has no usable {_ALIASES[name][0]}; take a base model in "
                    "Hugging Face's layout"
                )
        hidden, layers = sizes["hidden"] or 0, sizes["layers"] or 0
        heads, vocab = sizes["heads"] or 0, sizes["vocab"] or 0
        kv_heads = _size(config, "num_key_value_heads") or heads
        head_dim = _size(config, "head_dim") or max(1, hidden // heads)
        inner = _size(config, "intermediate_size", "n_inner") or 4 * hidden
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings") else 2)
        each = attention + 3 * hidden * inner + 2 * hidden
        stored = str(config.get("dtype") or config.get("torch_dtype"))
        return cls(
            parameters=embeddings + layers * each + hidden,
            layers=layers,
            hidden=hidden,
            vocab=vocab,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            inner=inner,
            bytes_per_weight=_WIDTHS.get(stored, 4),
        )

    def projections(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear maps, by Llama's names."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }


@dataclass(frozen=True)
class Estimate:
    """`memory_bytes` is meant to suffice; the seconds are a likely figure and its range."""

    memory_bytes: int
    seconds_low: float
    seconds: float
    seconds_high: float
    flops: float


def estimate(
    recipe: str,
    parameters: Mapping[str, object],
    base: BaseShape | None,
    *,
    tflops: float,
    row_tokens: float | None = None,
    pace: Pace | None = None,
) -> Estimate:
    """A recipe's memory and time on a device of `tflops` TFLOP/s.

    `parameters` as the catalogue validated them; `row_tokens` is the mean length of a row, if it
    is known; `pace` what jobs of its kind have shown on such devices. Raises ValueError for a
    recipe whose needs only its author knows (`script`).
    """
    if recipe == "script" or base is None:
        raise ValueError(f"how long a {recipe} job takes is for its buyer to say, in hours")
    if not (tflops > 0 and math.isfinite(tflops)):
        raise ValueError(f"a speed must be above 0 TFLOP/s, not {tflops}")
    parts = [
        _part(_Sizes.of(name, given, base), tflops=tflops, row_tokens=row_tokens, pace=pace)
        for name, given in _parts(recipe, parameters)
    ]
    return Estimate(
        memory_bytes=max(part.memory_bytes for part in parts),
        seconds_low=sum(part.seconds_low for part in parts),
        seconds=sum(part.seconds for part in parts),
        seconds_high=sum(part.seconds_high for part in parts),
        flops=sum(part.flops for part in parts),
    )


def _parts(recipe: str, parameters: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The trainings that a recipe is made of, each with its parameters."""
    if recipe == "chain":
        return [(stage["recipe"], stage["parameters"]) for stage in parameters["stages"]]
    if recipe == "sweep":
        given = parameters["parameters"]
        total = _sweep_steps(given["steps"], parameters)
        trials = min(parameters["trials"], math.prod(map(len, parameters["space"].values())))
        whole = {**given, "steps": total, "evaluate_samples": given["evaluate_samples"] * trials}
        return [(parameters["recipe"], whole)]
    return [(recipe, parameters)]


def _sweep_steps(steps: int, parameters: Mapping[str, Any]) -> int:
    """Steps of all trials, of which half go on after each rung, each to twice its steps."""
    rungs, trials = parameters["rungs"], parameters["trials"]
    trials = min(trials, math.prod(map(len, parameters["space"].values())))
    total, done = 0, 0
    for rung in range(rungs):
        upto = max(1, steps >> (rungs - 1 - rung))
        total += max(1, trials >> rung) * (upto - done)
        done = upto
    return total


def _part(job: "_Sizes", *, tflops: float, row_tokens: float | None, pace: Pace | None) -> Estimate:
    """One training's memory and time."""
    flops, fixed = _flops(job, _length(job, row_tokens)), _overheads(job)
    if pace is None:
        default = _CPU_EFFICIENCY if tflops < _CPU_TFLOPS else _GPU_EFFICIENCY
        pace = believed(default, {})
    arithmetic = flops / (tflops * 1e12 * pace.share) * _CHECKPOINT_SHARE
    unsure = math.log(pace.spread), 0.0 if row_tokens else math.log(_LENGTH_SPREAD)
    spread = math.exp(math.hypot(*unsure))
    return Estimate(
        memory_bytes=_memory(job),
        seconds_low=fixed / 2 + arithmetic / spread,
        seconds=fixed + arithmetic,
        seconds_high=2 * fixed + arithmetic * spread,
        flops=flops,
    )


def flops_per_token(
    recipe: str,
    parameters: Mapping[str, object],
    base: BaseShape,
    *,
    row_tokens: float | None = None,
) -> float:
    """Operations that training spends on one token of a row, both ways."""
    job = _Sizes.of(recipe, parameters, base)
    length = _length(job, row_tokens)
    return _both_ways(job) * _forward(job, length) / length


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


@dataclass(frozen=True)
class _Sizes:
    """The parameters that decide, read once."""

    base: BaseShape
    method: str
    trains: bool
    lora: bool
    bf16: bool
    steps: int
    batch: int
    """Sequences in each step: a preference is two."""
    parts: int
    drawn: int
    """Tokens that grpo draws one after another, over all steps."""
    max_length: int
    checkpoint_every: int
    evaluated: int
    answered: int
    rank: int
    targets: tuple[str, ...]

    @classmethod
    def of(cls, recipe: str, parameters: Mapping[str, object], base: BaseShape) -> Self:
        def number(name: str) -> int:
            value = parameters.get(name, 0)
            assert isinstance(value, int), name  # the catalogue has validated it
            return value

        targets = parameters.get("targets", ())
        names = tuple(map(str, targets)) if isinstance(targets, list | tuple) else ()
        precision = parameters.get("precision", "auto")
        # A CPU may lack bfloat16, and `auto` takes float32 then: whatever comes must fit.
        bf16 = precision == "bf16" or (precision == "auto" and base.parameters >= _CPU_SIZED)
        return cls(
            base=base,
            method=str(parameters.get("method", recipe)),
            trains="steps" in parameters,
            lora=parameters.get("weights", recipe) != "full",
            bf16=bf16,
            steps=number("steps"),
            batch=number("batch_size") * _ROWS_EACH.get(str(parameters.get("method", recipe)), 1),
            parts=max(1, number("accumulate")),
            drawn=number("completion_length") * number("steps"),
            max_length=number("max_length"),
            checkpoint_every=number("checkpoint_every"),
            evaluated=number("evaluate_samples"),
            answered=number("answers") * number("answer_tokens"),
            rank=number("rank"),
            targets=tuple(base.projections()) if names == ("all-linear",) else names,
        )

    def adapted(self) -> list[tuple[int, int]]:
        """Inputs and outputs of what LoRA adapts in each layer; unknown names as hidden's."""
        square = (self.base.hidden, self.base.hidden)
        return [self.base.projections().get(name, square) for name in self.targets]

    def trained(self) -> int:
        """Weights that learn."""
        if not self.trains:
            return 0
        if not self.lora:
            return self.base.parameters
        return self.base.layers * self.rank * sum(i + o for i, o in self.adapted())


def _memory(job: _Sizes) -> int:
    """Bytes at the peak of a step.

    LoRA: the base, read in its stored precision and kept in the job's; the adapter, its gradient
    and Adam's two moments in float32; activations; logits. Full: float32 weights and moments, a
    bfloat16 copy of the weights for the products; the gradients grow only as activations go.
    """
    base = job.base
    heap = _CPU_HEAP if base.parameters < _CPU_SIZED else _GPU_HEAP
    tokens = -(-job.batch // job.parts) * job.max_length
    logits = min(tokens, _LOGITS_AT_ONCE) * base.vocab * _LOGITS_BYTES
    passing = heap * _activations(job) * tokens * base.layers + logits
    if job.lora:
        width = 2 if job.bf16 else 4
        read = 0 if width == base.bytes_per_weight else base.bytes_per_weight
        resident = base.parameters * (width + read) + job.trained() * (4 + 4 + _ADAM_BYTES)
    else:
        resident = base.parameters * (4 + _ADAM_BYTES + (2 if job.bf16 else 0))
        passing = max(passing, 4 * base.parameters)
    if job.method == "distill" or (job.method == "dpo" and not job.lora):
        resident += base.parameters * 4  # a second model: the teacher, or the base as it was
    if job.method == "arithmetic":
        resident += 2 * base.parameters * 4
    return round((_RUNTIME_BYTES + resident + passing) * _HEADROOM)


def _activations(job: _Sizes) -> int:
    """Bytes that one layer keeps of one token for the way back.

    Norms work in float32. Attention keeps queries, keys, values and its output; the feed-forward
    layer its gate, the gate's SiLU and the other branch. A frozen linear map keeps nothing; LoRA
    keeps a float32 copy of its input for each target, which in float32 is the input itself.
    """
    base = job.base
    width = 2 if job.bf16 else 4
    queries, keys = base.heads * base.head_dim, base.kv_heads * base.head_dim
    found = width * (2 * queries + 2 * keys + 3 * base.inner)
    if not job.lora:
        casts = (
            2 * (5 * base.hidden + base.inner) if job.bf16 else 4 * (2 * base.hidden + base.inner)
        )
        return found + 16 * base.hidden + casts
    inputs = [i for i, _ in job.adapted()]
    copied = sum(inputs) if job.bf16 else sum(set(inputs))
    return found + 8 * base.hidden + 4 * copied + 4 * job.rank * len(inputs)


def _length(job: _Sizes, row_tokens: float | None) -> float:
    """Tokens of a row, as they are read."""
    return min(row_tokens, job.max_length) if row_tokens else _TYPICAL_FILL * job.max_length


def _flops(job: _Sizes, length: float) -> float:
    """Operations of training and both evaluations, on rows of `length` tokens."""
    trained = job.steps * job.batch * _both_ways(job)
    return (trained + 2 * job.evaluated) * _forward(job, length)


def _both_ways(job: _Sizes) -> int:
    """Passes: the way back is as dear as the one through, and once more for weights that learn."""
    return (2 if job.lora else 3) + _MORE_PASSES.get(job.method, 0)


def _forward(job: _Sizes, length: float) -> float:
    """Operations of one row of `length` tokens on its way through."""
    base = job.base
    body = base.parameters - base.vocab * base.hidden
    return length * (
        2 * body
        + 2 * length * base.hidden * base.layers  # causal attention sees half of length²
        + 2 * _LEARNT_SHARE * base.vocab * base.hidden
    )


def _overheads(job: _Sizes) -> float:
    """Seconds that no faster device would save: start, reading, answers, checkpoints, writing."""
    base = job.base
    stored = base.parameters * base.bytes_per_weight
    answer_s = base.layers * _LAYER_S + stored / _ANSWER_BYTES_S
    saved = job.trained() * (4 + _ADAM_BYTES)
    drawn = job.drawn if job.method == "grpo" else 0
    saves = (job.steps - 1) // job.checkpoint_every if job.checkpoint_every else 0
    written = job.trained() * 4 if job.lora else stored
    return (
        _START_S
        + stored / _READ_BYTES_S
        + (2 * job.answered + drawn) * answer_s
        + (saves * saved + written) / _WRITE_BYTES_S
    )


def _size(config: Mapping[str, object], *names: str) -> int | None:
    """The first of these keys that holds a positive whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
