"""The commands about secrets: tokens that jobs are given."""

import sys
from typing import Annotated

import typer

from buyers.sdk import show
from buyers.sdk.terminal import client, command, out

_secret = typer.Typer(help="Tokens that your jobs are given.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(_secret, name="secret")
    command(set_, _secret)
    command(list_, _secret)
    command(forget, _secret)


def set_(
    name: Annotated[str, typer.Argument(help="The variable that a job finds it in")],
    trust: Annotated[str, typer.Option(help="Only for sites at least this trusted")] = "verified",
) -> None:
    """Keep a secret; its value is read from standard input."""
    if sys.stdin.isatty():
        value = typer.prompt("Value", hide_input=True)
    else:
        value = sys.stdin.read().removesuffix("\n")
    kept = client().set_secret(name, value, trust=trust)
    out.print(f"{kept.name} is kept, for sites that are at least {kept.trust}.", markup=False)


def list_() -> None:
    """Names, trust, and when each was last given to a job."""
    for kept in client().secrets():
        used = kept.used_at.astimezone().strftime("%Y-%m-%d %H:%M") if kept.used_at else "never"
        out.print(show.plain(f"{kept.name}  at least {kept.trust}  last used: {used}"))


def forget(name: Annotated[str, typer.Argument(help="Which")]) -> None:
    """Forget a secret."""
    client().forget_secret(name)
    out.print(show.plain(f"{name} is forgotten."))
