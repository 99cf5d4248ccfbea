"""The parameters of each recipe: bounds and texts beside each field, for forms, CLI and docs.

Pure: msgspec and the standard library only. A method is what is learnt from (`formats.Method`),
the weights are what learns: an adapter (`lora`) or all of them (`full`). `lora` and `full` are
named by the weights and take the method as a parameter; the others the other way round.
"""

from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import Meta, Struct, field

from agent.recipes.formats import Method

Weights = Literal["lora", "full"]

ALL_LINEAR: Final = "all-linear"

# What a learning rate of 0 stands for.
RATES: Final[dict[tuple[Weights, Method], float]] = {
    ("lora", "sft"): 5e-4,
    ("lora", "continue"): 2e-4,
    ("lora", "distill"): 5e-4,
    ("lora", "dpo"): 5e-5,
    ("lora", "reward"): 2e-4,
    ("lora", "grpo"): 5e-5,
    ("full", "sft"): 2e-5,
    ("full", "continue"): 2e-5,
    ("full", "distill"): 2e-5,
    ("full", "dpo"): 1e-6,
    ("full", "reward"): 1e-5,
    ("full", "grpo"): 1e-6,
}


class _Fields(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So that every struct below refuses what it doesn't know."""


class Measuring(_Fields, frozen=True, kw_only=True):
    """What every recipe takes that measures a model."""

    batch_size: Annotated[
        int, Meta(ge=1, le=1024, description="Rows in each step, over all GPUs; for grpo, answers.")
    ] = 8
    max_length: Annotated[
        int, Meta(ge=16, le=131_072, description="Tokens of a row; what is longer is cut.")
    ] = 512
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        Meta(description="Of matrix products; auto takes bf16 where the hardware has it."),
    ] = "auto"
    evaluate_samples: Annotated[
        int,
        Meta(ge=0, le=100_000, description="Held-out rows measured, in each domain; 0: none."),
    ] = 64
    answers: Annotated[
        int, Meta(ge=0, le=32, description="Held-out prompts answered before and after.")
    ] = 2
    answer_tokens: Annotated[
        int, Meta(ge=1, le=1024, description="Longest sample answer, in tokens.")
    ] = 48
    margin: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share by which a figure may get worse before it counts as dropped.",
        ),
    ] = 0.05


class Tuning(Measuring, frozen=True, kw_only=True):
    """What every kind of training takes."""

    steps: Annotated[int, Meta(ge=1, le=1_000_000, description="Optimiser steps.")] = 100
    learning_rate: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Its peak; a cosine follows the warm-up. 0: what suits the recipe.",
        ),
    ] = 0.0
    accumulate: Annotated[
        int,
        Meta(ge=1, le=1024, description="Parts a step is worked through in; more save memory."),
    ] = 1
    activations: Annotated[
        Literal["keep", "recompute"],
        Meta(description="Recompute them on the way back: a third slower, much less memory."),
    ] = "keep"
    warmup: Annotated[
        float, Meta(ge=0, le=0.5, description="Share of the steps over which the rate rises.")
    ] = 0.1
    weight_decay: Annotated[float, Meta(ge=0, le=1, description="AdamW's weight decay.")] = 0.0
    max_grad_norm: Annotated[
        float, Meta(gt=0, le=1000, description="Longer gradients are shortened to this.")
    ] = 1.0
    checkpoint_every: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Steps between checkpoints; 0: the market says.")
    ] = 0
    mix: Annotated[
        float,
        Meta(ge=0, le=0.9, description="Share of rows taken from the input `mix`, to forget less."),
    ] = 0.0


_Target = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")


class Adapting(Tuning, frozen=True, kw_only=True):
    """What low-rank adaptation takes besides (Hu et al., arXiv 2106.09685)."""

    rank: Annotated[int, Meta(ge=1, le=512, description="Rank of the update (LoRA).")] = 16
    alpha: Annotated[
        float, Meta(gt=0, le=4096, description="The update is scaled by alpha / rank (LoRA).")
    ] = 32.0
    dropout: Annotated[
        float, Meta(ge=0, le=0.9, description="Dropout on the adapter's input (LoRA).")
    ] = 0.0
    targets: Annotated[
        list[_Target],
        Meta(
            min_length=1,
            max_length=32,
            description=f"Names of the layers to adapt, or {ALL_LINEAR!r} alone (LoRA).",
        ),
    ] = field(default_factory=lambda: list(_ATTENTION))


