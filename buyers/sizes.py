"""How large what a job brings is: its base, its rows, and the memory that they will take."""

from collections.abc import Mapping
from typing import Any, Final

from agent.recipes import formats
from buyers.models import Artifact, Dataset
from marketplace.core import memory
from marketplace.core.errors import Invalid
from marketplace.core.shapes import BaseShape
from marketplace.core.specs import JobRequest

# Measured with SmolLM2's tokenizer on rows of code and English: 4.9 bytes of JSON a token, and
# 32 tokens that its chat template puts around each pair.
_BYTES_A_TOKEN: Final = 4.9
_CHAT_TOKENS: Final = 32


def shape_of(base: Artifact | None) -> BaseShape | None:
    """A base's own shape, or that of what it was made from."""
    while base is not None:
        if base.shape:
            return BaseShape(**base.shape)
        base = base.job.base if base.job else None
    return None


def row_tokens(dataset: Dataset | None) -> float | None:
    """The mean length of a dataset's rows, guessed from their bytes."""
    if dataset is None or not dataset.rows:
        return None
    parts = (formats.TRAIN, formats.HELD_OUT)
    size: int = sum(
        entry["bytes"] for entry in dataset.manifest if formats.part_of(entry["path"]) in parts
    )
    return size / dataset.rows / _BYTES_A_TOKEN + _CHAT_TOKENS


def memory_of(
    request: JobRequest,
    parameters: Mapping[str, Any],
    base: Artifact | None,
    other: Artifact | None = None,
) -> tuple[int, int]:
    """Bytes on each GPU, and on a processor; what the buyer books counts for both. `other` is the
    second model, which matters where it teaches.

    Raises Invalid where a size is not known, and the buyer hasn't said what it comes to.
    """
    _require_known(request, base, other)
    if request.memory_bytes:
        return request.memory_bytes, request.memory_bytes
    shape = shape_of(base)
    assert shape is not None, "a base of unknown size needs the buyer's word"
    found = memory.needed(
        request.recipe, parameters, shape, teacher=shape_of(other), world=request.gpus_min
    )
    return found.on_gpu, found.on_cpu


def _require_known(request: JobRequest, base: Artifact | None, other: Artifact | None) -> None:
    """What can't be estimated is for the buyer to say; a script has said it by now."""
    sized = [base, other] if request.recipe == "distill" else [base]
    unknown = [each for each in sized if shape_of(each) is None]
    if not unknown or (request.memory_bytes and request.hours):
        return
    what = "this base" if unknown[0] is base else "the teacher"
    raise Invalid(
        f"the size of {what} is not known; say how much memory it needs on each GPU (memory_gib) "
        "and how long it will about run (hours)",
        field="hours" if request.memory_bytes else "memory_gib",
    )
