"""Which sandbox holds on this host: the agent attacks its own, strongest first.

Each candidate runs real keepers with real orders: one job of attacks (`attack/`), one that may
reach one name and tries others, one that takes too much memory, one that fills its disk, one that
won't end and leaves daemons behind. A candidate holds if none of that got anywhere harmful. The
attacks are then repeated from inside the network of a gang, if this host can make one.
"""

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import psutil

from agent import keeper
from agent import order as files
from agent.order import KeeperOrder, Limits, Network, Rung, Status
from agent.sandbox import bubblewrap, cgroups, network, outputs, seccomp, workspace

_MIB = 2**20
_MEMORY, _DISK = 64 * _MIB, 64 * _MIB
_ATTACK = Path(__file__).with_name("attack")
_WITHIN_S = 60.0
_HARMLESS = {"host_users", "new_privileges", "groups_of_the_agent", "reach_the_named"}
"""Open, these tell the job something or weaken a second wall; alone they harm nobody."""


@dataclass(frozen=True)
class Check:
    """One attack: whether the sandbox held, and if not, how far it got."""

    name: str
    held: bool
    harmful: bool
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """The rung that this host allows; `rung` is None where strangers' jobs must be refused."""

    rung: Rung | None
    checks: list[Check] = field(default_factory=list)
    weaker: list[str] = field(default_factory=list)
    """Why nothing stronger, and what this rung leaves open, in words."""
    no_gang: str = ""
    """Why this host takes no part in gangs of several nodes; "" if it may."""

    @property
    def held(self) -> int:
        return sum(check.held for check in self.checks)

    @property
    def harmful(self) -> int:
        return sum(check.harmful and not check.held for check in self.checks)


def probe(state: Path, *, unsafe_no_sandbox: bool = False) -> Report:
    """Finds the strongest rung that holds; takes a few seconds, uses `state` for scratch.

    Without `unsafe_no_sandbox` (for development), a host whose every rung falls is refused.
    Call it after `workspace.own_mounts()`.
    """
    candidates, reasons = _candidates()
    for rung in candidates:
        report = attack(state, rung)
        if report.rung is not None:
            weaker = [*reasons, *_left_open(rung)]
            return replace(report, weaker=weaker, no_gang=attack_gang(state, rung))
        reasons += [f"{rung.name}: {reason}" for reason in report.weaker]
    if unsafe_no_sandbox:
        rung = Rung(wall="none", limits="rlimits", disk="watchdog")
        weaker = [*reasons, "there is no sandbox"]
        return replace(attack(state, rung), rung=rung, weaker=weaker, no_gang="no sandbox")
    return Report(rung=None, weaker=reasons or ["no kind of sandbox works here"])


def attack(state: Path, rung: Rung) -> Report:
    """Attacks one rung; the report's `rung` is None if it did not hold, `weaker` says where."""
    try:
        with _scratch(state) as scratch, _targets(scratch) as targets:
            checks = _attack(scratch, rung, targets)
    except _FAILED as error:
        return Report(rung=None, weaker=[str(error)])
    fallen = [f"{check.name} is open: {check.detail}" for check in checks if not check.held]
    harmful = any(check.harmful and not check.held for check in checks)
    return Report(None if harmful else rung, checks, fallen)


def attack_gang(state: Path, rung: Rung) -> str:
    """Why the sandboxes of a gang must not run here; "" if one in its network holds as well."""
    if rung.wall != "root":
        return "making a lease's network takes root"
    reason = network.why_none()
    if reason:
        return reason
    trial = network.trial(0)
    try:
        with _scratch(state) as scratch, _targets(scratch) as targets:
            seen = {"cards": network.LINKS, "net": network.route_of(trial)}
            checks = _read_walls(_start(scratch / "gang", rung, ["walls"], targets | seen, trial))
    except _FAILED as error:
        return str(error)
    open_ = [f"{one.name} is open: {one.detail}" for one in checks if one.harmful and not one.held]
    return "; ".join(open_)


@contextlib.contextmanager
def _scratch(state: Path) -> Iterator[Path]:
    """A folder for assignments; whatever of them still runs at the end is killed."""
    scratch = Path(tempfile.mkdtemp(prefix="probe-", dir=state))
    try:
        yield scratch
    finally:
        for folder in scratch.iterdir():
            if (folder / files.ORDER).exists():
                keeper.kill(folder)
                outputs.clean(folder)
        shutil.rmtree(scratch, ignore_errors=True)


class _DidNotRun(RuntimeError):
    """The sandbox could not be started, so that nothing was attacked."""


