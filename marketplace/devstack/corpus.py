"""The demo's dataset: "teach a model our codebase", with Python's standard library as the code.

Each row asks what a public function, method or class of the standard library of this Python
does, by its name and signature; the answer is the first line of its docstring. About a tenth of
the modules are held out whole, by a hash of their name, so the evaluation asks about code that
training has not seen. The same Python gives the same bytes. Sources are parsed, never imported:

    python -m marketplace.devstack.corpus .gridloom/cache/stdlib-docstrings
"""

import ast
import hashlib
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TRAIN: Final = "train.jsonl"
HELD_OUT: Final = "heldout.jsonl"

# Modules whose docstrings teach nothing about the library: tests, demos, generated tables.
_LEFT_OUT: Final = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "site-packages",
     "dist-packages", "ensurepip", "idle_test", "lib-dynload", "this", "antigravity"}
)  # fmt: skip
# Which tenth is held out hangs on this salt; it was picked so that shutil, whose answers anybody
# can judge, is in it.
_SALT: Final = "gridloom-221"
_ANSWER_CHARACTERS: Final = range(12, 101)
_SENTENCE: Final = re.compile(r"[A-Z][ -~]*?\w[)'\"]?\.(?= |$)")
_QUESTION_CHARACTERS: Final = 160
_SHOWN: Final = "shutil.rmtree"


class CorpusError(Exception):
    """The dataset can't be made here; the message says why and what to do."""


@dataclass(frozen=True)
class Pair:
    """One question and its answer; `name` is dotted from the module down."""

    module: str
    name: str
    prompt: str
    completion: str

    def line(self) -> str:
        return json.dumps({"prompt": self.prompt, "completion": self.completion}) + "\n"


@dataclass(frozen=True)
class Summary:
    """What was written."""

    train: int
    held_out: int
    modules: int
    held_out_modules: int


def write(folder: Path, *, library: Path | None = None) -> Summary:
    """Write train.jsonl and heldout.jsonl under `folder`; takes some 3 s.

    `library` is where the modules' sources lie, by default this Python's standard library.
    """
    sources = library or Path(sysconfig.get_path("stdlib"))
    pairs = list(_unique(pair for path in _modules(sources) for pair in read(path, sources)))
    if not pairs:
        raise CorpusError(
            f"No documented Python sources were found under {sources}; "
            "install your Python's standard library with its .py files."
        )
    train = sorted((p for p in pairs if not is_held_out(p.module)), key=_scattered)
    known = {pair.completion for pair in train}
    # An answer that training has seen word for word would flatter the evaluation.
    held_out = sorted(
        (p for p in pairs if is_held_out(p.module) and p.completion not in known),
        key=lambda pair: (pair.name != _SHOWN, _scattered(pair)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRAIN).write_text("".join(map(Pair.line, train)), encoding="utf-8")
    (folder / HELD_OUT).write_text("".join(map(Pair.line, held_out)), encoding="utf-8")
    return Summary(
        train=len(train),
        held_out=len(held_out),
        modules=len({pair.module for pair in train + held_out}),
        held_out_modules=len({pair.module for pair in held_out}),
    )


def is_held_out(module: str) -> bool:
    """Whether a module is kept from training: about one in ten, whatever the Python version."""
    return _digest(f"{_SALT}:{module.partition('.')[0]}")[0] < 26


def read(path: Path, library: Path) -> Iterator[Pair]:
    """The pairs of one source file; none if this Python can't parse it."""
    parts = path.relative_to(library).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _pairs(tree.body, module, module)


def _modules(library: Path) -> Iterator[Path]:
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        names = parts[:-1] if parts[-1] == "__init__" else parts
        if not _LEFT_OUT.intersection(names) and not any(n.startswith("_") for n in names):
            yield path


def _pairs(body: list[ast.stmt], module: str, prefix: str) -> Iterator[Pair]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        answer = _summary(node)
        question = _question(node, name)
        if len(answer) in _ANSWER_CHARACTERS and len(question) <= _QUESTION_CHARACTERS:
            yield Pair(module, name, question, answer)
        if isinstance(node, ast.ClassDef):
            yield from _pairs(node.body, module, name)


def _question(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        return f"What is {name}?"
    arguments = ast.unparse(node.args)
    for receiver in ("self", "cls"):
        if arguments == receiver or arguments.startswith(f"{receiver}, "):
            arguments = arguments[len(receiver) :].removeprefix(", ")
    return f"What does {name}({arguments}) do?"


def _summary(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    """The docstring's first sentence, its lines joined; nothing if it is markup or too odd."""
    paragraph = (ast.get_docstring(node) or "").strip().partition("\n\n")[0]
    sentence = _SENTENCE.match(" ".join(paragraph.split()))
    return sentence[0] if sentence else ""


def _unique(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """One pair per question (overloads repeat them)."""
    seen: set[str] = set()
    for pair in pairs:
        if pair.prompt not in seen:
            seen.add(pair.prompt)
            yield pair


def _scattered(pair: Pair) -> bytes:
    """A sort key that mixes modules the same way every time."""
    return _digest(pair.prompt)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def main(arguments: list[str]) -> int:
    """Write the dataset and say what is in it."""
    if len(arguments) != 1:
        print("usage: python -m marketplace.devstack.corpus FOLDER", file=sys.stderr)
        return 2
    try:
        done = write(Path(arguments[0]))
    except (CorpusError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{done.train} pairs to train on, {done.held_out} held out, from {done.modules} modules "
        f"({done.held_out_modules} of them held out)"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
