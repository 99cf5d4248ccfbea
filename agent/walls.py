"""Which sandbox this node runs jobs in: attacked at the agent's start, and what came of it."""

from pathlib import Path

import msgspec
from msgspec import Struct

from agent import keeper, protocol
from agent import order as files
from agent import record as records
from agent.config import State, StateError, write_private
from agent.order import OrderError, Rung
from agent.sandbox.probe import probe


class Walls(Struct, frozen=True, kw_only=True):
    """`sandbox.json`: what the last attack found, and in which boot of the machine."""

    boot_id: str
    unsafe: bool
    rung: Rung | None
    shown: protocol.Sandbox
    no_gang: str = ""
    """Why jobs of several nodes can't run here; "" if they can."""


def attack(state: State, *, unsafe: bool) -> Walls:
    """Attacks the sandbox and keeps what came of it; takes some seconds. While jobs run here, the
    last attack of this boot counts: another one would take from them.

    unsafe: whether no sandbox at all will do, for development. Raises StateError if none holds.
    """
    known = _known(state)
    if known is not None and known.unsafe == unsafe and _is_busy(state):
        return known
    report = probe(state.root, unsafe_no_sandbox=unsafe)
    if report.rung is None:
        raise StateError(
            "no sandbox holds on this machine, so strangers' jobs can't run here: "
            f"{'; '.join(report.weaker)}. `python -m agent doctor` says what would help"
        )
    walls = Walls(
        boot_id=files.boot_id(),
        unsafe=unsafe,
        rung=report.rung,
        shown=protocol.Sandbox(
            rung=report.rung.name,
            checks=len(report.checks),
            held=report.held,
            harmful=report.harmful,
            weaker=[_plain(reason)[:2000] for reason in report.weaker],
        ),
        no_gang=report.no_gang,
    )
    write_private(_path(state), msgspec.json.encode(walls))
    return walls


def _known(state: State) -> Walls | None:
    try:
        walls = msgspec.json.decode(_path(state).read_bytes(), type=Walls)
    except (OSError, msgspec.DecodeError):
        return None
    return walls if walls.boot_id == files.boot_id() else None


def _is_busy(state: State) -> bool:
    return any(map(_runs, records.folders(state.assignments)))


def _runs(folder: Path) -> bool:
    try:
        status = keeper.read_status(folder)
    except OrderError:
        return False
    return status is not None and status.state != "gone"


def _path(state: State) -> Path:
    return state.root / "sandbox.json"


def _plain(text: str) -> str:
    """Without control characters, which the market refuses."""
    return "".join(letter for letter in text if letter.isprintable())
