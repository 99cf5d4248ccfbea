"""The files between the agent and a keeper: what to run (`order.json`), how it is (`status.json`).

Both live in the assignment's folder and are replaced atomically, so that a reader sees the old
file or the new one, never half of one. Times are milliseconds: `*_up_ms` of the machine's boot
clock (CLOCK_BOOTTIME), `running_ms` since the job's process started.
"""

import ipaddress
import os
import re
import time
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from agent.sandbox import reach

ORDER = "order.json"
STATUS = "status.json"
DRAIN = "drain.json"
PAID_THROUGH = "paid_through_ms"
SECRETS = "secrets.json"
LOCK = "keeper.lock"

Millis = Annotated[int, Meta(ge=0, le=2**53)]
Bytes = Annotated[int, Meta(ge=0, le=2**53)]

State = Literal["starting", "running", "draining", "gone"]
Why = Literal[
    "",  # nothing has ended it yet
    "exited",  # by itself; its code or signal says how
    "unpaid",  # its paid time ended
    "drain",  # drain.json asked for it
    "memory",  # it used more memory than it booked
    "disk",  # it wrote more, or more files, than it booked
    "killed",  # the agent asked for its end at once
    "start_failed",  # it never ran; `detail` says why
    "keeper_lost",  # its keeper died, and the job with it
    "rebooted",  # the machine was started anew
]


class OrderError(ValueError):
    """An order or a file beside it that can't be read or obeyed; says what to change."""