_WeightsField = Annotated[
    Weights, Meta(description="What learns: an adapter beside the base (lora), or all of it.")
]
_MethodField = Annotated[
    Literal["sft", "dpo", "grpo"],
    Meta(description="Learn from answers (sft), preferences (dpo) or rewards (grpo)."),
]
_Beta = Annotated[
    float,
    Meta(ge=0, le=10, description="How strongly dpo and grpo hold the model to its base."),
]
_Generations = Annotated[
    int, Meta(ge=2, le=64, description="Answers to each prompt that grpo compares.")
]
_Temperature = Annotated[
    float, Meta(gt=0, le=5, description="How freely grpo's answers are drawn.")
]
_Completion = Annotated[
    int, Meta(ge=1, le=32_768, description="Longest answer that grpo draws, in tokens.")
]


class LoraParameters(Adapting, frozen=True, kw_only=True):
    """An adapter; the base stays as it is."""

    weights: ClassVar[Weights] = "lora"
    method: _MethodField = "sft"
    beta: _Beta = 0.1
    generations: _Generations = 4
    temperature: _Temperature = 1.0
    completion_length: _Completion = 64


class FullParameters(Tuning, frozen=True, kw_only=True):
    """All weights, in float32 with AdamW."""

    weights: ClassVar[Weights] = "full"
    method: _MethodField = "sft"
    beta: _Beta = 0.1
    generations: _Generations = 4
    temperature: _Temperature = 1.0
    completion_length: _Completion = 64


class SftParameters(Adapting, frozen=True, kw_only=True):
    """Supervised fine-tuning: the answers of the rows are learnt."""

    method: ClassVar[Method] = "sft"
    weights: _WeightsField = "lora"


class ContinueParameters(Adapting, frozen=True, kw_only=True):
    """Continued pre-training: the next token of raw text, packed into rows of `max_length`."""

    method: ClassVar[Method] = "continue"
    weights: _WeightsField = "lora"


class DpoParameters(Adapting, frozen=True, kw_only=True):
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290)."""

    method: ClassVar[Method] = "dpo"
    weights: _WeightsField = "lora"
    beta: _Beta = 0.1


class RewardParameters(Adapting, frozen=True, kw_only=True):
    """A model that scores answers, learnt from preferences (Bradley-Terry)."""

    method: ClassVar[Method] = "reward"
    weights: _WeightsField = "lora"


class GrpoParameters(Adapting, frozen=True, kw_only=True):
    """Group relative policy optimisation with your own reward (arXiv 2402.03300)."""

    method: ClassVar[Method] = "grpo"
    weights: _WeightsField = "lora"
    beta: _Beta = 0.0
    generations: _Generations = 4
    temperature: _Temperature = 1.0
    completion_length: _Completion = 64


class DistillParameters(Adapting, frozen=True, kw_only=True):
    """A teacher's distribution over each answer's tokens is learnt (Hinton et al., 1503.02531)."""

    method: ClassVar[Method] = "distill"
    weights: _WeightsField = "lora"
    softness: Annotated[
        float,
        Meta(gt=0, le=20, description="Temperature at which both distributions are compared."),
    ] = 1.0


class PromptParameters(Measuring, frozen=True, kw_only=True):
    """No training: what the base reaches on your evaluation, as the baseline of all others."""

    method: _MethodField = "sft"
    shots: Annotated[
        int, Meta(ge=0, le=32, description="Rows of train.* shown as examples, for sft; 0: none.")
    ] = 0


class ScriptParameters(_Fields, frozen=True, kw_only=True):
    """The user's own project: one Python file, or any command."""

    entry: Annotated[
        str,
        Meta(max_length=200, description="The .py file to run, inside the project."),
    ] = ""
    args: Annotated[
        list[Annotated[str, Meta(max_length=4096)]],
        Meta(max_length=100, description="Its arguments, each as it is."),
    ] = field(default_factory=list)
    command: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=4096)]],
        Meta(
            max_length=100,
            description="Instead of entry: the command and its arguments, run in the project's "
            "folder, like python -m pkg.train or bash run.sh.",
        ),
    ] = field(default_factory=list)


