"""The model: how it is loaded, what of it is trained, and how it is multiplied.

The untyped edge of torch, transformers and peft lies here and in the modules that use it;
transformers' and peft's objects are `Any`.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import logging as transformers_logging

from agent.recipes.catalog import Exit
from agent.recipes.job import RecipeError, read_json
from agent.recipes.parameters import ALL_LINEAR, Adapting, FineTuning, Measuring

# Their logits are the output embedding's product with the last hidden state and nothing else
# (no soft cap, no scale), so it can be taken for the learnt tokens alone: with a vocabulary of
# 49,152 over 576 dimensions that is a fifth of SmolLM2's work at every other token saved.
_PLAIN_HEADS: Final = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})


# What transformers calls the head of a model that scores.
_SCORE: Final = "score"


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model ready to be trained. `adapter` is peft's wrapper, None if all weights learn."""

    model: Any
    adapter: Any
    tokenizer: Any
    device: torch.device
    bf16: bool
    kept: torch.dtype
    """What the weights are kept in."""
    artifact_dtype: torch.dtype

    def trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The weights that learn, each once, by name."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    @property
    def whole(self) -> Any:
        """What is trained and called: peft's wrapper if there is one."""
        return self.model if self.adapter is None else self.adapter

    def arithmetic(self) -> AbstractContextManager[Any]:
        """bfloat16 products where the weights are kept in float32 to learn."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.bf16 and self.kept == torch.float32
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


def load(base: Path, parameters: Measuring, *, seed: int, base_name: str) -> Learner:
    """The base at `base`, with a fresh adapter if an adapter is what learns.

    For `reward` it has a fresh head of one score in place of the words. Raises RecipeError. Never
    runs code from the base, never unpickles.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = _device()
    bf16 = parameters.precision != "fp32" and (
        parameters.precision == "bf16" or _multiplies_bf16(device)
    )
    # Only weights that learn need more than the precision they are multiplied in.
    learns_all = isinstance(parameters, FineTuning) and parameters.weights == "full"
    kept = torch.bfloat16 if bf16 and not learns_all else torch.float32
    config = read_json(base / "config.json", "base")
    stored = stored_dtype(config)
    tokenizer = load_tokenizer(base)
    scores = isinstance(parameters, FineTuning) and parameters.method == "reward"
    torch.manual_seed(seed)
    model = load_weights(base, kept, scores=scores).to(device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    adapter = None
    torch.manual_seed(seed)
    adapts = isinstance(parameters, FineTuning) and parameters.weights == "lora"
    if adapts and isinstance(parameters, Adapting):
        adapter = _adapted(model, parameters, base_name, scores=scores)
    return Learner(
        model=model,
        adapter=adapter,
        tokenizer=tokenizer,
        device=device,
        bf16=bf16,
        kept=kept,
        artifact_dtype=stored,
    )


def load_weights(base: Path, dtype: torch.dtype, *, scores: bool = False) -> Any:
    """The weights of a model's folder, in `dtype`; raises RecipeError.

    With `scores`, its words' head is replaced by a fresh one of a single score.
    """
    if not any(base.glob("*.safetensors")):
        raise RecipeError(
            Exit.INPUT, "the base has no *.safetensors weights; convert it (pickles are refused)"
        )
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    try:
        loaded: Any = kind.from_pretrained(
            base,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **({"num_labels": 1} if scores else {}),
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RecipeError(Exit.INPUT, f"the base can't be loaded: {_brief(error)}") from error
    model, report = loaded
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if scores:
        missing = [name for name in missing if not name.startswith(_SCORE)]
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


def _adapted(model: Any, parameters: Adapting, base_name: str, *, scores: bool) -> Any:
    """peft's wrapper; `model` itself holds the adapter's layers from now on."""
    from peft import LoraConfig, get_peft_model

    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    } - {_SCORE}
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
            task_type="SEQ_CLS" if scores else "CAUSAL_LM",
        ),
    )
    wrapper.peft_config["default"].base_model_name_or_path = base_name
    return wrapper


def _device() -> torch.device:
    """The GPU of this rank, as torchrun and Ray number them on a node; else the processor."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def peak_memory() -> int:
    """Bytes at this process's peak: the device's, or on a CPU the process's."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def device_name(device: torch.device) -> str:
    """What the device is, for a person."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return "cpu"


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are done by the hardware (2.7 times as fast on a Zen 4 core)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def stored_dtype(config: Mapping[str, object]) -> torch.dtype:
    """A base's own precision, in which a fully trained model is handed back."""
    found = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _brief(error: Exception) -> str:
    """The first line of what a library said."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
