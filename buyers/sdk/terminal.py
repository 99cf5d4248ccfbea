"""What all commands share: the terminal, the market behind it, and how a no looks."""

import functools
from collections.abc import Callable
from typing import Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from buyers.sdk import config, show
from buyers.sdk.client import Client
from buyers.sdk.errors import GridloomError

app: Final = typer.Typer(
    help="Train on idle GPUs: quote, run, watch, download.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out: Final = Console(highlight=False)
err: Final = Console(stderr=True, highlight=False)


def command(function: Callable[..., None], group: typer.Typer = app) -> Callable[..., None]:
    """Registers a command; a GridloomError becomes one line and exit code 1."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except GridloomError as error:
            err.print("Error:", show.plain(str(error)), style="red", soft_wrap=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    group.command(name=function.__name__.strip("_").replace("_", "-"))(guarded)
    return guarded


def client() -> Client:
    """The market that the user has logged in to."""
    access = config.load()
    return Client(access.url, access.key)


def visitor(url: str) -> Client:
    """A market (empty: the one that is known) as anybody sees it, who need not have logged in."""
    return Client(url or config.address(), None)


def bytes_bar(done: str, total: int | None) -> Progress:
    """A bar of bytes."""
    bar = Progress(
        TextColumn(done), BarColumn(40), DownloadColumn(), TransferSpeedColumn(), console=out
    )
    bar.add_task(done, total=total)
    return bar
