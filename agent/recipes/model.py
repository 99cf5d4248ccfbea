"""The model: how it is loaded, what of it is trained, and how it is multiplied.

The untyped edge of torch, transformers and peft lies here and in the modules that use it;
transformers' and peft's objects are `Any`.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import logging as transformers_logging

from agent.recipes.catalog import ALL_LINEAR, Exit, FineTuning, LoraParameters
from agent.recipes.job import RecipeError, read_json

# Their logits are the output embedding's product with the last hidden state and nothing else
# (no soft cap, no scale), so it can be taken for the learnt tokens alone: with a vocabulary of
# 49,152 over 576 dimensions that is a fifth of SmolLM2's work at every other token saved.
_PLAIN_HEADS: Final = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})


@dataclass(frozen=True)
class Learner:
    """A model ready to be trained. `adapter` is peft's wrapper, None if all weights learn."""

    model: Any
    adapter: Any
    tokenizer: Any
    device: torch.device
    bf16: bool
    artifact_dtype: torch.dtype

    def trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The weights that learn, each once, by name."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def arithmetic(self) -> AbstractContextManager[Any]:
        """bfloat16 products where the weights are kept in float32 to learn."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.bf16 and self.adapter is None
        )

    def hidden(self, ids: Tensor, at: Tensor) -> Tensor:
        """What the output layer reads at each token where `at` (the shape of `ids`) is true.

        Rows are padded at their end; tokens never look ahead, so padding needs no mask.
        """
        with self.arithmetic():
            if not self._has_plain_head():
                found = self.model(input_ids=ids, use_cache=False).logits
            else:
                found = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        kept: Tensor = found[at]
        return kept

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits, in float32, of what `hidden` found."""
        if self._has_plain_head():
            with self.arithmetic():
                hidden = self.model.get_output_embeddings()(hidden)
        return hidden.float()

    def round_to_artifact(self) -> None:
        """Give a fully trained model its base's precision again, before it is measured."""
        if self.adapter is None:
            self.model.to(self.artifact_dtype)
            self.model.config.dtype = self.artifact_dtype

    def _has_plain_head(self) -> bool:
        return self.model.config.model_type in _PLAIN_HEADS


def load(base: Path, parameters: FineTuning, *, seed: int, base_name: str) -> Learner:
    """The base at `base`, with a fresh adapter if the parameters are LoRA's.

    Raises RecipeError. Never runs code from the base, never unpickles.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = parameters.precision != "fp32" and (
        parameters.precision == "bf16" or _multiplies_bf16(device)
    )
    adapts = isinstance(parameters, LoraParameters)
    kept = torch.bfloat16 if bf16 and adapts else torch.float32
    config = read_json(base / "config.json", "base")
    stored = _dtype(config.get("dtype") or config.get("torch_dtype"))
    model = load_weights(base, kept).to(device)
    adapter = None
    torch.manual_seed(seed)
    if isinstance(parameters, LoraParameters):
        adapter = _adapted(model, parameters, base_name)
    return Learner(model, adapter, load_tokenizer(base), device, bf16, stored)


def load_weights(base: Path, dtype: torch.dtype) -> Any:
    """The weights of a model's folder, in `dtype`; raises RecipeError."""
    if not any(base.glob("*.safetensors")):
        raise RecipeError(
            Exit.INPUT, "the base has no *.safetensors weights; convert it (pickles are refused)"
        )
    from transformers import AutoModelForCausalLM

    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RecipeError(Exit.INPUT, f"the base can't be loaded: {_brief(error)}") from error
    model, report = loaded
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise RecipeError(
            Exit.INPUT, f"the base's weights are not whole: {missing[0]} is missing or misshapen"
        )
    return model


def load_tokenizer(base: Path) -> Any:
    """The tokenizer of a model's folder; raises RecipeError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise RecipeError(
            Exit.INPUT, f"the base's tokenizer can't be loaded: {_brief(error)}"
        ) from error


def _adapted(model: Any, parameters: LoraParameters, base_name: str) -> Any:
    """peft's wrapper; `model` itself holds the adapter's layers from now on."""
    from peft import LoraConfig, get_peft_model

    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    }
    targets: str | list[str] = parameters.targets
    if parameters.targets == [ALL_LINEAR]:
        targets = sorted(linear)
    for name in targets:
        if name not in linear:
            raise RecipeError(
                Exit.PARAMETERS,
                f"targets: this base has no layer {name!r}; it has {', '.join(sorted(linear))}",
            )
    wrapper = get_peft_model(
        model,
        LoraConfig(
            r=parameters.rank,
            lora_alpha=parameters.alpha,
            lora_dropout=parameters.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        ),
    )
    wrapper.peft_config["default"].base_model_name_or_path = base_name
    return wrapper


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are done by the hardware (2.7 times as fast on a Zen 4 core)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _dtype(name: object) -> torch.dtype:
    """The base's own precision, in which a fully trained model is handed back."""
    found = getattr(torch, str(name), None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _brief(error: Exception) -> str:
    """The first line of what a library said."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
