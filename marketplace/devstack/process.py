"""One child process: started in a session of its own, asked whether it is ready, stopped its way.

A child dies with us (PR_SET_PDEATHSIG), so a killed supervisor leaves nobody behind. The kernel
sends that signal when the *thread* that forked ends: start children from the main thread.
"""

import ctypes
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
_TAIL_LINES = 15
_PASSES_ON = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "LD_LIBRARY_PATH", "SSL_CERT_FILE")


class StackError(Exception):
    """Something a person must know, in words that say what to do about it."""


class Stage(IntEnum):
    """What stands on what. A stack starts from the bottom and stops from the top."""

    POSTGRES = 0
    VALKEY = 1
    S3 = 2
    STRIPE = 3
    WEB = 4
    AGENTS = 5
    NODES = 6
    WORKERS = 7
    BEAT = 8


@dataclass(frozen=True)
class Service:
    """How to run one process, and how it wants to be stopped. Times in seconds."""

    name: str
    stage: Stage
    argv: tuple[str, ...]
    env: Mapping[str, str]
    is_ready: "Callable[[Child], bool]"
    ready_s: float = 60
    stop_signal: int = signal.SIGTERM
    grace_s: float = 10
    death_signal: int = signal.SIGKILL
    as_somebody: bool = False
    """Start it as an ordinary user, even if we are root (PostgreSQL insists)."""
    owned: tuple[Path, ...] = ()
    """What that user must be able to write, if it has to be a real one."""
    restarts: bool = False
    """Whether it is started again when it ends by itself: it holds no state."""
    cpus: frozenset[int] = frozenset()
    """The cores it may use; all, if empty."""
    cwd: Path = field(default_factory=Path.cwd)


class Child:
    """A running service and its log."""

    def __init__(self, service: Service, log: Path) -> None:
        self.service = service
        self.log = log
        _rotate(log)
        prepare = preparation(service)
        with log.open("ab") as out:
            try:
                self._process = subprocess.Popen(
                    service.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=passed_on() | dict(service.env),
                    cwd=service.cwd,
                    start_new_session=True,
                    preexec_fn=prepare,
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise StackError(f"{service.name} can't be started: {error}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; −n if signal n ended it."""
        return self._process.poll()

    def has_said(self, text: str) -> bool:
        """Whether its log, since this start, contains `text`."""
        return text in self.log.read_text(errors="replace")

    def tail(self) -> str:
        """The last lines of its log, for a message."""
        return tail(self.log)

    def ask_to_stop(self) -> None:
        """Sends its stop signal; no error if it is gone."""
        if self.exit_code() is None:
            self._process.send_signal(self.service.stop_signal)

    def wait_gone(self, deadline: float) -> None:
        """Waits until `deadline` (time.monotonic), then kills it with everything it started."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        try:
            # Also after a clean exit: what it left in its session must not outlive it.
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self._process.wait()


def passed_on() -> dict[str, str]:
    """Of our environment, what a child may see; the rest it is told by name."""
    return {name: os.environ[name] for name in _PASSES_ON if name in os.environ}


def tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log; empty if there is none."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def answers_tcp(port: int) -> bool:
    """Whether somebody listens on this port of the loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers_http(url: str) -> bool:
    """Whether this URL is answered, with anything but a server's error."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


@functools.cache
def may_make_user_namespace() -> bool:
    """Whether this host lets us make a user namespace (some containers don't)."""
    if sys.platform != "linux":
        return False
    true = shutil.which("true") or "/bin/true"
    try:
        subprocess.run([true], check=True, preexec_fn=_enter_user_namespace)
    except (subprocess.SubprocessError, OSError):
        return False
    return True


def preparation(service: Service) -> Callable[[], None]:
    """What the child does between fork and exec."""
    steps: list[Callable[[], None]] = []
    if service.cpus:
        steps.append(lambda: os.sched_setaffinity(0, service.cpus))
    if service.as_somebody and os.geteuid() == 0:
        steps.append(_drop_root(service))
    if sys.platform == "linux":
        # Last, because a change of user clears it.
        steps.append(_die_with(os.getpid(), service.death_signal))

    def prepare() -> None:
        for step in steps:
            step()

    return prepare


def _drop_root(service: Service) -> Callable[[], None]:
    """Root becomes an ordinary user: in a namespace where it is one, else as `nobody`."""
    if may_make_user_namespace():
        return _enter_user_namespace
    return _become_nobody(service)


def _become_nobody(service: Service) -> Callable[[], None]:
    nobody = 65534
    closed = _closed_to_others([Path(service.argv[0]), *service.owned])
    if closed:
        raise StackError(
            f"{service.name} won't run as root, this host refuses user namespaces, and the user "
            f"'nobody' can't enter {closed}. Run this as an ordinary user, or set DATABASE_URL "
            f"to a PostgreSQL of yours, or allow user namespaces (for a container: "
            f"--security-opt seccomp=unconfined)."
        )
    for folder in service.owned:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, nobody, nobody, follow_symlinks=False)

    def become() -> None:
        os.setgroups([])
        os.setgid(nobody)
        os.setuid(nobody)

    return become


def _closed_to_others(paths: list[Path]) -> Path | None:
    """The first folder above `paths` that a stranger may not enter."""
    for path in paths:
        for folder in reversed(path.resolve().parents):
            if folder.exists() and not folder.stat().st_mode & 0o001:
                return folder
    return None


def _enter_user_namespace() -> None:
    """In it we are uid 1000; outside our files stay root's."""
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"1000 {user} 1"),
        ("gid_map", f"1000 {group} 1"),
    ):
        Path("/proc/self", name).write_text(text)


def _die_with(parent: int, death_signal: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def bind() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return bind


def _rotate(log: Path) -> None:
    """Keeps the log of the run before as `<name>.1`, so that each start begins a new one."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name(log.name + ".1"))
