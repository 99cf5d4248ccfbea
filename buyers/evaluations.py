"""What a model could do before and after, as its recipe measured it: kept with the artifact."""

import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from agent import protocol
from agent.recipes import verdict
from agent.recipes.verdict import Answer, Domain, Evaluation, Training
from buyers.models import Artifact
from marketplace import storage
from marketplace.core.errors import Unavailable

log = logging.getLogger(__name__)

_MOST: Final = 2**20
_MARGIN: Final = 0.05
"""Of evaluations that were written before margins were."""


class _HeldOut(Struct, frozen=True):
    rows: int
    tokens: int
    loss_before: float | None
    loss_after: float | None


class _Older(Struct, frozen=True):
    """An evaluation of the target alone."""

    held_out: _HeldOut
    answers: list[Answer]
    training: Training


def load(prefix: str, manifest: Sequence[protocol.File]) -> dict[str, Any]:
    """evaluation.json of a folder, as it is kept; empty if it has none that could be read.

    Reads from the network: not for use in a transaction.
    """
    for file in manifest:
        if file.path == verdict.FILE and file.bytes <= _MOST:
            try:
                data = b"".join(storage.read(storage.file_key(prefix, file.sha256)))
                found = _parsed(data.replace(b"\\u0000", b"\\ufffd"))
            except (Unavailable, ValueError) as error:
                # A script may call any file of its so; and a model without figures is a model.
                log.info("the evaluation under %s is not kept: %s", prefix, error)
                return {}
            kept: dict[str, Any] = msgspec.to_builtins(found)
            return kept
    return {}


def of(artifact: Artifact) -> Evaluation | None:
    """What was measured of a model, if anything was."""
    return msgspec.convert(artifact.evaluation, Evaluation) if artifact.evaluation else None


def _parsed(data: bytes) -> Evaluation:
    """Raises ValueError."""
    try:
        return verdict.read(data)
    except ValueError:
        pass
    try:
        older = msgspec.json.decode(data, type=_Older)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None
    held_out = older.held_out
    before, after = held_out.loss_before, held_out.loss_after
    target = Domain(
        name=verdict.TARGET,
        measure="loss",
        rows=held_out.rows,
        tokens=held_out.tokens,
        before=before,
        after=after,
        margin=_MARGIN,
        verdict=verdict.judge("loss", before, after, _MARGIN),
    )
    return Evaluation(domains=[target], answers=older.answers, training=older.training)
