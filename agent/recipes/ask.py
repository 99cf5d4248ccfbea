"""Use a result: `python -m agent.recipes.ask ARTIFACT [--base FOLDER] [--tokens N] QUESTION…`.

Prints the greedy answer to each question. An adapter needs the base that it was trained on; a
fully trained model stands alone.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from agent.recipes.catalog import Exit
from agent.recipes.checkpoint import ADAPTER
from agent.recipes.data import Encoder, Row
from agent.recipes.evaluate import answer
from agent.recipes.job import RecipeError
from agent.recipes.model import Learner, load_tokenizer, load_weights


def open_artifact(artifact: Path, base: Path | None = None) -> Learner:
    """The model in an artifact's folder, ready to answer; raises RecipeError."""
    adapter: Any = None
    if (artifact / ADAPTER).is_file():
        if base is None:
            raise RecipeError(
                Exit.INPUT, "this artifact is an adapter; name the base it was trained on (--base)"
            )
        from peft import PeftModel

        model = load_weights(base, torch.float32)
        adapter = PeftModel.from_pretrained(model, str(artifact), local_files_only=True)
    else:
        model = load_weights(artifact, torch.float32)
    model.eval()
    return Learner(
        model=model,
        adapter=adapter,
        tokenizer=load_tokenizer(artifact),
        device=torch.device("cpu"),
        bf16=False,
        artifact_dtype=torch.float32,
    )


def ask(learner: Learner, question: str, *, most: int = 48) -> str:
    """The greedy answer, at most `most` tokens."""
    encoder = Encoder(learner.tokenizer, max_length=4096)
    with torch.inference_mode():
        return answer(learner, encoder.prompt(Row(prompt=question, completion=" ")), most=most)


def main(arguments: list[str]) -> int:
    """Answer each question on a line of its own."""
    parser = argparse.ArgumentParser(prog="python -m agent.recipes.ask")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("questions", nargs="+")
    wanted = parser.parse_args(arguments)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    warnings.filterwarnings("ignore", category=FutureWarning)  # peft's and transformers' affairs
    try:
        learner = open_artifact(wanted.artifact, wanted.base)
        for question in wanted.questions:
            print(ask(learner, question, most=wanted.tokens), flush=True)  # noqa: T201  # its output
    except RecipeError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
