"""How many bytes of memory a training needs, on a GPU and on a processor.

Term by term what torch keeps for one step of a Llama-like model (`_activations`; counted with
`torch.autograd.graph.saved_tensors_hooks`): weights, gradients, Adam's moments, activations, and
the logits of as many tokens as are scored at once. Sharding over a gang follows ZeRO's stages
(Rajbhandari et al., arXiv 1910.02054, section 5).

`allocated` is what torch's allocator holds at the peak: on an H200 ten runs of SmolLM2's and
Llama-3.2-1B's shape, by every method, peaked at 97 to 104 % of it, and grpo's short answers below
(`benchmarks/gpu.py`). What must be free is more. On a GPU the CUDA context and its libraries take
1.45 GB and the caching allocator's gaps 1 to 7 % and more of small jobs; on a processor there is Python with its libraries, and the C library
holds on to freed pieces: 1.65 to 1.8 times the activations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from marketplace.core.hardware import is_cpu
from marketplace.core.shapes import BaseShape, Sizes, trainings

# A base below this is trained in float32 by a processor without bfloat16, where `auto` decides.
_CPU_SIZED: Final = 1_000_000_000
# Python, torch, transformers, peft, datasets and TRL once imported, and a trainer made.
_RUNTIME_BYTES: Final = 520_000_000
_CPU_HEAP: Final = 1.8
_CPU_HEADROOM: Final = 1.1
_GPU_CONTEXT_BYTES: Final = 1_500_000_000
_GPU_GAPS: Final = 1.07
_GPU_GAPS_BYTES: Final = 600_000_000
# Logits exist for so many tokens at once (`agent.recipes.loss`, TRL's fused head): bf16, fp32,
# their softmax, and the gradients of the first two.
_LOGITS_AT_ONCE: Final = 256
_LOGITS_BYTES: Final = 16
_ADAM_BYTES: Final = 8


@dataclass(frozen=True)
class Memory:
    """Bytes on each device: what torch allocates at the peak on a GPU, and what must be free."""

    allocated: int
    on_gpu: int
    on_cpu: int

    def on(self, gpu_class: str) -> int:
        """What must be free on a device of this class."""
        return self.on_cpu if is_cpu(gpu_class) else self.on_gpu


def needed(
    recipe: str,
    parameters: Mapping[str, Any],
    base: BaseShape,
    *,
    teacher: BaseShape | None = None,
    world: int = 1,
    zero: int = 0,
) -> Memory:
    """The largest of a recipe's trainings, on each of `world` devices, by ZeRO's stage `zero`
    (0: every device holds all; 1 shards the optimizer's state, 2 gradients too, 3 weights too).
    `teacher` is distill's second model."""
    each = [_needed(one, world, zero) for one in trainings(recipe, parameters, base, teacher)]
    return Memory(
        allocated=max(one.allocated for one in each),
        on_gpu=max(one.on_gpu for one in each),
        on_cpu=max(one.on_cpu for one in each),
    )


@dataclass(frozen=True)
class _Held:
    """Bytes of one step: what stays through it, and what comes and goes."""

    resident: float
    activations: float
    logits: float
    gradients: float
    """Of all weights that learn; those of an adapter are small and counted as resident."""
    first_gradient: float
    """Of the embedding, made while all activations are still there."""
    reading: float
    """Of weights while they are read in another precision than they are kept in."""

    def peak(self, heap: float = 1.0) -> float:
        """`heap`: what activations cost in memory; above 1 its freed pieces hold the rest."""
        first = self.first_gradient if heap == 1 else 0.0
        passing = max(heap * self.activations + self.logits + first, self.gradients)
        return max(self.resident + passing, self.reading)


def _needed(job: Sizes, world: int, zero: int) -> Memory:
    bf16 = job.precision != "fp32"
    allocated = _held(job, world, zero, bf16=bf16).peak()
    slow = bf16 and (job.precision == "bf16" or job.base.parameters >= _CPU_SIZED)
    held = _held(job, world, zero, bf16=slow)
    on_cpu = (_RUNTIME_BYTES + held.reading + held.peak(_CPU_HEAP)) * _CPU_HEADROOM
    on_gpu = allocated * _GPU_GAPS + _GPU_GAPS_BYTES + _GPU_CONTEXT_BYTES
    return Memory(round(allocated), round(on_gpu), round(on_cpu))


def _held(job: Sizes, world: int, zero: int, *, bf16: bool) -> _Held:
    """LoRA: the base in the job's precision; the adapter, its gradient and Adam's two moments in
    float32. Full: float32 weights and moments, a bfloat16 copy for the products; the first
    gradient is that of the embedding, the others grow only as activations go."""
    base, width = job.base, 2 if bf16 else 4
    shards = [world if zero >= stage else 1 for stage in (1, 2, 3)]
    tokens = -(-job.batch // (job.parts * world)) * job.max_length
    logits = min(tokens, _LOGITS_AT_ONCE) * base.vocab * _LOGITS_BYTES
    reading = 0 if width == base.bytes_per_weight else base.parameters * base.bytes_per_weight
    gradients = first = 0.0
    if job.lora:
        learnt = job.trained() * (4 / shards[2] + 4 / shards[1] + _ADAM_BYTES / shards[0])
        resident = base.parameters * width / shards[2] + learnt
    else:
        kept = 4 / shards[2] + _ADAM_BYTES / shards[0] + (2 if bf16 else 0)
        resident = base.parameters * kept
        gradients = 4 * base.parameters / shards[1]
        first = base.vocab * base.hidden * 4
    if job.method == "distill" or (job.method == "dpo" and not job.lora):
        # A second model: the teacher in the job's precision, or the base as it was.
        resident += (job.teacher or base).parameters * (width if job.lora else 4)
    if job.method == "arithmetic":
        resident += 2 * base.parameters * 4
    layers = 1.0 if job.recomputes else float(base.layers)
    kept_inputs = base.layers * base.hidden * width if job.recomputes else 0
    passing = (_activations(job, bf16=bf16) * layers + kept_inputs) * tokens if job.trains else 0
    return _Held(resident, passing, logits, gradients, first, reading if job.lora else 0)


def _activations(job: Sizes, *, bf16: bool) -> int:
    """Bytes that one layer keeps of one token for the way back.

    Norms work in float32. Attention keeps queries, keys, values and its output; the feed-forward
    layer its gate, the gate's SiLU and the other branch. A frozen linear map keeps nothing; LoRA
    keeps a float32 copy of its input for each target, which in float32 is the input itself.
    """
    base = job.base
    width = 2 if bf16 else 4
    queries, keys = base.heads * base.head_dim, base.kv_heads * base.head_dim
    found = width * (2 * queries + 2 * keys + 3 * base.inner)
    if not job.lora:
        casts = 2 * (5 * base.hidden + base.inner) if bf16 else 4 * (2 * base.hidden + base.inner)
        return found + 16 * base.hidden + casts
    inputs = [i for i, _ in job.adapted()]
    copied = sum(inputs) if bf16 else sum(set(inputs))
    return found + 8 * base.hidden + 4 * copied + 4 * job.rank * len(inputs)