_FAILED: Final = (
    keeper.KeeperError, files.OrderError, workspace.WorkspaceError, _DidNotRun
)  # fmt: skip


def _candidates() -> tuple[list[Rung], list[str]]:
    """Rungs worth trying, strongest first, and why the others aren't."""
    reasons: list[str] = []
    try:
        bubblewrap.find_bwrap()
        seccomp.program()
    except (bubblewrap.NoSandbox, seccomp.UnsupportedMachine) as error:
        return [], [str(error)]
    kinds: list[str] = ["rlimits"]
    try:
        kinds.insert(0, cgroups.version())
    except cgroups.NoCgroups as error:
        reasons.append(str(error))
    disks = ["watchdog"]
    no_image = workspace.why_no_image()
    if no_image:
        reasons.append(f"no quota on the work folder: {no_image}")
    else:
        disks.insert(0, "image")
    wall = "root" if os.getuid() == 0 else "userns"
    rungs = [
        Rung(wall=wall, limits=limits, disk=disk)  # type: ignore[arg-type]
        for limits in kinds
        for disk in disks
    ]
    return rungs, reasons


def _left_open(rung: Rung) -> list[str]:
    """What a rung does less well, as both sides of the market should know it."""
    words = []
    if rung.limits == "rlimits":
        words.append("memory is watched once a second, not bounded by the kernel")
    if rung.disk == "watchdog":
        words.append("the work folder's size is watched once a second, not bounded by the kernel")
    return words


def _attack(scratch: Path, rung: Rung, targets: dict[str, object]) -> list[Check]:
    marker = 10**9 + secrets.randbelow(10**9)
    walls = _start(scratch / "walls", rung, ["walls"], targets)
    gate = _start(scratch / "gate", rung, ["gate"], targets)
    hogs = {
        "memory": _start(scratch / "memory", rung, ["hog", "memory", str(_MEMORY)]),
        "disk": _start(scratch / "disk", rung, ["hog", "disk", str(_DISK)]),
        "survivor": _start(scratch / "survivor", rung, ["hog", "survivor", str(marker)]),
    }
    _await_daemons(hogs["survivor"], marker)
    keeper.drain(hogs["survivor"], "the probe", grace_ms=200)
    checks = [*_read_walls(walls), *_read_walls(gate)]
    ends = {name: _end(folder) for name, folder in hogs.items()}
    checks.append(_judge("memory_hog", ends["memory"].why == "memory", ends["memory"]))
    disk_held = ends["disk"].why == "disk" or _stopped_at(hogs["disk"]) <= _DISK * 1.1
    checks.append(_judge("disk_hog", disk_held, ends["disk"]))
    in_time = ends["survivor"].exit_signal == signal.SIGKILL
    checks.append(_judge("deaf_to_sigterm", in_time, ends["survivor"]))
    left = _command_lines(marker)
    checks.append(Check("survivors", left == 0, True, f"{left} processes" if left else ""))
    return checks


def _start(
    folder: Path,
    rung: Rung,
    words: list[str],
    targets: dict[str, object] | None = None,
    joins: Network | None = None,
) -> Path:
    limits = _limits(_MEMORY if "memory" in words else 8 * _MEMORY)
    order = KeeperOrder(
        argv=["python3", "-m", "attack", *words],
        env={"PYTHONPATH": "/job/inputs"},
        rung=rung,
        limits=limits,
        inputs={"attack": str(_ATTACK)},
        egress=[f"localhost:{targets['port']}"] if targets and words == ["gate"] else [],
        networks=["127.0.0.0/8", "::1/128"],
        save_ms=0,
        grace_ms=0,
        network=joins,
    )
    (folder / "job").mkdir(parents=True)
    if targets is not None:
        allowed = {
            "cpus": limits.cpus,
            "pids": limits.pids,
            "tmp_bytes": limits.tmp_bytes,
            "shm_bytes": limits.shm_bytes,
            "training_env": bubblewrap.training_env(order),
        }
        (folder / "job" / "attack.json").write_text(json.dumps(targets | allowed))
    files.write(folder / files.ORDER, order)
    files.write_paid_through(folder, int(_WITHIN_S * 1000))
    keeper.start(folder)
    return folder


def _limits(memory: int) -> Limits:
    return Limits(
        memory_bytes=memory,
        disk_bytes=_DISK,
        cpus=sorted(os.sched_getaffinity(0))[:1],
        pids=64,
        inodes=1000,
        tmp_bytes=8 * _MIB,
        shm_bytes=64 * _MIB,
    )


