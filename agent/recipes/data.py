"""The dataset: rows read, put in an order, and turned into tokens. No torch here.

A dataset is a folder with `train.jsonl` and `heldout.jsonl`. A row is
`{"prompt": "…", "completion": "…"}` or `{"messages": [{"role": "user", "content": "…"}, …]}`
whose last message is the assistant's. Training learns the completion, or what the assistant
says; the rest is read only.

The order of rows is a pure function of (seed, step, shard), so a run that resumes, or goes on
with another number of workers, sees the rows that it would have seen.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from agent.recipes.catalog import Exit
from agent.recipes.job import RecipeError

TRAIN: Final = "train.jsonl"
HELD_OUT: Final = "heldout.jsonl"

# Rows of like length are put together within so many batches: little padding, still random.
_WINDOW: Final = 16


class Message(Struct, frozen=True):
    role: str
    content: str


class Row(Struct, frozen=True):
    """One example; exactly one of the two forms is filled in."""

    prompt: str = ""
    completion: str = ""
    messages: tuple[Message, ...] = ()

    @property
    def length(self) -> int:
        """Characters, as a measure of tokens."""
        said = sum(len(message.content) for message in self.messages)
        return len(self.prompt) + len(self.completion) + said

    def chat(self) -> list[dict[str, str]]:
        """As messages, whichever form it has."""
        if self.messages:
            return [{"role": m.role, "content": m.content} for m in self.messages]
        return [
            {"role": "user", "content": self.prompt},
            {"role": "assistant", "content": self.completion},
        ]


@dataclass(frozen=True)
class Encoded:
    """A row in tokens; `learn[i]` says whether token i is to be predicted."""

    ids: list[int]
    learn: list[bool]


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any
    eos_token: Any
    eos_token_id: Any

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, Any]: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


def read(folder: Path, name: str) -> list[Row]:
    """All rows of a file; raises RecipeError naming the first bad line."""
    path = folder / name
    try:
        with path.open("rb") as file:
            rows = [
                _row(line, f"{name} line {number}")
                for number, line in enumerate(file, start=1)
                if line.strip()
            ]
    except OSError as error:
        raise RecipeError(
            Exit.INPUT, f"the dataset has no readable {name} ({error.strerror}); add it"
        ) from None
    if not rows:
        raise RecipeError(Exit.INPUT, f"{name} has no rows; put at least one JSON line into it")
    return rows


def spread(total: int, wanted: int) -> list[int]:
    """`wanted` indexes evenly over `total`, the first being 0: the same subset every time."""
    count = min(total, wanted)
    return [index * total // count for index in range(count)]


class Order:
    """Which rows each step reads."""

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._size = min(batch_size, len(lengths))
        self._seed = seed
        self._epoch = -1
        self._batches: list[list[int]] = []

    def rows(self, step: int, *, shard: int = 0, shards: int = 1) -> list[int]:
        """The rows of `step` (from 0) that shard `shard` of `shards` reads."""
        epoch, index = divmod(step, len(self._lengths) // self._size)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[index][shard::shards]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        """An epoch's batches: each row at most once, the odd rest left for other epochs."""
        chance = random.Random(f"{self._seed}:{epoch}")  # noqa: S311  # no secret hangs on it
        rows = list(range(len(self._lengths)))
        chance.shuffle(rows)
        batches: list[list[int]] = []
        for start in range(0, len(rows), self._size * _WINDOW):
            window = rows[start : start + self._size * _WINDOW]
            window = window[: len(window) // self._size * self._size]
            window.sort(key=lambda row: self._lengths[row])
            cut = [window[i : i + self._size] for i in range(0, len(window), self._size)]
            chance.shuffle(cut)
            batches += cut
        return batches


class Encoder:
    """Rows to tokens, in the base's chat format if it has one."""

    def __init__(self, tokenizer: Tokenizer, *, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        empty = list(tokenizer("")["input_ids"])
        # What this tokenizer puts before every text; chat templates write theirs themselves.
        self._start = [i for i in empty if i != tokenizer.eos_token_id]

    def encode(self, row: Row) -> Encoded:
        """The row's tokens, cut to `max_length`; it may have nothing left to learn then."""
        ids: list[int] = []
        learn: list[bool] = []
        for text, wanted in self._segments(row):
            found = self._ids(text)
            ids += found
            learn += [wanted] * len(found)
        if not self._tokenizer.chat_template:
            ids = self._start + ids
            learn = [False] * len(self._start) + learn
        return Encoded(ids[: self._max_length], learn[: self._max_length])

    def prompt(self, row: Row) -> list[int]:
        """What stands before the row's last answer, as it is put to the model."""
        segments = self._segments(row)[:-1]
        start = [] if self._tokenizer.chat_template else self._start
        ids = start + [i for text, _ in segments for i in self._ids(text)]
        return ids[: self._max_length]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _segments(self, row: Row) -> list[tuple[str, bool]]:
        """The row's text in pieces, each with whether it is to be learnt; the last one is."""
        end = str(self._tokenizer.eos_token or "")
        if self._tokenizer.chat_template:
            return _turns(self._render, row.chat(), end)
        if row.messages:
            raise RecipeError(
                Exit.INPUT,
                "this base has no chat template: use rows of prompt and completion, "
                "or an instruction-tuned base",
            )
        return [(row.prompt, False), (row.completion + end, True)]

    def _render(self, messages: list[dict[str, str]], ask: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False)
        )


def _turns(render: Any, messages: list[dict[str, str]], end: str) -> list[tuple[str, bool]]:
    """A conversation cut at each of the assistant's turns.

    Templates that rewrite earlier turns (some drop their thoughts) leave only the last to learn.
    """
    segments: list[tuple[str, bool]] = []
    done = ""
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for index in answers:
        asked: str = render(messages[:index], True)
        answered: str = render(messages[: index + 1], False)
        if not answered.startswith(asked):
            raise RecipeError(
                Exit.INPUT,
                "the base's chat template changes a conversation when it is answered; "
                "use another base",
            )
        if not asked.startswith(done):
            segments, done = [], ""
        segments.append((asked[len(done) :], False))
        answer = answered[len(asked) :]
        # Most templates add a line break after the end mark, which nobody needs to learn.
        kept = answer.rstrip() if end and answer.rstrip().endswith(end) else answer
        segments.append((kept, True))
        done = asked + kept
    return segments


def _row(line: bytes, where: str) -> Row:
    try:
        row = msgspec.json.decode(line, type=Row)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecipeError(Exit.INPUT, f"{where}: {error}") from None
    if row.messages:
        if row.messages[-1].role != "assistant" or row.prompt or row.completion:
            raise RecipeError(
                Exit.INPUT, f"{where}: messages must end with the assistant's, and stand alone"
            )
    elif not row.prompt or not row.completion:
        raise RecipeError(
            Exit.INPUT, f"{where}: give prompt and completion (not empty), or messages"
        )
    return row
