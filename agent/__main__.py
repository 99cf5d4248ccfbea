"""`python -m agent`: enroll | run | doctor | drain."""

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from agent import config, doctor, enrolment, environment, keeper, owner, walls
from agent import record as records
from agent.client import TurnedAway
from agent.config import Config, Network, State, StateError
from agent.enrolment import NotEnrolled
from agent.environment import EnvironmentMissing
from agent.hardware import Machine, survey
from agent.loop import Daemon
from agent.sandbox import workspace

app = typer.Typer(
    help="Lets this machine's idle GPUs, or its processor, on a Gridloom market.",
    no_args_is_help=True,
    add_completion=False,
)
_StateOption = Annotated[
    Path, typer.Option("--state", help="The node's own folder: its key, its cache, its jobs.")
]
_UnsafeOption = Annotated[
    bool,
    typer.Option(
        "--unsafe-no-sandbox",
        help="For development: run jobs without a sandbox where none holds.",
    ),
]
# Unwrapped: what is printed is copied.
_console = Console(soft_wrap=True)


@app.command()
def enroll(
    *,
    market: Annotated[str, typer.Option(help="The agents' address, from your site's page.")],
    token: Annotated[str, typer.Option(help="The enrolment token, from the same page.")],
    name: Annotated[str, typer.Option(help="How the node is called; default: the host.")] = "",
    state: _StateOption = config.DEFAULT,
    egress: Annotated[
        bool,
        typer.Option("--egress", help="Let jobs reach the internet names that they list."),
    ] = False,
    unsafe_no_sandbox: _UnsafeOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Make this machine a node of your site."""
    workspace.own_mounts()
    where = config.open_state(state)
    where.make()
    config.checked_url(market)
    with config.only_agent(where):
        network = Network(egress=egress)
        machine = _look(where, network=network, unsafe=unsafe_no_sandbox)
        _show(machine)
        if not yes:
            typer.confirm("Let this machine?", abort=True)
        settings, fingerprint = enrolment.enrol(
            where,
            market=market,
            token=token.strip(),
            name=name or socket.gethostname(),
            inventory=machine.inventory,
            network=network,
        )
    _console.print(f"\nEnrolled as [bold]{settings.name}[/] ({settings.node}).")
    _console.print("Its fingerprint, to compare and confirm on the node's page:")
    _console.print(f"\n    [bold]{fingerprint}[/]\n")
    _console.print(f"Then let it work: python -m agent run --state {where.root}")


@app.command()
def run(
    *,
    state: _StateOption = config.DEFAULT,
    unsafe_no_sandbox: _UnsafeOption = False,
    drain_when_stopped: Annotated[
        bool,
        typer.Option(
            "--drain",
            help="When stopped, say goodbye: jobs save and go on elsewhere. Without it that "
            "happens only when the whole machine goes down.",
        ),
    ] = False,
) -> None:
    """Work for the market until stopped. Stopping ends no job: the next run finds them again."""
    workspace.own_mounts()  # before there are threads
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    for chatty in ("httpx", "websockets"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    where = config.open_state(state)
    settings, key = config.load(where), config.load_key(where)
    where.make()
    with config.only_agent(where):
        machine = _look(where, settings, unsafe=unsafe_no_sandbox)
        daemon = Daemon(where, settings, key, machine)
        asyncio.run(_until_signalled(daemon, drains=drain_when_stopped))


@app.command("doctor")
def examine(state: _StateOption = config.DEFAULT) -> None:
    """Say what this machine can and can't do as a node, and why."""
    where, market, python = config.open_state(state), None, ""
    address, network = "", None
    if where.config.exists():
        settings = config.load(where)
        market, python = settings.agents_url, settings.training_python
        address, network = settings.lan_address, settings.network
        _console.print(f"{settings.name} ({settings.node}), enrolled at {settings.market}")
        _console.print(f"fingerprint {enrolment.fingerprint_of(where)}\n")
    raise typer.Exit(doctor.run_doctor(market, where.root, python, address, network))


@app.command()
def drain(
    state: _StateOption = config.DEFAULT,
    end: Annotated[
        bool, typer.Option("--end", help="Take it back: let the machine again.")
    ] = False,
) -> None:
    """Have the machine back: its jobs save their work and leave within the notice you promised."""
    where = config.open_state(state)
    config.load(where)
    if end:
        where.drain.unlink(missing_ok=True)
        _console.print("The machine is let again.")
        return
    where.drain.touch(mode=0o600)
    if not config.agent_runs(where):
        _drain_keepers(where)
    told: list[str] = []
    while left := _at_work(where):
        if left != told:
            _console.print(f"Waiting for {', '.join(left)} (Ctrl-C leaves them to it).")
            told = left
        time.sleep(0.5)
    _console.print("Nothing runs. Let it again with: python -m agent drain --end")


def _look(
    state: State, settings: Config | None = None, network: Network = config.CLOSED, *, unsafe: bool
) -> Machine:
    """`settings`: those of a node that has enrolled; `network` of one that is about to."""
    with _console.status("Attacking our own sandbox…"):
        found = walls.attack(state, unsafe=unsafe)
    if settings is None:
        return survey(state, environment.look(""), found, network=network)
    training = environment.look(settings.training_python)
    return survey(state, training, found, settings.lan_address, settings.network)


def _show(machine: Machine) -> None:
    found = machine.inventory
    for device in found.devices:
        size = f"{device.memory_bytes / 2**30:.0f} GiB"
        cores = f", {device.cores} cores" if device.cores else ""
        _console.print(f"[bold]{device.name}[/]{cores}, {size} of memory")
    versions = ", ".join(f"{name} {v}" for name, v in found.environment.packages.items())
    _console.print(f"Python {found.environment.python}: {versions or 'no training packages'}")
    _console.print(f"Sandbox: {found.sandbox.rung}, {found.sandbox.held} of "
                   f"{found.sandbox.checks} attacks held off")  # fmt: skip
    out = "names that they list" if found.egress else "nothing (--egress would let them)"
    _console.print(f"Jobs reach: {out}")
    where = found.lan_address or "none: python -m agent doctor says why"
    _console.print(f"Gangs of several nodes: {where}")
    for reason in found.sandbox.weaker:
        _console.print(f"  {reason}", style="yellow", markup=False)


async def _until_signalled(daemon: Daemon, *, drains: bool) -> None:
    work = asyncio.ensure_future(daemon.run())
    asked: list[bool] = []

    def stop() -> None:
        # A second signal doesn't wait for what the first has asked for.
        if asked or not (drains or _goes_down()):
            work.cancel()
        asked.append(True)
        daemon.leave()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await work


def _goes_down() -> bool:
    """Whether systemd is stopping the whole machine, and not us alone."""
    if not Path("/run/systemd/system").exists():
        return False
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        asked = ["systemctl", "is-system-running"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=2, check=False)
        return said.stdout.strip() == "stopping"
    return False


def _drain_keepers(state: State) -> None:
    """No agent is there to pass it on."""
    for folder in records.folders(state.assignments):
        status = keeper.read_status(folder)
        if status is not None and status.state != "gone":
            keeper.drain(folder, owner.ASKED)


def _at_work(state: State) -> list[str]:
    """Jobs that run, or, with an agent to send it, whose work is still being sent."""
    sends = config.agent_runs(state)
    found = []
    for folder in records.folders(state.assignments):
        with contextlib.suppress(records.Unreadable):
            record = records.load(folder)
            status = keeper.read_status(folder)
            if not (record.is_gone or (status is not None and status.state == "gone")):
                found.append(f"job {folder.name}")
            elif sends and not record.is_settled:
                found.append(f"the results of {folder.name}")
    return found


def main() -> None:
    """The command line; what its user can mend is said in a line, without a traceback."""
    try:
        app()
    except (StateError, NotEnrolled, EnvironmentMissing, TurnedAway) as error:
        Console(stderr=True, soft_wrap=True).print(
            str(error), style="red", markup=False, highlight=False
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