class Stage(_Fields, frozen=True, kw_only=True):
    """One recipe of a chain."""

    recipe: Annotated[str, Meta(max_length=32)]
    parameters: dict[str, Any] = field(default_factory=dict)
    folder: Annotated[str, Meta(max_length=64, pattern=r"^[A-Za-z0-9_-]*$")] = ""
    """Of the dataset, where this stage's rows lie; empty: at its top."""


class ChainParameters(_Fields, frozen=True, kw_only=True):
    """Recipes one after another, each starting from what the one before it made."""

    stages: Annotated[
        list[Stage],
        Meta(
            min_length=1,
            max_length=8,
            description="Each with recipe, parameters and the folder of the dataset it learns "
            "from, like continue, then sft, then dpo.",
        ),
    ]


_Choices = Annotated[list[int | float | str], Meta(min_length=1, max_length=32)]


class SweepParameters(_Fields, frozen=True, kw_only=True):
    """One recipe with many parameters; the worse half is stopped early, the best is kept."""

    recipe: Annotated[
        Literal["sft", "lora", "full", "dpo", "continue"],
        Meta(description="The recipe that is tried."),
    ] = "lora"
    parameters: Annotated[dict[str, Any], Meta(description="What all trials have in common.")] = (
        field(default_factory=dict)
    )
    space: Annotated[
        dict[str, _Choices],
        Meta(
            min_length=1,
            max_length=8,
            description='Parameters with their choices, like {"rank": [8, 32]}.',
        ),
    ]
    trials: Annotated[
        int, Meta(ge=2, le=64, description="Combinations tried, drawn from the space.")
    ] = 8
    rungs: Annotated[
        int, Meta(ge=1, le=6, description="After each, only the better half goes on.")
    ] = 3


class ArithmeticParameters(Measuring, frozen=True, kw_only=True):
    """Adds, subtracts or merges finished models of one base (task vectors, arXiv 2212.04089)."""

    first: Annotated[float, Meta(ge=-4, le=4, description="Weight of the first model.")] = 1.0
    second: Annotated[
        float, Meta(ge=-4, le=4, description="Weight of the second; negative subtracts it.")
    ] = 0.0
    by: Annotated[
        Literal["linear", "ties"],
        Meta(description="Sum the differences as they are, or by agreement of signs (TIES)."),
    ] = "linear"
    density: Annotated[
        float, Meta(gt=0, le=1, description="Share of each difference that TIES keeps.")
    ] = 0.5


FineTuning = (
    LoraParameters
    | FullParameters
    | SftParameters
    | ContinueParameters
    | DpoParameters
    | RewardParameters
    | GrpoParameters
    | DistillParameters
)
Composed = ChainParameters | SweepParameters
Parameters = FineTuning | PromptParameters | ScriptParameters | Composed | ArithmeticParameters


def why_not_on(parameters: FineTuning, gpus: int) -> str:
    """Why a step can't be cut up for so many GPUs; empty if it can.

    Losses that are means over rows are only then the same for any number of GPUs if each has as
    many of them; those that are sums over tokens need one row in each part.
    """
    rows, parts = parameters.batch_size, gpus * parameters.accumulate
    match parameters.method:
        case "dpo" | "reward":
            fits = rows % parts == 0
        case "grpo":
            assert isinstance(parameters, GrpoParameters | LoraParameters | FullParameters)
            fits = rows % parts == 0 and rows % (gpus * parameters.generations) == 0
        case _:
            fits = rows // gpus >= parameters.accumulate
    if fits:
        return ""
    on = f"{gpus} GPUs" if gpus > 1 else "one GPU"
    groups = " of whole groups of generations" if parameters.method == "grpo" else ""
    even = "" if parameters.method in ("sft", "continue", "distill") else " even"
    return (
        f"batch_size {rows} can't be cut into{even} parts{groups} for {on} and accumulate "
        f"{parameters.accumulate}; raise batch_size, or choose fewer parts"
    )
