"""What decides how much a recipe needs: the base's sizes, and the parameters that count.

A recipe is made of trainings (a chain of several, a sweep of the combinations of its space); each is
one `Sizes`.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

# Sequences of a row, where it is not one.
_ROWS_EACH: Final = {"dpo": 2, "reward": 2}

# Of a sweep's space, what `Sizes` reads.
_SIZED: Final = frozenset(
    "batch_size max_length weights precision activations accumulate rank checkpoint_every answers "
    "answer_tokens".split()
)

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
class Sizes:
    """The parameters that decide, read once."""

    base: BaseShape
    method: str
    trains: bool
    lora: bool
    precision: str
    recomputes: bool
    """Whether activations are made again on the way back."""
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
    evaluations: int
    """How often the held-out rows are measured: before and after, where something is done."""
    rank: int
    targets: tuple[str, ...]
    share: float = 1.0
    """Of its steps that it takes: a sweep's combinations share those of all trials."""
    teacher: BaseShape | None = None
    """distill's; None: of the base's own shape."""

    @classmethod
    def of(cls, recipe: str, parameters: Mapping[str, object], base: BaseShape) -> Self:
        def number(name: str) -> int:
            value = parameters.get(name, 0)
            assert isinstance(value, int), name  # the catalogue has validated it
            return value

        targets = parameters.get("targets", ())
        names = tuple(map(str, targets)) if isinstance(targets, list | tuple) else ()
        return cls(
            base=base,
            method=str(parameters.get("method", recipe)),
            trains="steps" in parameters,
            lora=parameters.get("weights", recipe) != "full",
            precision=str(parameters.get("precision", "auto")),
            recomputes=parameters.get("activations") == "recompute",
            steps=number("steps"),
            batch=number("batch_size") * _ROWS_EACH.get(str(parameters.get("method", recipe)), 1),
            parts=max(1, number("accumulate")),
            drawn=number("completion_length") * number("steps"),
            max_length=number("max_length"),
            checkpoint_every=number("checkpoint_every"),
            evaluated=number("evaluate_samples"),
            answered=number("answers") * number("answer_tokens"),
            evaluations=1 if recipe == "prompt" and not number("shots") else 2,
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


def trainings(
    recipe: str,
    parameters: Mapping[str, Any],
    base: BaseShape,
    teacher: BaseShape | None = None,
) -> list[Sizes]:
    """The trainings that a recipe is made of; `parameters` as the catalogue validated them.

    Memory must do for the largest of them; the time is the sum of each by its `share`.
    """
    if recipe == "sweep":
        return _combinations(parameters, base)
    parts = (
        [(stage["recipe"], stage["parameters"]) for stage in parameters["stages"]]
        if recipe == "chain"
        else [(recipe, parameters)]
    )
    return [replace(Sizes.of(name, given, base), teacher=teacher) for name, given in parts]


def _combinations(parameters: Mapping[str, Any], base: BaseShape) -> list[Sizes]:
    """What a sweep may try, as far as it differs in size. Which of it is drawn, the job's seed
    decides, so each counts as much as the others."""
    given, space = parameters["parameters"], parameters["space"]
    trials = min(parameters["trials"], math.prod(map(len, space.values())))
    whole = {
        **given,
        "steps": _sweep_steps(given["steps"], parameters),
        "evaluate_samples": given["evaluate_samples"] * trials,
    }
    sized = {name: values for name, values in space.items() if name in _SIZED}
    grid = list(itertools.product(*sized.values()))
    return [
        replace(
            Sizes.of(
                parameters["recipe"], {**whole, **dict(zip(sized, values, strict=True))}, base
            ),
            share=1 / len(grid),
        )
        for values in grid
    ]


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


def _size(config: Mapping[str, object], *names: str) -> int | None:
    """The first of these keys that holds a positive whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
