"""evaluation.json: what a model could do before and after, and whether it forgot something.

Pure: msgspec and the standard library only. The recipe writes it into the artifact; the site reads
it, shows it, and keeps a model that dropped a domain from being promoted.

A run is measured on its target (`heldout.*`) and on each held-out domain (`domains/*`). What is
measured depends on the recipe, `MEASURE_OF`: the loss (nats per learnt token, less is better), the
accuracy of preferences (share of pairs whose better answer scores higher) or the mean reward.
"""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec
from msgspec import Struct

from agent.recipes.formats import Method

FILE: Final = "evaluation.json"
TARGET: Final = "target"

Measure = Literal["loss", "accuracy", "reward"]
Verdict = Literal["kept", "dropped"]

MEASURE_OF: Final[Mapping[Method, Measure]] = {
    "sft": "loss",
    "continue": "loss",
    "distill": "loss",
    "dpo": "accuracy",
    "reward": "accuracy",
    "grpo": "reward",
}


class Domain(Struct, frozen=True, kw_only=True):
    """One part of the evaluation, measured twice."""

    name: str
    """`target`, or the domain's name."""
    measure: Measure
    rows: int
    tokens: int
    """Tokens whose prediction was measured; 0 where rows are counted."""
    before: float | None
    after: float | None
    """None if it was not measured (`evaluate_samples` 0)."""
    margin: float
    """The share of `before` by which it may get worse."""
    verdict: Verdict


class Answer(Struct, frozen=True, kw_only=True):
    """One held-out prompt, answered greedily."""

    prompt: str
    expected: str
    before: str
    after: str


class Training(Struct, frozen=True, kw_only=True):
    """What it took."""

    steps: int
    tokens: int
    """Read by all steps, over all attempts."""
    loss: float
    """Of the last step."""
    seconds: dict[str, float]
    """Of each phase; `training` over all attempts, the others of this one."""
    tokens_per_s: float = 0.0
    """Of training alone."""
    peak_memory_bytes: int = 0
    """Of this attempt: the device's, or on a CPU the process's (VmHWM)."""
    device: str = ""
    """As torch names it."""


class Evaluation(Struct, frozen=True, kw_only=True):
    """The whole file; `domains` has the target first, if it was measured."""

    domains: list[Domain]
    answers: list[Answer]
    training: Training

    @property
    def dropped(self) -> list[str]:
        """The names of what got worse by more than its margin; a reason not to promote it."""
        return [domain.name for domain in self.domains if domain.verdict == "dropped"]


def judge(measure: Measure, before: float | None, after: float | None, margin: float) -> Verdict:
    """`dropped` if it is worse than before by more than `margin`, a share of `before`.

    Shares of zero are nothing, so rewards and accuracies are held against at least 1 × margin of
    their own scale: an accuracy may fall by `margin` itself.
    """
    if before is None or after is None:
        return "kept"
    room = margin * (abs(before) if measure == "loss" else max(1.0, abs(before)))
    worse = after - before if measure == "loss" else before - after
    return "dropped" if worse > room else "kept"


def domain(
    name: str, measure: Measure, margin: float, before: "Figure | None", after: "Figure | None"
) -> Domain:
    """A part of the evaluation, judged."""
    counted = after or before or Figure(rows=0, tokens=0, value=None)
    then = before.value if before else None
    now = after.value if after else None
    return Domain(
        name=name,
        measure=measure,
        rows=counted.rows,
        tokens=counted.tokens,
        before=then,
        after=now,
        margin=margin,
        verdict=judge(measure, then, now, margin),
    )


class Figure(Struct, frozen=True, kw_only=True):
    """One part, measured once."""

    rows: int
    tokens: int
    value: float | None


def read(data: bytes) -> Evaluation:
    """Raises ValueError if these bytes are no evaluation."""
    try:
        return msgspec.json.decode(data, type=Evaluation)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{FILE} can't be read: {error}") from None