class _File(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Rung(_File, frozen=True, kw_only=True):
    """How strongly a job is walled in on this host; `agent.sandbox.probe` finds it."""

    wall: Literal["root", "userns", "none"]
    """root: root's bubblewrap, then a uid of the job's own. userns: bubblewrap as an ordinary
    user. none: a plain subprocess, for development only."""
    limits: Literal["cgroup2", "cgroup1", "rlimits"]
    """Who bounds memory, processes and CPUs; with rlimits, the keeper polls memory and kills."""
    disk: Literal["image", "watchdog"]
    """image: the work folder is a file system of the booked size. watchdog: the keeper polls."""

    @property
    def name(self) -> str:
        """As it is shown to both sides of the market."""
        limits = self.limits.replace("cgroup", "cgroup v")
        parts = ["none" if self.wall == "none" else "bubblewrap", limits]
        if self.disk == "image":
            parts.append("quota")
        weaker = self.limits == "rlimits" or self.disk == "watchdog"
        return " + ".join(parts) + (" (weaker)" if weaker and self.wall != "none" else "")


class Limits(_File, frozen=True, kw_only=True):
    """What the job has booked, and what it never needs more of."""

    memory_bytes: Annotated[int, Meta(ge=16 * 2**20, le=2**53)]
    disk_bytes: Annotated[int, Meta(ge=2**20, le=2**53)]
    cpus: list[Annotated[int, Meta(ge=0, le=65535)]] = []
    """Indexes of the CPUs it may use; empty means all that the keeper may use."""
    pids: Annotated[int, Meta(ge=4, le=2**20)] = 1024
    """Processes and threads together."""
    files: Annotated[int, Meta(ge=64, le=2**20)] = 16384
    """Open files of one process."""
    inodes: Annotated[int, Meta(ge=100, le=10**8)] = 200_000
    """Files and folders in the work folder."""
    tmp_bytes: Bytes = 256 * 2**20
    shm_bytes: Bytes = 1024 * 2**20
    log_bytes: Annotated[int, Meta(ge=4096, le=2**33)] = 16 * 2**20
    """Of each of stdout.log and stderr.log, their rotated half included."""


class Image(_File, frozen=True, kw_only=True):
    """The file system that a job sees in place of the host's."""

    rootfs: str
    """Laid out by `agent.images`: what is mounted over is there, and real."""
    env: dict[str, str] = {}
    """What it sets for its programs."""


Within = Path | Image | None
"""What a job brings to run in: an environment's folder, an image, or nothing of its own."""


class Peer(_File, frozen=True, kw_only=True):
    """A rank of a gang: its address inside, and where its machine takes the packets."""

    address: str
    lan: str
    port: Annotated[int, Meta(ge=1024, le=65535)]

    def __post_init__(self) -> None:
        for address in (self.address, self.lan):
            try:
                ipaddress.IPv4Address(address)
            except ValueError:
                raise ValueError(f"{address!r} is no IPv4 address") from None


class Network(Peer, frozen=True, kw_only=True):
    """The network of its own that a gang's sandbox joins (`agent.sandbox.network`)."""

    id: Annotated[int, Meta(ge=1, lt=2**24)]
    mtu: Annotated[int, Meta(ge=576, le=65000)]
    peers: Annotated[list[Peer], Meta(min_length=1, max_length=255)]


class KeeperOrder(_File, frozen=True, kw_only=True):
    """How to run one assignment; written once by the agent, read once by its keeper."""

    argv: Annotated[list[str], Meta(min_length=1, max_length=1000)]
    """As seen inside the sandbox; `python` is the training environment's, or an image's own."""
    rung: Rung
    limits: Limits
    save_ms: Millis
    """A job about to run out of paid time gets SIGTERM this long before its end."""
    grace_ms: Millis
    """What a drain without its own grace gives between SIGTERM and SIGKILL."""
    env: dict[str, str] = {}
    inputs: dict[str, str] = {}
    """Name → file or folder on the host, bound read-only at /job/inputs/<name>."""
    training_env: list[str] = []
    """Folders bound read-only at their own paths (sys.prefix, sys.base_prefix); empty means
    those of the interpreter that runs the keeper. Our init runs by the first one's `python`."""
    environment: str = ""
    """The job's own, built of its packages and bound as well: its `python` comes first on the
    job's PATH, and nothing but the job ever starts it."""
    image: Image | None = None
    """None: the job sees the host's system and the training environment."""
    gpus: list[Annotated[int, Meta(ge=0, le=255)]] = []
    """Indexes N of the leased /dev/nvidiaN."""
    egress: list[str] = []
    """Names that the job may reach through the gate (`agent.sandbox.reach`); empty is nobody."""
    networks: list[str] = []
    """Networks that the owner lets those names lie in, beside the public internet."""
    cwd: str = "/job"
    """Where it begins, as seen inside the sandbox."""
    network: Network | None = None
    """None: the job reaches nothing but its own loopback."""

    def __post_init__(self) -> None:
        for name in self.inputs:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
                raise ValueError(f"input name {name!r}: use letters, digits, '.', '_' and '-'")
        root = self.image.rootfs if self.image else "/"
        for path in (*self.inputs.values(), *self.training_env, self.environment or "/", root):
            if not path.startswith("/"):
                raise ValueError(f"{path!r} must be an absolute path on the host")
        for text in (*self.argv, *self.env, *self.env.values(), self.cwd):
            if "\0" in text:
                raise ValueError("arguments and environment can't hold a NUL character")
        for name in self.env:
            if not name or "=" in name:
                raise ValueError(f"{name!r} can't be the name of an environment variable")
        for name in self.egress:
            reach.parse(name)
        for network in self.networks:
            ipaddress.ip_network(network)


class Drain(_File, frozen=True, kw_only=True):
    """`drain.json`: end the job, with SIGTERM first; its appearance can't be taken back."""

    why: str
    grace_ms: Millis | None = None
    """None means the order's."""


class Status(_File, frozen=True, kw_only=True):
    """`status.json`: what the keeper last knew of its job."""

    keeper_pid: int
    boot_id: str
    state: State
    started_up_ms: Millis = 0
    """Boot clock at the start of the job's process; 0 before."""
    running_ms: Millis = 0
    """How long the job's process has run, as of the last write (at most a second old)."""
    exit_code: int | None = None
    exit_signal: int | None = None
    why: Why = ""
    detail: str = ""
    """For people: what failed, which limit was passed, what the drain said."""


_Read = TypeVar("_Read", KeeperOrder, Drain, Status)


def read(path: Path, kind: type[_Read]) -> _Read | None:
    """The file's content, None if there is no such file; raises OrderError if it is malformed."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OrderError(f"{path}: {error}") from None


def write(path: Path, content: KeeperOrder | Drain | Status, *, durable: bool = False) -> None:
    """Replaces the file atomically; see `replace`."""
    replace(path, msgspec.json.encode(content), durable=durable)


def replace(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Writes beside the file, then renames over it: whoever is killed leaves the old one.

    durable: holds even if the machine loses its power; otherwise the file may then be empty.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(beside, path)


def read_paid_through(folder: Path) -> int | None:
    """Milliseconds of running time that are paid for; None if nobody has said so legibly."""
    try:
        text = (folder / PAID_THROUGH).read_text("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def write_paid_through(folder: Path, millis: int) -> None:
    """Sets for how much running time the job is paid."""
    replace(folder / PAID_THROUGH, str(millis).encode())


def write_secrets(folder: Path, values: dict[str, str]) -> None:
    """Lays them out for the keeper, who takes them at once (`take_secrets`)."""
    path = folder / SECRETS
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(values))


def take_secrets(folder: Path) -> dict[str, str]:
    """What was laid out; it is on the disk no more. Raises OrderError."""
    path = folder / SECRETS
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    path.unlink()
    try:
        return msgspec.json.decode(data, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise OrderError(f"{path} is malformed") from None  # and says nothing of what is in it


def boot_id() -> str:
    """Changes with every start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def up_ms() -> int:
    """The boot clock: milliseconds since the machine started, sleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
