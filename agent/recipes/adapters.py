"""Adapters: what one makes of its base, and two as one.

A job may start from an adapter. Its update is then added to the base's weights before anything reads
them, so that every recipe sees a whole model: what `dpo` compares with, and what is measured before,
is the model that the adapter made. A new adapter on top of that fits the base only together with
the one before it, so both are handed over as one: their updates are products of narrow matrices,
which side by side are one such product, exactly.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agent.recipes import checkpoint
from agent.recipes.catalog import Exit
from agent.recipes.job import RecipeError, read_json
from agent.recipes.model import load_weights

INPUT: Final = "adapter"
"""The job's input that its base is to be taken with."""
_CONFIG: Final = "adapter_config.json"
_A, _B = ".lora_A.weight", ".lora_B.weight"


def merged(base: Path, adapter: Path) -> Any:
    """A base with an adapter's update in its weights, in float32; raises RecipeError."""
    from peft import PeftModel

    try:
        found = PeftModel.from_pretrained(
            load_weights(base, torch.float32), str(adapter), local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RecipeError(
            Exit.INPUT, f"the adapter does not fit this base: {str(error).splitlines()[0][:200]}"
        ) from error
    return found.merge_and_unload()


def join(before: Path, folder: Path) -> None:
    """Makes the adapter in `folder` one of it and the one before; raises RecipeError for one that
    is no plain LoRA."""
    parts = [_read(before), _read(folder)]
    rank = sum(part.rank for part in parts)
    weights: dict[str, torch.Tensor] = {}
    for layer in sorted(parts[0].layers | parts[1].layers):
        there = [part for part in parts if layer in part.layers]
        down = torch.cat([part.weights[layer + _A] for part in there])
        up = torch.cat([part.weights[layer + _B] * part.scale for part in there], dim=1)
        # All layers are of one rank: where one of the two has not learnt, its part is nothing.
        missing = rank - down.shape[0]
        weights[layer + _A] = torch.nn.functional.pad(down, (0, 0, 0, missing)).contiguous()
        weights[layer + _B] = torch.nn.functional.pad(up, (0, missing)).contiguous()
    targets = sorted({name for part in parts for name in part.targets})
    known = {**parts[1].config, "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / _CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(known), indent=2))
    save_file(weights, folder / checkpoint.ADAPTER, metadata={"format": "pt"})


class _Adapter(msgspec.Struct, frozen=True):
    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]

    @property
    def rank(self) -> int:
        return int(self.config["r"])

    @property
    def scale(self) -> float:
        return float(self.config["lora_alpha"]) / self.rank

    @property
    def targets(self) -> list[str]:
        return list(self.config["target_modules"])

    @property
    def layers(self) -> set[str]:
        return {name.removesuffix(_A) for name in self.weights if name.endswith(_A)}


def _read(folder: Path) -> _Adapter:
    config = read_json(folder / _CONFIG, "adapter")
    try:
        weights = load_file(folder / checkpoint.ADAPTER)
    except (OSError, SafetensorError) as error:
        raise RecipeError(Exit.INPUT, f"the adapter can't be read: {error}") from None
    found = _Adapter(config, weights)
    pairs = {layer + end for layer in found.layers for end in (_A, _B)}
    if pairs != set(weights) or any(config.get(odd) for odd in ("use_rslora", "use_dora")):
        raise RecipeError(
            Exit.INPUT, "the adapter is no plain LoRA; go on from it with all weights (full)"
        )
    return found
