"""`gridloom`: the market from a terminal."""

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from buyers.sdk import config, library, rounds, shell, show, tokens, transfer
from buyers.sdk.client import Client
from buyers.sdk.config import Access
from buyers.sdk.errors import GridloomError
from buyers.sdk.job_shapes import Job, Quote
from buyers.sdk.terminal import app
from buyers.sdk.terminal import bytes_bar as _bytes_bar
from buyers.sdk.terminal import client as _client
from buyers.sdk.terminal import command as _command
from buyers.sdk.terminal import err as _err
from buyers.sdk.terminal import out as _out

__all__ = ["app"]

library.register(app)
rounds.register(app)
tokens.register(app)

JobArgument = Annotated[str, typer.Argument(help="The job's id; `gridloom jobs` lists them")]


_Parameters = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="A parameter, like steps=100")
]


def _job_fields(
    *,
    recipe: Annotated[str, typer.Argument(help="One of `gridloom recipes`")],
    budget: Annotated[str, typer.Option(help="A wall, in all, like 2.50")],
    base: Annotated[str, typer.Option(help="A name of `gridloom base list`, or an id")] = "",
    dataset: Annotated[str, typer.Option(help="Its name, name@version or id")] = "",
    script: Annotated[str, typer.Option(help="Your uploaded code, like a dataset")] = "",
    mix: Annotated[str, typer.Option(help="A dataset to blend in, so that less is forgotten")] = "",
    other: Annotated[str, typer.Option(help="A second model: the teacher, or what is added")] = "",
    third: Annotated[str, typer.Option(help="A third model, to merge with the second")] = "",
    set_: _Parameters = None,
    limit: Annotated[str, typer.Option(help="Most to pay per GPU-hour")] = "",
    gpus: Annotated[int, typer.Option(help="How many, or the fewest")] = 1,
    gpus_max: Annotated[int, typer.Option(help="Up to so many, if it pays; 0: just --gpus")] = 0,
    level: Annotated[str, typer.Option(help="node, or site: over the nodes of one site")] = "",
    memory_gib: Annotated[float, typer.Option(help="On each GPU; 0: estimated")] = 0.0,
    disk_gib: Annotated[float, typer.Option(help="For its folder")] = 20.0,
    hours: Annotated[float, typer.Option(help="About how long; scripts need it")] = 0.0,
    region: Annotated[list[str] | None, typer.Option(help="Only there; may be repeated")] = None,
    trust: Annotated[str, typer.Option(help="Least: contracted, verified, known, community")] = "",
    service: Annotated[str, typer.Option(help="protected (at a premium), or interruptible")] = "",
    deadline: Annotated[str, typer.Option(help="Like 2026-12-01T18:00:00+00:00")] = "",
    name: Annotated[str, typer.Option(help="To know it by")] = "",
    seed: Annotated[int, typer.Option(help="Of its randomness")] = 0,
    packages: Annotated[str, typer.Option(help="A lock; none: the node's; empty: as it says")] = "",
    image: Annotated[str, typer.Option(help="Container image for a script, open to all")] = "",
    secret: Annotated[list[str] | None, typer.Option(help="A secret's name; repeatable")] = None,
    egress: Annotated[list[str] | None, typer.Option(help="Like .wandb.ai; repeatable")] = None,
) -> dict[str, Any]:
    """The job that the options describe, as the market wants it."""
    found = {
        "recipe": recipe, "budget": budget, "base": base, "dataset": dataset, "script": script,
        "mix": mix, "other": other, "third": third, "limit": limit, "gpus": gpus, "level": level,
        "gpus_max": gpus_max, "memory_gib": memory_gib, "disk_gib": disk_gib, "hours": hours,
        "regions": region or [], "trust": trust, "deadline": deadline, "service": service,
        "name": name, "seed": seed, "egress": egress or [], "image": image,
        "packages": packages, "secrets": secret or [], "parameters": dict(map(_parameter, set_ or [])),
    }  # fmt: skip
    return {field: value for field, value in found.items() if value not in ("", 0, [])}


def _with_job(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command all options of `_job_fields`; it gets them as its first argument, `job`."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    shared = list(inspect.signature(_job_fields, eval_str=True).parameters.values())
    names = [parameter.name for parameter in shared]

    @functools.wraps(function)
    def filled(**kwargs: Any) -> None:
        job = _job_fields(**{name: kwargs.pop(name) for name in names})
        function(job, **kwargs)

    merged = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*shared, *own)
    ]
    filled.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    filled.__annotations__ = {parameter.name: parameter.annotation for parameter in merged}
    return filled


@_command
def login(
    url: Annotated[str, typer.Option(prompt="The market's address")],
    key: Annotated[str, typer.Option(prompt="API key", hide_input=True)],
) -> None:
    """Keep the market's address and your API key, for this user only."""
    access = Access(url.strip().rstrip("/"), key.strip())
    with Client(access.url, access.key, patience_s=3) as client:
        wallet = client.wallet()
    kept = config.save(access)
    _out.print(f"The wallet holds {show.money(wallet.balance_micros)}. Kept in {kept}.")


@_command
def wallet() -> None:
    """What can be spent."""
    found = _client().wallet()
    _out.print(
        f"{show.money(found.balance_micros)}, and {show.money(found.held_micros)} held for jobs"
    )


@_command
def top_up(amount: Annotated[str, typer.Argument(help="Like 25.00")]) -> None:
    """Pay into the wallet by card: prints the page to pay on."""
    url = _client().top_up(amount)
    _out.print("Pay here:")
    _out.print(show.plain(url), soft_wrap=True)


