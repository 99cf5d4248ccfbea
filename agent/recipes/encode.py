"""Rows to tokens, and which of them are to be learnt. No torch here.

Training learns the completion, or what the assistant says; the rest is read only. Where the base
has a chat template, rows are put into it, whichever form they have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agent.recipes.catalog import Exit
from agent.recipes.formats import Answered, Preferred, Prompt, Row, Said, Text
from agent.recipes.job import RecipeError
from agent.recipes.rows import chat, turns

# Of a text without a question, so much is given to the model to go on from.
_OPENING: Final = 16


@dataclass(frozen=True)
class Encoded:
    """A row in tokens; `learn[i]` says whether token i is to be predicted."""

    ids: list[int]
    learn: list[bool]


@dataclass(frozen=True)
class Pair:
    """A preference in tokens."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any
    eos_token: Any
    eos_token_id: Any

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, Any]: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


class Encoder:
    """Rows to tokens, in the base's chat format if it has one."""

    def __init__(
        self, tokenizer: Tokenizer, *, max_length: int, shown: Sequence[Answered] = ()
    ) -> None:
        """`shown`: examples that stand before each answered row, and are never learnt."""
        self._tokenizer = tokenizer
        self._shown = [message for row in shown for message in chat(row)]
        self._max_length = max_length
        empty = list(tokenizer("")["input_ids"])
        # What this tokenizer puts before every text; chat templates write theirs themselves.
        self._start = [i for i in empty if i != tokenizer.eos_token_id]

    def encode(self, row: Row) -> Encoded:
        """The row's tokens, cut to `max_length`; it may have nothing left to learn then."""
        if isinstance(row, Text):
            found = self.document(row)[: self._max_length]
            return Encoded(found, [True] * len(found))
        assert isinstance(row, Answered), "the others are no single answer"
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
        said = Answered(prompt=row.prompt, completion="?") if isinstance(row, Prompt) else row
        if isinstance(said, Preferred):
            said = _answered(said.prompt, said.chosen)
        if isinstance(said, Text):
            return self.document(said)[: min(self._max_length, _OPENING)]
        assert isinstance(said, Answered)
        segments = self._segments(said)[:-1]
        start = [] if self._tokenizer.chat_template else self._start
        ids = start + [i for text, _ in segments for i in self._ids(text)]
        return ids[: self._max_length]

    def pair(self, row: Preferred) -> Pair:
        """A preference's tokens; answers are cut so that each fits with the prompt.

        An answer given as a whole conversation may repeat the prompt.
        """
        chosen = self._segments(_answered(row.prompt, row.chosen))
        rejected = self._segments(_answered(row.prompt, row.rejected))
        start = [] if self._tokenizer.chat_template else self._start
        prompt = start + [i for text, _ in chosen[:-1] for i in self._ids(text)]
        room = max(0, self._max_length - len(prompt))
        return Pair(
            prompt[: self._max_length],
            self._ids(chosen[-1][0])[:room],
            self._ids(rejected[-1][0])[:room],
        )

    def document(self, row: Text) -> list[int]:
        """A text's tokens with what begins and ends one; not cut."""
        end = self._tokenizer.eos_token_id
        return self._start + self._ids(row.text) + ([] if end is None else [end])

    def asked(self, said: Said) -> str | list[dict[str, str]]:
        """A prompt as TRL takes it: messages for a base with a chat template, else text."""
        if self._tokenizer.chat_template:
            return [{"role": m.role, "content": m.content} for m in turns(said, "user")]
        if not isinstance(said, str):
            raise _no_template()
        return said

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _segments(self, row: Answered) -> list[tuple[str, bool]]:
        """The row's text in pieces, each with whether it is to be learnt; the last one is."""
        end = str(self._tokenizer.eos_token or "")
        if self._tokenizer.chat_template:
            found = _turns(self._render, self._shown + chat(row), end)
            answers = [m for m in self._shown if m["role"] == "assistant"]
            return [
                (text, wanted and place >= 2 * len(answers))
                for place, (text, wanted) in enumerate(found)
            ]
        if row.messages or not (isinstance(row.prompt, str) and isinstance(row.completion, str)):
            raise _no_template()
        before = "".join(
            message["content"] + (end + "\n") * (message["role"] == "assistant")
            for message in self._shown
        )
        return [(before + row.prompt, False), (row.completion + end, True)]

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


def _answered(prompt: Said, said: Said) -> Answered:
    if not isinstance(said, str) and said[0].role == "user":
        said = tuple(message for message in said if message.role == "assistant")[-1:] or said
    if isinstance(prompt, str) and isinstance(said, str):
        return Answered(prompt=prompt, completion=said)
    return Answered(messages=(*turns(prompt, "user"), *turns(said, "assistant")))


def _no_template() -> RecipeError:
    return RecipeError(
        Exit.INPUT,
        "this base has no chat template: use rows of prompt and completion as text, "
        "or an instruction-tuned base",
    )
