"""The result: weights, tokenizer, what was measured, and a card that says how it came to be."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from msgspec import json as msgspec_json
from msgspec.structs import replace
from safetensors.torch import save_file

from agent.recipes import adapters, checkpoint, verdict
from agent.recipes.job import Job, read_json
from agent.recipes.model import Learner, stored_dtype
from agent.recipes.verdict import Domain, Evaluation

_TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    "chat_template.json", "generation_config.json",
)  # fmt: skip


def write(job: Job, learner: Learner, base: Path, evaluation: Evaluation, final: Path) -> None:
    """The folder `final`: weights, tokenizer, evaluation, card; raises RecipeError."""
    with checkpoint.complete_folder(final) as scratch:
        checkpoint.save_weights(learner, scratch)
        if learner.adapter is not None and adapters.INPUT in job.inputs:
            adapters.join(Path(job.inputs[adapters.INPUT]), scratch)
        copy_tokenizer(base, scratch)
        describe(job, evaluation, scratch)


@contextmanager
def start(job: Job) -> Iterator[Job]:
    """The job, whose base is for this long what its adapter, if it has one, makes of it.

    Raises RecipeError.
    """
    if adapters.INPUT not in job.inputs:
        yield job
        return
    # Each process of a node makes its own.
    made = Path(job.output) / f".start-{os.environ.get('LOCAL_RANK', '0')}"
    try:
        _merge(job.folder("base"), Path(job.inputs[adapters.INPUT]), made)
        yield replace(job, inputs={**job.inputs, "base": str(made)})
    finally:
        shutil.rmtree(made, ignore_errors=True)


def whole(base: Path, made: Path, final: Path) -> None:
    """A finished model as a base to go on from: an adapter is merged into what it adapts.

    Raises RecipeError.
    """
    if not (made / checkpoint.ADAPTER).is_file():
        made.rename(final)
        return
    _merge(base, made, final)


def _merge(base: Path, adapter: Path, final: Path) -> None:
    config = read_json(base / "config.json", "base")
    write_model(adapters.merged(base, adapter), base, stored_dtype(config), final)


def write_model(model: Any, base: Path, dtype: torch.dtype, final: Path) -> None:
    """A whole model with its base's tokenizer; raises RecipeError."""
    model.to(dtype)
    model.config.dtype = dtype
    with checkpoint.complete_folder(final) as scratch:
        model.config.save_pretrained(scratch)
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        save_file(weights, scratch / checkpoint.WEIGHTS, metadata={"format": "pt"})
        copy_tokenizer(base, scratch)


def copy_tokenizer(base: Path, folder: Path) -> None:
    """The tokenizer's files, as they are."""
    for name in _TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def describe(job: Job, evaluation: Evaluation, folder: Path) -> None:
    """evaluation.json and the model card."""
    text = msgspec_json.format(msgspec_json.encode(evaluation), indent=2)
    (folder / verdict.FILE).write_bytes(text + b"\n")
    adapts = (folder / checkpoint.ADAPTER).is_file()
    (folder / "README.md").write_text(_card(job, evaluation, adapts=adapts), encoding="utf-8")


def base_name(job: Job) -> str:
    """How the card and the adapter name the base."""
    known = job.lineage.get("base")
    if isinstance(known, Mapping):
        known = known.get("name")
    return known if isinstance(known, str) and known else "base"


def _card(job: Job, evaluation: Evaluation, *, adapts: bool) -> str:
    library = "peft" if adapts else "transformers"
    training = evaluation.training
    known = {"recipe": job.recipe, "job": job.job, "seed": job.seed} | job.lineage
    if training.steps:
        known |= {"steps": training.steps, "tokens": training.tokens, "device": training.device}
    rows = [(name.replace("_", " ").capitalize(), value) for name, value in known.items()]
    parts = [
        f"---\nbase_model: {json.dumps(base_name(job))}\nlibrary_name: {library}\n---\n",
        f"# {_plain(base_name(job))}, {'fine-tuned' if training.steps else 'as'} ({job.recipe})\n",
        "## How it came to be\n",
        "| | |\n|---|---|\n" + "".join(f"| {_plain(k)} | {_plain(v)} |\n" for k, v in rows),
        "## Parameters\n",
        f"```json\n{json.dumps(job.parameters, indent=2, sort_keys=True)}\n```\n",
        *_measured(evaluation.domains),
    ]
    parts += [
        f"## Asked\n\n{_quoted(answer.prompt)}\n\nExpected:\n\n{_quoted(answer.expected)}\n\n"
        f"Before:\n\n{_quoted(answer.before)}\n\nAfter:\n\n{_quoted(answer.after)}\n"
        for answer in evaluation.answers
    ]
    return "\n".join(parts)


def _measured(domains: Sequence[Domain]) -> list[str]:
    """A table of what was measured on rows that it did not learn from."""
    if not domains:
        return []
    lines = [
        f"| {_plain(one.name)} | {one.measure} | {_figure(one.before)} | {_figure(one.after)} "
        f"| {one.rows} | {one.verdict} |\n"
        for one in domains
    ]
    head = "| | measure | before | after | rows | |\n|---|---|---|---|---|---|\n"
    return [
        "## Held-out rows\n",
        head + "".join(lines),
        f"Losses are nats per token. Worse by more than {domains[0].margin:g} of it: dropped.\n",
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _plain(value: object) -> str:
    """A table cell: one line, no markup of its own."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    printable = "".join(c if c.isprintable() else " " for c in text)
    return printable.replace("|", "\\|").replace("<", "&lt;")


def _quoted(text: str) -> str:
    """Text as an indented block, so that nothing in it is markup."""
    lines = text.splitlines() or [""]
    return "\n".join("    " + "".join(c for c in line if c.isprintable()) for line in lines)
