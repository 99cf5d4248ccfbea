"""The commands about rounds: what one was, whether it was right, and that one's own rows stood in it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from buyers.sdk import proofs, show
from buyers.sdk.errors import GridloomError
from buyers.sdk.terminal import client, command, out, visitor

_rounds = typer.Typer(help="Rounds: what each committed to, verified.", no_args_is_help=True)
Round = Annotated[str, typer.Argument(help="The round's id, from its page")]


def register(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(_rounds, name="rounds")
    command(verify, _rounds)
    command(prove, _rounds)


def verify(
    round: Round,
    folder: Annotated[Path | None, typer.Option(help="Where the files go; empty: ./<id>")] = None,
    market: Annotated[str, typer.Option(help="Its address; empty: the one you use")] = "",
) -> None:
    """Fetch a released round and verify all of it: hashes, rules, prices, welfare, bound. No key
    is needed."""
    _checked(visitor(market).download_round(round, folder or Path(round)))


def prove(
    subject: Annotated[str, typer.Argument(help="A job's id, or a node's with --node")],
    round: Annotated[str, typer.Option(help="In which round; empty: the last")] = "",
    node: Annotated[bool, typer.Option("--node", help="It is a node of yours")] = False,
    root: Annotated[str, typer.Option(help="As you noted it; empty: as the round shows it")] = "",
    save: Annotated[Path | None, typer.Option(help="Keep the proof in this file")] = None,
) -> None:
    """Your own row in a round, and whether the round's root commits to it."""
    market = client()
    proof = market.proof(subject, round=round, node=node)
    record = market.round(str(proof.round)).record
    if record is None or record.leaves != proof.leaves:
        raise GridloomError("the round and the proof speak of different numbers of rows")
    said = root.lower() or record.root
    if save is not None:
        save.write_bytes(msgspec.json.encode(proof))
    if proof.root != said or not proofs.holds(proof):
        raise GridloomError(f"the proof does not lead to the root {said}")
    out.print(show.plain(json.dumps(json.loads(proof.row), indent=1)), soft_wrap=True)
    out.print(
        show.plain(f"It stood in the round {proof.round} of {proof.at:%Y-%m-%d %H:%M:%S} UTC.")
    )


def _checked(files: list[Path]) -> None:
    """By the checker, in a process of its own; it needs numpy, which the SDK doesn't."""
    told = ["-m", "scheduler.matching", "verify", *map(str, files)]
    missing = [name for name in ("numpy", "scheduler") if not importlib.util.find_spec(name)]
    if missing:
        out.print(show.plain(f"The files are in {files[0].parent}. Install numpy, and run:"))
        out.print(show.plain(f"python {' '.join(told)}"), soft_wrap=True)
        raise typer.Exit(1)
    done = subprocess.run([sys.executable, *told], capture_output=True, text=True)
    out.print(show.plain(done.stdout + done.stderr), end="", soft_wrap=True)
    if done.returncode:
        raise typer.Exit(2)