@_command
def upload(
    folder: Annotated[Path, typer.Argument(help="A folder, or one file")],
    name: Annotated[str, typer.Option(help="Its name; empty: the folder's")] = "",
) -> None:
    """Upload a dataset, or code for the recipe script; a change is a new version."""
    total = sum(file.stat().st_size for file in transfer.scan(folder).values())
    with _bytes_bar("sent", total) as bar:
        task = bar.task_ids[0]
        made = _client().upload(
            folder, name or folder.resolve().name, progress=lambda size: bar.advance(task, size)
        )
    rows = f"{made.rows:,} rows, " if made.rows else ""
    _out.print(f"{made.name}@{made.version}: {rows}{show.size(made.bytes)}", markup=False)


@_command
def datasets() -> None:
    """What you have uploaded."""
    _out.print(show.datasets(_client().datasets()))


@_command
@_with_job
def quote(job: dict[str, Any]) -> None:
    """Where a job could run and what it would cost. Nothing is paid."""
    _out.print(show.quote(_client().quote(**job), recipe=job.get("recipe", "")))


@_command
@_with_job
def run(
    job: dict[str, Any],
    option: Annotated[int, typer.Option(help="Which of the quote's; -1: the best")] = -1,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask before taking it")] = False,
    detach: Annotated[bool, typer.Option(help="Don't watch it")] = False,
) -> None:
    """Quote a job, take an option, and watch it."""
    client = _client()
    quote = client.quote(**job)
    _out.print(show.quote(quote, recipe=job.get("recipe", "")))
    index = _chosen(quote, option)
    if not yes:
        typer.confirm(f"Take option {index}?", abort=True)
    _go(client, client.take(quote, index), detach=detach)


@_command
@_with_job
def bid(
    job: dict[str, Any], detach: Annotated[bool, typer.Option(help="Don't watch it")] = False
) -> None:
    """Leave a job to the rounds, at your limit, and watch it."""
    client = _client()
    _go(client, client.bid(**job), detach=detach)


@_command
def jobs() -> None:
    """Your jobs, the newest first."""
    _out.print(show.jobs(_client().jobs()))


@_command
def job(job: JobArgument) -> None:
    """One job, and its story."""
    client = _client()
    found = client.job(job)
    _out.print(show.job(found))
    for change in client.story(found):
        why = f": {change.reason}" if change.reason else ""
        at = change.at.astimezone().strftime("%H:%M:%S")
        _out.print(show.plain(f"  {at} {change.source} → {change.target}{why}"))


@_command
def watch(job: JobArgument) -> None:
    """A job as it goes: progress, loss, cost."""
    client = _client()
    _watch(client, client.job(job))


@_command
def log(job: JobArgument) -> None:
    """The end of a job's output."""
    _out.print(show.plain(_client().log(job)), end="", soft_wrap=True)


@_command
def attach(job: JobArgument) -> None:
    """A shell in a running job. What you type is kept with the job's story."""
    with _client().shell(job) as opened:
        _err.print("What is typed here is kept. The shell ends with the job.", style="dim")
        shell.interact(opened)


@_command
def accept(
    job: JobArgument,
    change: Annotated[int, typer.Argument(help="Which of those that `gridloom job` lists")],
) -> None:
    """Make one of the changes that would place a waiting job."""
    client = _client()
    found = client.job(job)
    listed = found.told.changes if found.told else []
    if not 0 <= change < len(listed):
        raise GridloomError(f"it lists no change {change}; see `gridloom job {job}`")
    if listed[change].term == "wait":
        raise GridloomError("there is nothing to change: it waits by itself")
    _out.print(show.job(client.accept(found, listed[change])))


@_command
def cancel(job: JobArgument) -> None:
    """End a job for good."""
    _out.print(show.job(_client().cancel(job)))


@_command
def stop(job: JobArgument) -> None:
    """Save and stop a job, to be resumed."""
    _out.print(show.job(_client().stop(job)))


@_command
def resume(
    job: JobArgument,
    budget: Annotated[str, typer.Option(help="A new budget, in all")] = "",
) -> None:
    """Go on with a stopped job from its last checkpoint."""
    _out.print(show.job(_client().resume(job, budget=budget)))


@_command
def receipt(job: JobArgument) -> None:
    """What a job cost, to the last micro."""
    _out.print(show.receipt(_client().receipt(job)))


@_command
def download(
    job: JobArgument,
    folder: Annotated[Path | None, typer.Argument(help="Where to; empty: ./<job's id>")] = None,
) -> None:
    """Fetch what a job made, every file checked by its hash. Goes on where it was cut off.

    Beside its files lies LINEAGE.md: what made it, and what that took.
    """
    target, client = folder or Path(job), _client()
    with _bytes_bar("received", None) as bar:
        task = bar.task_ids[0]
        client.download(job, target, progress=lambda size: bar.advance(task, size))
    if made := client.job(job).artifact:
        (target / "LINEAGE.md").write_text(client.model(made).card, encoding="utf-8")
    _out.print(f"Everything is in {target}, and is what its hashes say.", markup=False)


def _parameter(text: str) -> tuple[str, Any]:
    """`steps=100`; a value is JSON, or else text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise GridloomError(f"a parameter is like steps=100, not {text!r}")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def _chosen(quote: Quote, option: int) -> int:
    if option >= 0:
        return option
    if quote.best is None:
        raise GridloomError("nothing fits now; `gridloom bid` waits for what does")
    return quote.best.index


def _go(client: Client, job: Job, *, detach: bool) -> None:
    _out.print(f"Job {job.id}")
    if not detach:
        _watch(client, job)


def _watch(client: Client, job: Job) -> None:
    with show.watching(_out) as live:
        for update in client.watch(job):
            live(update)
            job = update.job
    if job.state == "failed":
        raise typer.Exit(2)
    if job.artifact:
        _out.print(f"gridloom download {job.id}")