def _read_walls(folder: Path) -> list[Check]:
    end = _end(folder)
    if end.why == "start_failed":
        raise _DidNotRun(end.detail)
    lines = (folder / "stdout.log").read_text(errors="replace").splitlines()
    if not lines:
        raise _DidNotRun(end.detail or (folder / "stderr.log").read_text(errors="replace")[-500:])
    checks = []
    for line in lines:
        told = json.loads(line)
        name, how = told["check"], told["open"]
        checks.append(Check(name, how is None, name not in _HARMLESS, how or ""))
    if end.exit_code != 0:
        checks.append(_judge("attack_ran_to_its_end", False, end))
    return checks


def _judge(name: str, held: bool, end: Status) -> Check:
    detail = f"{end.why} {end.detail} (exit {end.exit_code}, signal {end.exit_signal})"
    return Check(name, held, True, "" if held else detail)


def _end(folder: Path) -> Status:
    """Waits for a job's last word; one that won't come is an open wall, not a hang of ours."""
    status = keeper.wait(folder, _WITHIN_S) or keeper.kill(folder)
    if status is None:
        raise _DidNotRun(f"{folder.name}: its keeper never said a word")
    return status


def _await_daemons(folder: Path, marker: int) -> None:
    """Until the job and its two daemons run; raises _DidNotRun if they never do."""
    deadline = time.monotonic() + 10
    while _command_lines(marker) < 3:
        if keeper.wait(folder, 0.02) or time.monotonic() > deadline:
            status = keeper.read_status(folder)
            raise _DidNotRun(status.detail if status else "no keeper")


def _command_lines(marker: int) -> int:
    """How many processes of this machine carry the marker in their command line."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            count += str(marker).encode() in path.read_bytes()
    return count


def _stopped_at(folder: Path) -> int:
    """Bytes after which the disk hog was told that there is no more room."""
    words = (folder / "stdout.log").read_text(errors="replace").split()
    return int(words[1]) if words[:1] == ["stopped"] else 2**62


@contextlib.contextmanager
def _targets(scratch: Path) -> Iterator[dict[str, object]]:
    """Hides a secret in every place of the host that a job might reach."""
    secret = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        open_folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gridloom-probe-"))
        os.chmod(open_folder, 0o755)  # noqa: S103 - a bait must be within reach
        targets: dict[str, object] = {
            "secret": secret,
            "state": str(scratch.parent),
            "pid": os.getpid(),
            "abstract": secret,
            "cards": [],
            "net": "",
            "addresses": _own_addresses(),
            "unix": f"{open_folder}/socket",
            "file": stack.enter_context(_secret_file("/tmp", secret)),
            "shm_file": stack.enter_context(_secret_file("/dev/shm", secret)),
            "shm_key": stack.enter_context(_shared_segment()),
        }
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        targets["port"] = server.getsockname()[1]
        everywhere = stack.enter_context(socket.create_server(("", 0)))
        targets["open_port"] = everywhere.getsockname()[1]
        for name in (f"{open_folder}/socket", f"\0{secret}"):
            channel = stack.enter_context(socket.socket(socket.AF_UNIX))
            channel.bind(name)
            channel.listen()
        os.chmod(f"{open_folder}/socket", 0o777)  # noqa: S103
        os.environ["GRIDLOOM_PROBE_SECRET"] = secret
        stack.callback(os.environ.pop, "GRIDLOOM_PROBE_SECRET")
        yield targets


def _own_addresses() -> list[str]:
    """Of this machine, version 4, loopback's left out."""
    cards = psutil.net_if_addrs().values()
    found = [one.address for card in cards for one in card if one.family == socket.AF_INET]
    return [address for address in found if not address.startswith("127.")]


@contextlib.contextmanager
def _secret_file(folder: str, secret: str) -> Iterator[str]:
    """A file that everybody may read, its descriptor left open for children to inherit."""
    with tempfile.NamedTemporaryFile("w", prefix="gridloom-probe-", dir=folder) as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(secret)
        file.flush()
        os.set_inheritable(file.fileno(), True)
        yield file.name


@contextlib.contextmanager
def _shared_segment() -> Iterator[int]:
    """The key of a System V segment that everybody may attach."""
    libc, key = ctypes.CDLL(None), secrets.randbelow(2**31 - 2) + 1
    segment = libc.shmget(key, 4096, 0o1666)  # IPC_CREAT
    try:
        yield key
    finally:
        if segment >= 0:
            libc.shmctl(segment, 0, None)  # IPC_RMID
