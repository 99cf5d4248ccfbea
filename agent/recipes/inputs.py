"""What each recipe reads: folders at /job/inputs/<name>. Pure: msgspec and the standard library."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct


class Input(Struct, frozen=True):
    """A folder that a recipe reads at /job/inputs/<name>."""

    name: str
    required: bool
    help: str


_BASE: Final = Input("base", True, "a model in Hugging Face's layout, with safetensors weights")
_TEACHER: Final = Input("other", True, "the teacher: a second model, of the same tokenizer")
_REWARD: Final = Input(
    "script", True, "a folder with reward.py: def reward(prompt, completion, row) -> float"
)
_MIX: Final = Input(
    "mix", False, "a dataset of what the base should not forget, blended in by `mix`"
)


def _rows(of: str) -> Input:
    return Input("dataset", True, f"train.* and heldout.* (jsonl, parquet or txt); rows are {of}")


_ANSWERS: Final = _rows("{prompt, completion} or {messages}")
_PREFERENCES: Final = _rows("{prompt, chosen, rejected}")
_PROMPTS: Final = _rows("{prompt} and what the reward looks at")
_TEXT: Final = _rows("{text}, or the paragraphs of a .txt file")
_ANY: Final = _rows("those of the method")
_MAYBE_REWARD: Final = Input("script", False, _REWARD.help + ", for the method grpo")

INPUTS: Final[Mapping[str, tuple[Input, ...]]] = {
    "prompt": (_BASE, _ANY, _MAYBE_REWARD),
    "sft": (_BASE, _ANSWERS, _MIX),
    "dpo": (_BASE, _PREFERENCES, _MIX),
    "reward": (_BASE, _PREFERENCES, _MIX),
    "grpo": (_BASE, _PROMPTS, _REWARD, _MIX),
    "lora": (_BASE, _ANY, _MAYBE_REWARD, _MIX),
    "full": (_BASE, _ANY, _MAYBE_REWARD, _MIX),
    "continue": (_BASE, _TEXT, _MIX),
    "distill": (_BASE, _TEACHER, _ANSWERS, _MIX),
    "sweep": (_BASE, _ANY, _MIX),
    "arithmetic": (
        _BASE,
        Input("other", True, "a model or an adapter made from this base"),
        Input("third", False, "another one, to merge with it"),
        Input("dataset", False, "heldout.* and domains/* to measure the result on"),
    ),
    "chain": (_BASE, _ANY, _MAYBE_REWARD, _MIX),
    "script": (
        Input("script", True, "the project's folder"),
        Input("dataset", False, "any files, at /job/inputs/dataset"),
        Input("base", False, "a model, at /job/inputs/base"),
    ),
}
