"""The commands about what a buyer keeps: bases, datasets, models, and the recipes between them."""

import time
from collections.abc import Callable
from typing import Annotated

import typer

from buyers.sdk import show
from buyers.sdk.client import Client
from buyers.sdk.errors import GridloomError
from buyers.sdk.shapes import Base, Fetch
from buyers.sdk.terminal import bytes_bar, client, command, out

_base = typer.Typer(help="The models to start from.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(_base, name="base")
    of_app: list[Callable[..., None]] = [bases, dataset, recipes, model, promote]
    of_base: list[Callable[..., None]] = [add, list_, accept]
    for function in of_app:
        command(function, app)
    for function in of_base:
        command(function, _base)


def bases() -> None:
    """The models that you may start from."""
    out.print(show.bases(client().bases()))


def list_() -> None:
    """The models that you may start from."""
    bases()


def add(
    *,
    repo: Annotated[str, typer.Argument(help="Like ORGANISATION/MODEL or ORGANISATION/MODEL@REV")],
    hub: Annotated[str, typer.Option(help="Which hub; empty: the market's first")] = "",
    token: Annotated[
        str, typer.Option(envvar="HF_TOKEN", help="Opens a private or gated repository")
    ] = "",
    right: Annotated[
        str, typer.Option(help="Why you may use it, if the repository names no licence")
    ] = "",
    accept: Annotated[
        str, typer.Option("--accept", help="Accept this licence, like apache-2.0, unasked")
    ] = "",
    detach: Annotated[bool, typer.Option(help="Don't wait for it")] = False,
) -> None:
    """Have a base fetched from a hub, and accept its licence."""
    market = client()
    name, _, revision = repo.partition("@")
    fetch = market.add_base(name, revision=revision, hub=hub, token=token, right=right)
    if detach:
        out.print(f"Under way: {fetch.id}")
        return
    fetch = _followed(market, fetch)
    if fetch.state == "refused":
        raise GridloomError(fetch.detail)
    base = _named(market, str(fetch.artifact))
    out.print(show.plain(f"{base.name} at {fetch.commit[:12]} is here, as {base.id}"))
    if not base.accepted:
        _accept(market, base, accept)


def accept(
    base: Annotated[str, typer.Argument(help="Its id or name; `gridloom base list` has them")],
    licence: Annotated[str, typer.Option(help="Which one you have read; empty: asks")] = "",
) -> None:
    """Accept a base's licence, for your whole organisation."""
    market = client()
    _accept(market, _named(market, base), licence)


def dataset(
    name: Annotated[str, typer.Argument(help="Its name, name@version or id")],
) -> None:
    """A dataset: what was found in it, and its first rows."""
    for line in show.report(client().dataset(name)):
        out.print(line)


def recipes(
    name: Annotated[str, typer.Argument(help="One of them; empty: all, in a line each")] = "",
) -> None:
    """What can be run, and its parameters."""
    found = client().recipes()
    if not name:
        out.print(show.recipes(found))
        return
    if name not in found:
        raise GridloomError(f"there is no recipe {name!r}; there are {', '.join(found)}")
    for line in show.recipe(name, found[name]):
        out.print(line)


def model(
    artifact: Annotated[str, typer.Argument(help="Its id, or its job's")],
) -> None:
    """A model: what it can do before and after, what made it, and what that took."""
    market = client()
    found = market.model(artifact)
    if found.measured:
        out.print(show.measured(found.measured))
    out.print(show.plain(found.card))


def promote(
    artifact: Annotated[str, typer.Argument(help="Its id, or its job's")],
    reason: Annotated[str, typer.Option(help="Why, if it got worse somewhere")] = "",
) -> None:
    """Make a model your organisation's current one of its name."""
    made = client().promote(artifact, reason=reason)
    out.print(show.plain(f"{made.name} is now {made.id}"))


def _followed(market: Client, fetch: Fetch) -> Fetch:
    """The fetch once it rests, its progress shown meanwhile."""
    with bytes_bar("fetched", None) as bar:
        task = bar.task_ids[0]
        while not fetch.rests:
            bar.update(task, completed=fetch.bytes_done, total=fetch.bytes_total or None)
            time.sleep(1)
            fetch = market.fetch(fetch)
        bar.update(task, completed=fetch.bytes_done, total=fetch.bytes_total or None)
    return fetch


def _named(market: Client, reference: str) -> Base:
    found = [base for base in market.bases() if reference in (str(base.id), base.name)]
    if not found:
        raise GridloomError(f"there is no base {reference!r}; `gridloom base list` has them")
    return found[0]


def _accept(market: Client, base: Base, licence: str) -> None:
    if not licence:
        question = f"Do you accept its licence, {base.licence}, for your organisation?"
        typer.confirm(question, abort=True)
        licence = base.licence
    market.accept_licence(base.id, licence)
    out.print(show.plain(f"Accepted: {licence}"))
