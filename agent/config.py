"""An agent's state folder: who this node is (`config.json`, `key.pem`), and who may use it now."""

import contextlib
import fcntl
import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from agent.owner import Rules
from agent.protocol import REGISTRIES

DEFAULT: Final = Path("~/.gridloom-agent")
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class StateError(RuntimeError):
    """The state folder can't be used; says what to do."""


class Network(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`network` in config.json: what the owner lets jobs reach. Whatever stands here, no job has
    another way out than the gate (`agent.sandbox.gate`)."""

    egress: bool = False
    """Whether jobs may reach the names that they list."""
    builds: bool = True
    """Whether jobs' own environments are built here: a build reaches the market's package index."""
    registries: list[str] = msgspec.field(default_factory=lambda: list(REGISTRIES))
    """From where container images may be fetched for jobs to run in; empty: from nowhere."""
    allow: list[str] = []
    """Networks like 10.1.0.0/16 that these names may lie in, beside the public internet: for a
    mirror on a private address. Everything in them is open to strangers who know its name."""

    def __post_init__(self) -> None:
        for network in self.allow:
            ipaddress.ip_network(network)


CLOSED: Final = Network()
"""As owners begin: jobs reach nothing, environments are built, images fetched."""


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """config.json. Enrolment writes it; its owner may edit what has a default."""

    market: str
    """The address that the node enrolled at."""
    node: UUID
    name: str
    server: str
    """What the market calls itself; a hello is signed for this name only."""
    agents_url: str
    market_key: bytes
    """The market's Ed25519 public key: receipts are checked against it."""
    training_python: str = ""
    """The interpreter of the training environment; empty: the one that runs the agent."""
    lan_address: str = ""
    """By which (IPv4) the site's other nodes reach this one; empty: that of the default route."""
    owner: Rules = Rules()
    network: Network = Network()


@dataclass(frozen=True)
class State:
    """The folders and files of one node; nothing exists before `make`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def key(self) -> Path:
        return self.root / "key.pem"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def environments(self) -> Path:
        return self.root / "environments"

    @property
    def assignments(self) -> Path:
        return self.root / "assignments"

    @property
    def drain(self) -> Path:
        """While it exists, the owner wants the machine back."""
        return self.root / "drain"

    def make(self) -> None:
        """Creates what is missing; raises StateError."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.cache, self.assignments, self.environments):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateError(
                f"{self.root} can't be written ({error.strerror}); name another folder by --state"
            ) from None


def open_state(path: Path) -> State:
    """The state in this folder, which may not exist yet."""
    return State(path.expanduser().absolute())


def load(state: State) -> Config:
    """Who this node is; raises StateError if it hasn't enrolled or the file is malformed."""
    try:
        return msgspec.json.decode(state.config.read_bytes(), type=Config)
    except FileNotFoundError:
        raise StateError(
            f"{state.root} holds no node yet: enrol it with `python -m agent enroll "
            f"--market URL --token TOKEN --state {state.root}`"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError(f"{state.config}: {error}; correct that line") from None
    except OSError as error:
        raise StateError(f"{state.config} can't be read: {error.strerror}") from None


def save(state: State, config: Config) -> None:
    """Writes config.json, readable by its owner only."""
    text = msgspec.json.format(msgspec.json.encode(config), indent=2)
    write_private(state.config, text + b"\n")


def make_key(state: State) -> Ed25519PrivateKey:
    """The node's key, made now if there is none. Only its owner may read it."""
    if not state.key.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_private(state.key, pem)
    return load_key(state)


def load_key(state: State) -> Ed25519PrivateKey:
    """The node's key; raises StateError if it is missing, no key, or open to others."""
    try:
        if state.key.stat().st_mode & 0o077:
            raise StateError(f"others can read {state.key}: chmod 600 it, and enrol a new key")
        key = serialization.load_pem_private_key(state.key.read_bytes(), password=None)
    except OSError as error:
        raise StateError(f"{state.key} can't be read: {error.strerror}") from None
    except ValueError:
        raise StateError(f"{state.key} is not a key; enrol the machine anew") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise StateError(f"{state.key} is not an Ed25519 key; enrol the machine anew")
    return key


@contextlib.contextmanager
def only_agent(state: State) -> Iterator[None]:
    """Holds the folder for this process; raises StateError if another agent runs with it."""
    with open(state.root / "agent.lock", "a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read(20).decode(errors="replace").strip() or "?"
            raise StateError(
                f"an agent (process {pid}) already runs with {state.root}; stop it first, or give "
                "this one a state folder of its own with --state"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
        lock.flush()
        yield


def agent_runs(state: State) -> bool:
    """Whether an agent runs with this folder."""
    try:
        with open(state.root / "agent.lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def checked_url(url: str) -> str:
    """The address without a trailing slash; raises StateError unless its bytes are encrypted on
    the way or never leave this machine."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StateError(f"{url!r} is no address: it must look like https://market.example")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise StateError(f"{url} would send the token in the clear: use https")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether an address leads to this machine itself (and so through no proxy)."""
    return urlsplit(url).hostname in _LOOPBACK


def write_private(path: Path, data: bytes) -> None:
    """Replaces a file that only its owner may read; on the disk when this returns."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
