"""What this machine can do as a node, what it can't, and what would help.

Every finding comes from trying: the sandbox is attacked, the market is called. `ok` is False only
for what keeps the node from being let; what merely makes it weaker is advice.
"""

import os
import platform
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent import environment
from agent.config import Network
from agent.hardware import why_no_images
from agent.lan import NoLan
from agent.lan import find as network_of
from agent.nvml import open_nvml
from agent.protocol import FIRST_PORT
from agent.sandbox import cgroups, workspace
from agent.sandbox.probe import Report, probe
from agent.sandbox.seccomp import AUDIT_ARCH

_GIB = 2**30
_LEAST_DISK = 5 * _GIB
_LEAST_MEMORY = 2 * _GIB
_CLOCK_OFF_S = 60
_TRAINING = ("torch", "transformers", "peft", "safetensors", "accelerate")


# setting, the value that forbids user namespaces to ordinary users, what to do
_NAMESPACE_SETTINGS = (
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "install an AppArmor profile that lets bwrap have them",
    ),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "set kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "set user.max_user_namespaces=10000"),
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at, in words for the machine's owner."""

    name: str
    ok: bool
    detail: str
    advice: str = ""


def report(
    market_url: str | None = None,
    state: Path | None = None,
    python: str = "",
    lan: str = "",
    network: Network | None = None,
) -> list[Finding]:
    """Looks at everything; takes a few seconds.

    state: where the agent keeps, or will keep, jobs' folders (None: where temporary files go).
    python: the training environment's (empty: our own). lan: the node's own word on its address (empty: none).
    network: what the owner lets jobs reach.
    """
    workspace.own_mounts()
    # A folder of its own: above a state folder that isn't made yet may lie what jobs may well see.
    near = _existing(state) if state else None
    with tempfile.TemporaryDirectory(prefix="gridloom-doctor-", dir=near) as scratch:
        place = Path(scratch)
        found = [_system(), *_sandbox(place, lan), _namespaces(), _limits(), _quota(), _gpus()]
        found += [_machine(), _disk(place), _training(python), _reach(network), _images(network)]
    return [*found, *(_market(market_url) if market_url else [])]


def run_doctor(
    market_url: str | None = None,
    state: Path | None = None,
    python: str = "",
    lan: str = "",
    network: Network | None = None,
) -> int:
    """Prints the report; 0 if this machine can be a node, else 1."""
    findings = report(market_url, state, python, lan, network)
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        mark = "[green]✓[/]" if finding.ok and not finding.advice else "[yellow]![/]"
        advice = f"\n[yellow]{escape(finding.advice)}[/]" if finding.advice else ""
        mark = mark if finding.ok else "[red]✗[/]"
        table.add_row(mark, finding.name, escape(finding.detail) + advice)
    console = Console()
    console.print(table)
    failed = [finding.name for finding in findings if not finding.ok]
    if failed:
        console.print(f"\n[red]This machine can't be a node yet:[/] {', '.join(failed)}.")
        return 1
    console.print("\n[green]This machine can be a node.[/]")
    return 0


def _system() -> Finding:
    known = platform.system() == "Linux" and platform.machine() in AUDIT_ARCH
    detail = f"{platform.system()} {platform.release()} on {platform.machine()}"
    advice = f"nodes run on Linux on {' or '.join(AUDIT_ARCH)}"
    return Finding("system", known, detail, "" if known else advice)


def _sandbox(place: Path, lan: str) -> list[Finding]:
    """The strongest rung that held, what the attack on it showed, and whether gangs can run."""
    found: Report = probe(place)
    if found.rung is None:
        advice = "jobs of strangers are refused here; for development only: --unsafe-no-sandbox"
        return [Finding("sandbox", False, "; ".join(found.weaker), advice)]
    detail = f"{found.rung.name}: {found.held} of {len(found.checks)} attacks held off"
    return [Finding("sandbox", True, detail, "; ".join(found.weaker)), _gangs(found.no_gang, lan)]


def _gangs(reason: str, lan: str) -> Finding:
    """Whether jobs of several nodes of this site can have a part of them here."""
    try:
        place = network_of(lan)
    except NoLan as error:
        reason = reason or str(error)
    if reason:
        return Finding("gangs", True, "none: jobs of several nodes run elsewhere", reason)
    ports = f"UDP ports from {FIRST_PORT} on"
    detail = f"other nodes of the site reach it at {place.address}; let them in on {ports}"
    return Finding("gangs", True, detail)


