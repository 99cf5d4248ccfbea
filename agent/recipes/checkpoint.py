"""Checkpoints: `checkpoint-<step>/`, complete as soon as it has its name.

Everything is safetensors or JSON; nothing is ever unpickled. A folder is written under a dotted
name, flushed to the disk, and renamed, so the agent sees all of it or none.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agent.recipes.catalog import Exit
from agent.recipes.evaluate import Measured
from agent.recipes.job import RecipeError
from agent.recipes.model import Learner

ADAPTER: Final = "adapter_model.safetensors"
WEIGHTS: Final = "model.safetensors"
_OPTIMIZER: Final = "optimizer.safetensors"
_STATE: Final = "state.json"
_TRAINER_STATE: Final = "trainer_state.json"
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")


class State(Struct, kw_only=True):
    """Where a run is; with the weights and the optimiser, all it needs to go on."""

    recipe: str
    parameters: dict[str, object]
    seed: int
    step: int = 0
    """Steps done."""
    tokens: int = 0
    """Tokens read by them."""
    seconds: float = 0.0
    """Time spent in them, over all attempts."""
    loss: float = 0.0
    """Of the last step."""
    before: Measured | None = None


def save(
    final: Path,
    learner: Learner,
    optimizer: Any,
    state: State,
    *,
    also: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write the checkpoint `final`, unless it is there already; raises RecipeError."""
    if final.exists():
        return final
    known = {} if optimizer is None else optimizer.state
    moments = {
        f"{name}.{moment}": known[parameter][moment]
        for name, parameter in learner.trained()
        for moment in _MOMENTS
        if parameter in known
    }
    with complete_folder(final) as scratch:
        save_weights(learner, scratch)
        save_file(moments, scratch / _OPTIMIZER)
        (scratch / _STATE).write_bytes(msgspec.json.encode(state))
        # What transformers' Trainer must find to go on from a folder.
        (scratch / _TRAINER_STATE).write_text(
            json.dumps({"global_step": state.step, "train_batch_size": 1})
        )
        also(scratch)
    return final


def restore_state(folder: Path, expected: State) -> State:
    """Where the run was; raises RecipeError if it isn't whole, or had other parameters."""
    with _understood(folder):
        state = msgspec.json.decode((folder / _STATE).read_bytes(), type=State)
    same = (state.recipe, state.parameters, state.seed)
    if same != (expected.recipe, expected.parameters, expected.seed):
        raise _unusable(folder, "it was made by a run with other parameters")
    return state


def restore_weights(folder: Path, learner: Learner) -> None:
    """Put a checkpoint's weights in place; raises RecipeError."""
    with _understood(folder):
        _restore_weights(folder, learner)


def restore_optimizer(folder: Path, learner: Learner, optimizer: Any, state: State) -> None:
    """Put a checkpoint's moments in place; raises RecipeError."""
    with _understood(folder):
        moments = load_file(folder / _OPTIMIZER, device=str(learner.device))
    for name, parameter in learner.trained():
        found = {moment: moments.get(f"{name}.{moment}") for moment in _MOMENTS}
        if any(value is None or value.shape != parameter.shape for value in found.values()):
            raise _unusable(folder, f"its optimiser doesn't fit the weight {name}")
        step = torch.tensor(float(state.step), device=parameter.device)
        optimizer.state[parameter] = {"step": step, **found}


def save_weights(learner: Learner, folder: Path) -> None:
    """What was trained, as transformers and peft read it: the adapter, or the whole model."""
    if learner.adapter is None:
        learner.model.config.save_pretrained(folder)
        weights = {name: parameter.detach() for name, parameter in learner.trained()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        return
    learner.adapter.peft_config["default"].save_pretrained(folder)
    save_file(_adapter_weights(learner), folder / ADAPTER, metadata={"format": "pt"})


@contextmanager
def _understood(folder: Path) -> Iterator[None]:
    """What goes wrong while a checkpoint is read, as a RecipeError."""
    try:
        yield
    except FileNotFoundError as error:
        raise _unusable(folder, f"it has no {Path(str(error.filename)).name}") from None
    except (OSError, SafetensorError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unusable(folder, str(error)) from None


@contextmanager
def complete_folder(final: Path) -> Iterator[Path]:
    """A folder to write in, which takes the name `final` once all of it is on the disk."""
    scratch = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        yield scratch
        for path in sorted(scratch.rglob("*")):
            # Safetensors makes 0600; the agent may have another uid.
            path.chmod(0o755 if path.is_dir() else 0o644)
            _flush(path)
        _flush(scratch)
        if final.exists():
            shutil.rmtree(final)
        scratch.rename(final)
        _flush(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise RecipeError(
            Exit.DISK, f"{final} can't be written ({error}); book more disk for the job"
        ) from error


def linked(source: str, target: str) -> None:
    """The same file by another name, or a copy where it lies on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _adapter_weights(learner: Learner) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    found: Mapping[str, torch.Tensor] = get_peft_model_state_dict(
        learner.adapter, save_embedding_layers=False
    )
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def _restore_weights(folder: Path, learner: Learner) -> None:
    if learner.adapter is None:
        weights = dict(learner.trained())
        found = load_file(folder / WEIGHTS)
    else:
        weights = dict(_adapter_weights(learner))  # type: ignore[arg-type]  # names and shapes
        found = load_file(folder / ADAPTER)
    if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in weights.items()}:
        raise _unusable(folder, "its weights don't fit this base and these parameters")
    with torch.no_grad():
        if learner.adapter is None:
            for name, parameter in weights.items():
                parameter.copy_(found[name])
        else:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(learner.adapter, found)


def _unusable(folder: Path, why: str) -> RecipeError:
    return RecipeError(
        Exit.INPUT,
        f"the checkpoint {folder.name} can't be resumed from: {why}; "
        "resume from an earlier one or start anew",
    )
