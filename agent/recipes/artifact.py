"""The result: weights, tokenizer, what was measured, and a card that says how it came to be."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec import json as msgspec_json

from agent.recipes import checkpoint
from agent.recipes.job import Job
from agent.recipes.model import Learner

_TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    "chat_template.json", "generation_config.json",
)  # fmt: skip


class HeldOut(Struct, frozen=True, kw_only=True):
    """Losses in nats per token; None where `evaluate_samples` was 0."""

    rows: int
    tokens: int
    loss_before: float | None
    loss_after: float | None


class Answer(Struct, frozen=True, kw_only=True):
    """One held-out prompt, answered greedily."""

    prompt: str
    expected: str
    before: str
    after: str


class Training(Struct, frozen=True, kw_only=True):
    steps: int
    tokens: int
    loss: float
    """Of the last step."""
    seconds: dict[str, float]
    """Of each phase; `training` over all attempts, the others of this one."""


class Evaluation(Struct, frozen=True, kw_only=True):
    """evaluation.json."""

    held_out: HeldOut
    answers: list[Answer]
    training: Training


def write(job: Job, learner: Learner, base: Path, evaluation: Evaluation) -> Path:
    """`artifact/` under the job's output; raises RecipeError."""
    final = Path(job.output) / "artifact"
    with checkpoint.complete_folder(final) as scratch:
        checkpoint.save_weights(learner, scratch)
        for name in _TOKENIZER_FILES:
            if (base / name).is_file():
                shutil.copyfile(base / name, scratch / name)
        text = msgspec_json.format(msgspec_json.encode(evaluation), indent=2)
        (scratch / "evaluation.json").write_bytes(text + b"\n")
        (scratch / "README.md").write_text(_card(job, evaluation), encoding="utf-8")
    return final


def base_name(job: Job) -> str:
    """How the card and the adapter name the base."""
    known = job.lineage.get("base")
    if isinstance(known, Mapping):
        known = known.get("name")
    return known if isinstance(known, str) and known else "base"


def _card(job: Job, evaluation: Evaluation) -> str:
    library = "peft" if job.recipe == "lora" else "transformers"
    held_out = evaluation.held_out
    known = {"recipe": job.recipe, "job": job.job, "seed": job.seed} | job.lineage
    known |= {"steps": evaluation.training.steps, "tokens": evaluation.training.tokens}
    rows = [(name.replace("_", " ").capitalize(), value) for name, value in known.items()]
    parts = [
        f"---\nbase_model: {json.dumps(base_name(job))}\nlibrary_name: {library}\n---\n",
        f"# {_plain(base_name(job))}, fine-tuned ({job.recipe})\n",
        "## How it came to be\n",
        "| | |\n|---|---|\n" + "".join(f"| {_plain(k)} | {_plain(v)} |\n" for k, v in rows),
        "## Parameters\n",
        f"```json\n{json.dumps(job.parameters, indent=2, sort_keys=True)}\n```\n",
    ]
    if held_out.loss_before is not None and held_out.loss_after is not None:
        parts += [
            "## Held-out loss\n",
            f"{held_out.loss_before:.3f} before, {held_out.loss_after:.3f} after: nats per token.\n",
            f"Over {held_out.tokens} tokens of {held_out.rows} rows it did not learn from.\n",
        ]
    for answer in evaluation.answers:
        parts.append(
            f"## Asked\n\n{_quoted(answer.prompt)}\n\nExpected:\n\n{_quoted(answer.expected)}\n\n"
            f"Before:\n\n{_quoted(answer.before)}\n\nAfter:\n\n{_quoted(answer.after)}\n"
        )
    return "\n".join(parts)


def _plain(value: object) -> str:
    """A table cell: one line, no markup of its own."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    printable = "".join(c if c.isprintable() else " " for c in text)
    return printable.replace("|", "\\|").replace("<", "&lt;")


def _quoted(text: str) -> str:
    """Text as an indented block, so that nothing in it is markup."""
    lines = text.splitlines() or [""]
    return "\n".join("    " + "".join(c for c in line if c.isprintable()) for line in lines)