def _namespaces() -> Finding:
    if os.getuid() == 0:
        return Finding("user namespaces", True, "not needed: root makes the mounts itself")
    for setting, forbidden, help_ in _NAMESPACE_SETTINGS:
        if os.path.exists(setting) and Path(setting).read_text().strip() == forbidden:
            return Finding("user namespaces", True, f"{setting} is {forbidden}", help_)
    return Finding("user namespaces", True, "allowed")


def _limits() -> Finding:
    try:
        kind = cgroups.version()
    except cgroups.NoCgroups as reason:
        return Finding("limits", True, "memory is watched, not bounded", str(reason))
    bound = "CPUs too" if cgroups.binds_cpus(kind) else "CPUs by affinity only"
    return Finding("limits", True, f"{kind.replace('cgroup', 'cgroup v')} bounds memory; {bound}")


def _quota() -> Finding:
    reason = workspace.why_no_image()
    if reason:
        return Finding("work folders", True, "their size is watched, not bounded", reason)
    return Finding("work folders", True, "each a file system of the size that is booked")


def _gpus() -> Finding:
    driver = open_nvml()
    if driver is None:
        return Finding("GPUs", True, "no NVIDIA GPU or driver: the processor is let instead")
    cards = driver.cards()
    names = ", ".join(card.name for card in cards)
    measured = all(driver.load(card.uuid).watts is not None for card in cards)
    advice = "" if measured else "power is not measured: receipts will say it is estimated"
    return Finding("GPUs", True, f"{names}; driver {driver.driver()}", advice)


def _machine() -> Finding:
    memory = psutil.virtual_memory().total
    detail = f"{psutil.cpu_count()} CPUs, {memory / _GIB:.1f} GiB of memory"
    enough = memory >= _LEAST_MEMORY
    return Finding("machine", enough, detail, "" if enough else "a node needs 2 GiB of memory")


def _disk(place: Path) -> Finding:
    free = workspace.free_bytes(place)
    detail = f"{free / _GIB:.1f} GiB free in {place}"
    advice = f"free some: at least {_LEAST_DISK / _GIB:.0f} GiB, or choose another --state"
    return Finding("disk", free >= _LEAST_DISK, detail, "" if free >= _LEAST_DISK else advice)


def _training(python: str) -> Finding:
    try:
        training = environment.look(python)
    except environment.EnvironmentMissing as error:
        return Finding("training environment", False, str(error), "name another one to the agent")
    packages = training.shown.packages
    missing = [name for name in _TRAINING if name not in packages]
    found = ", ".join(f"{name} {packages[name]}" for name in _TRAINING if name in packages)
    detail = f"Python {training.shown.python} in {training.folders[0]}: {found or 'nothing'}"
    advice = f"install {', '.join(missing)}: pip install 'gridloom[train]'" if missing else ""
    return Finding("training environment", not missing, detail, advice)


def _reach(network: Network | None) -> Finding:
    if network is None or not network.egress:
        advice = "jobs that list names to reach go elsewhere; network.egress in config.json"
        return Finding("egress", True, f"jobs reach nothing outside: {advice}")
    lies_in = f", also in {', '.join(network.allow)}" if network.allow else ""
    return Finding("egress", True, f"jobs reach the internet names that they list{lies_in}")


def _images(network: Network | None) -> Finding:
    if network is None or not network.registries:
        return Finding("images", True, "the owner lets no container images be run")
    if why := why_no_images():
        return Finding("images", True, f"jobs in container images go elsewhere: {why}")
    return Finding(
        "images", True, f"jobs may run in container images from {', '.join(network.registries)}"
    )


def _market(url: str) -> list[Finding]:
    """Reached over the network or not, and whether its clock and ours agree."""
    begun = time.monotonic()
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - the owner's own URL
            status, date = answer.status, answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        status, date = error.code, error.headers.get("Date")
    except (OSError, ValueError) as error:
        advice = "check the address, the network, and a proxy or firewall in between"
        return [Finding("market", False, f"{url}: {getattr(error, 'reason', error)}", advice)]
    took_ms = (time.monotonic() - begun) * 1000
    reached = Finding("market", status < 500, f"{url} answers {status} in {took_ms:.0f} ms")
    return [reached, _clock(date)]


def _clock(date: str | None) -> Finding:
    """Bills never use this machine's wall clock, but certificates and presigned URLs do."""
    if not date:
        return Finding("clock", True, "the market did not say what time it is")
    off = abs(time.time() - parsedate_to_datetime(date).timestamp())
    right = off <= _CLOCK_OFF_S
    advice = "" if right else "set it: timedatectl set-ntp true"
    return Finding("clock", right, f"{off:.0f} s from the market's", advice)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
