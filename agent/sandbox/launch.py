"""Starts a job by an order, and holds it: its processes, its pipes, its end.

Used by the keeper alone, which must be a process with one thread (it prepares the child between
fork and exec) and the parent of what it starts: when it dies, the socket to our init closes and
bubblewrap gets its parent's death signal, and either takes the job with it.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from agent.order import KeeperOrder, Rung, up_ms
from agent.sandbox import bubblewrap, cgroups, network, plain, seccomp, workspace

_PR_SET_CHILD_SUBREAPER = 36
_PIPE_BYTES = 256 * 1024
_MOST_SAID, _MOST_HANDED = 8192, 8
_MEDDLED = 126  # the exit code of a job that forged what our init says
_START_WITHIN_S = 20.0  # generous: a machine that swaps still starts a process in that time


class StartFailed(RuntimeError):
    """The sandbox could not be made; nothing of the job has run."""


@dataclass(frozen=True)
class Ended:
    """How the job's own process ended: one of the two is set, unless the sandbox fell first."""

    code: int | None
    signal: int | None


class Running:
    """A job in its sandbox. Read `stdout`, `stderr` and `control` when they become readable."""

    def __init__(
        self, process: subprocess.Popen[bytes], init_pid: int, groups: cgroups.Groups | None
    ) -> None:
        self.process = process
        self.init_pid = init_pid
        self.groups = groups
        self.stdout = -1
        self.stderr = -1
        self.control = -1
        self.shells: list[int] = []
        """Sockets to the terminals of shells that were asked for, not yet fetched; -1 for one that
        could not be opened."""
        self.door = -1
        """Listens on the job's own loopback, once init has handed it up."""
        self.stderr_in = -1
        """For the gate, whose words belong in the job's log."""
        self.failure = ""
        self.ended: Ended | None = None
        self.started_up_ms = 0
        self._said = b""
        self._handed: list[int] = []

    def listen(self) -> bool:
        """Reads what init says (`started_up_ms`, `failure`, `ended`); False once it is gone."""
        try:
            data = self._receive()
        except ConnectionResetError:
            data = b""
        *lines, self._said = (self._said + data).split(b"\n")
        try:
            for line in lines:
                self._take(*line.decode(errors="replace").partition(" ")[::2])
            if len(self._said) > _MOST_SAID or len(self._handed) + len(self.shells) > _MOST_HANDED:
                raise ValueError("too much at once")
        except (ValueError, IndexError):
            # Nobody but our init speaks here, unless the job got hold of it.
            self.failure = "its first process was meddled with"
            self.ended = Ended(_MEDDLED, None)
            return False
        return bool(data)

    def _take(self, word: str, rest: str) -> None:
        """One line; raises ValueError or IndexError if it makes no sense."""
        if word == "started" and not self.started_up_ms:
            self.started_up_ms = _number(rest, least=1, most=up_ms())
        elif word == "door" and self.door < 0:
            self.door = self._handed.pop(0)
        elif word == "shell":
            self.shells.append(self._handed.pop(0))
        elif word == "noshell":
            self.shells.append(-1)
        elif word == "failed" and not self.started_up_ms:
            self.failure = rest
        elif word == "exited":
            code, number = (_number(one, least=0, most=255) for one in rest.split(" "))
            self.ended = Ended(None, number) if number else Ended(code, None)
        else:
            raise ValueError(word)

    def _receive(self) -> bytes:
        with contextlib.closing(socket.socket(fileno=os.dup(self.control))) as channel:
            data, handed, _, _ = socket.recv_fds(channel, 4096, 1)
        self._handed += handed
        return data

    def term(self) -> None:
        """Asks init to send SIGTERM to the job's process."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            os.write(self.control, b"T")

    def ask_for_shell(self) -> None:
        """Asks init for a shell beside the job; its socket comes into `shells`."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            os.write(self.control, b"A")

    def kill(self) -> None:
        """Ends every process of the job; they are gone when `destroy` returns."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.init_pid, signal.SIGKILL)
        if self.groups:
            for pid in self.groups.members():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def destroy(self) -> bool:
        """Makes sure that nothing of the job survives; False if something would not die."""
        self.kill()
        self.process.wait()
        gone = self.groups.destroy() if self.groups else True
        return adopt_and_kill() and gone


def launch(folder: Path, order: KeeperOrder, secrets: dict[str, str] | None = None) -> Running:
    """Starts the job, `secrets` among its environment; raises StartFailed. On return init has its orders, not yet the job its exec:
    wait for `started_up_ms` or `failure`."""
    if order.rung.wall == "none":
        _adopt_orphans()
    ours, theirs = socket.socketpair()
    groups = _groups(folder, order)
    fds = _Descriptors(order.rung)
    try:
        bubblewrap.write_etc(folder, _shown_uid(folder, order.rung), order.network)
        argv = _command(folder, order, fds, theirs.fileno())
        with _joined(order) as namespace:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=fds.stdout[1],
                stderr=fds.stderr[1],
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                cwd="/",
                close_fds=True,
                pass_fds=(theirs.fileno(), *fds.for_bwrap),
                start_new_session=order.rung.wall == "none",
                preexec_fn=partial(_prepare_child, groups, order.limits.cpus, namespace),  # noqa: PLW1509
            )
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        if groups:
            groups.destroy()
        fds.close_all()
        raise StartFailed(str(error)) from error
    theirs.close()
    running = Running(process, process.pid, groups)
    if order.egress:
        running.stderr_in = os.dup(fds.stderr[1])
    running.stdout, running.stderr = fds.ours()
    running.control = ours.detach()
    if order.rung.wall != "none":
        running.init_pid = _read_init_pid(fds.info[0], running)
    _send(running, message(folder, order, secrets or {}))
    return running


def message(folder: Path, order: KeeperOrder, secrets: dict[str, str]) -> bytes:
    """Our init's only message: its limits and the job's command and environment."""
    limits = _rlimits(order)
    argv, env, cwd = order.argv, bubblewrap.environment(order, secrets), order.cwd
    if order.rung.wall == "none":
        [*argv, cwd], env = plain.translate(folder, [*argv, cwd], env)
    uid = workspace.owner(folder, order.rung) if order.rung.wall == "root" else -1
    fields = [
        str(uid),
        bubblewrap.root(order),
        cwd,
        "door" if order.egress else "",
        str(len(limits)),
        *(f"{name}={value}" for name, value in limits.items()),
    ]
    fields += [str(len(argv)), *argv, *(f"{name}={value}" for name, value in env.items())]
    body = b"".join(os.fsencode(field) + b"\0" for field in fields)
    return len(body).to_bytes(4, "little") + body


def _number(text: str, *, least: int, most: int) -> int:
    """Raises ValueError unless it is one of these."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not least <= number <= most:
        raise ValueError(text)
    return number


def group_name(folder: Path) -> str:
    """The control groups' name of this assignment, the same whoever asks."""
    return "gridloom-" + hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]


def adopt_and_kill() -> bool:
    """Kills our orphans: without a process namespace, a job's grandchildren may become ours."""
    for _ in range(1000):
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return True
    return False


def _adopt_orphans() -> None:
    """What outlives its parents becomes ours, so that `adopt_and_kill` finds it."""
    zero = ctypes.c_ulong(0)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), zero, zero, zero)


class _Descriptors:
    """The pipes and memory files of one start."""

    def __init__(self, rung: Rung) -> None:
        self.stdout = _pipe()
        self.stderr = _pipe()
        self.info = os.pipe()
        self.filter = os.memfd_create("seccomp")
        walled = rung.wall != "none"
        self.for_bwrap = (self.info[1], self.filter) if walled else ()

    def ours(self) -> tuple[int, int]:
        """Closes the other side's ends and returns where the job's output is read."""
        for fd in (self.stdout[1], self.stderr[1], self.info[1], self.filter):
            os.close(fd)
        return self.stdout[0], self.stderr[0]

    def close_all(self) -> None:
        for fd in (*self.stdout, *self.stderr, *self.info, self.filter):
            os.close(fd)


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    with contextlib.suppress(OSError):  # a soft limit of the host: the default size does as well
        fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return read, write


def _command(folder: Path, order: KeeperOrder, fds: _Descriptors, control: int) -> list[str]:
    if order.rung.wall == "none":
        plain.prepare(folder, order)
        init = str(Path(__file__).with_name("init.py"))
        return [bubblewrap.base_python(order), "-I", "-S", init, str(control)]
    # For our init: the job itself lacks the right to.
    allowed = ["chroot"] if order.image else []
    refused = _unbounded(order.rung.limits)
    os.write(fds.filter, seccomp.program(also_refused=refused, also_allowed=allowed))
    os.lseek(fds.filter, 0, os.SEEK_SET)
    uid = _shown_uid(folder, order.rung)
    if order.rung.wall == "root":
        for fd in (fds.stdout[1], fds.stderr[1]):
            os.fchown(fd, uid, uid)  # or the job could not open its own /dev/stdout
    return bubblewrap.command(
        order, folder, seccomp_fd=fds.filter, info_fd=fds.info[1], control_fd=control
    )


def _unbounded(kind: Literal["cgroup2", "cgroup1", "rlimits"]) -> list[str]:
    """Calls by which a job would slip from bounds that are weaker than control groups."""
    if kind == "rlimits":
        return [*seccomp.UNBOUNDED_MEMORY, *seccomp.UNBOUNDED_CPUS]
    return [] if cgroups.binds_cpus(kind) else [*seccomp.UNBOUNDED_CPUS]


def _groups(folder: Path, order: KeeperOrder) -> cgroups.Groups | None:
    if order.rung.limits == "rlimits":
        return None
    try:
        return cgroups.create(group_name(folder), order.limits, order.rung.limits)
    except cgroups.NoCgroups as error:
        raise StartFailed(str(error)) from None


def _shown_uid(folder: Path, rung: Rung) -> int:
    return bubblewrap.NOBODY if rung.wall == "userns" else workspace.owner(folder, rung)


@contextlib.contextmanager
def _joined(order: KeeperOrder) -> Iterator[int | None]:
    """The gang's network, to start the job in; None for a job of one node. Once started, it is the
    job that holds it, and it goes with the job."""
    if order.network is None:
        yield None
        return
    if order.rung.wall != "root":
        raise StartFailed("a gang's network takes a sandbox made by root")
    try:
        namespace = network.make(order.network)
    except network.NetworkError as error:
        raise StartFailed(f"the gang's network can't be made: {error}") from None
    try:
        yield namespace
    finally:
        os.close(namespace)


def _prepare_child(groups: cgroups.Groups | None, cpus: list[int], namespace: int | None) -> None:
    if namespace is not None:
        network.enter(namespace)
    if groups:
        groups.enter()
    if cpus:
        os.sched_setaffinity(0, cpus)


def _rlimits(order: KeeperOrder) -> dict[str, int]:
    """What our init sets on itself. Never RLIMIT_AS: CUDA reserves terabytes of addresses."""
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": order.limits.files,
        "RLIMIT_FSIZE": order.limits.disk_bytes,
        "RLIMIT_MSGQUEUE": 2**20,
        "RLIMIT_RTPRIO": 0,
        "RLIMIT_NICE": 0,
    }
    if order.rung.wall != "none":  # there it would count all processes of the agent's own user
        limits["RLIMIT_NPROC"] = order.limits.pids
    return limits


def _read_init_pid(info: int, running: Running) -> int:
    """What bubblewrap says of its child; raises StartFailed with its complaint instead."""
    data = b""
    while select.select([info], [], [], _START_WITHIN_S)[0]:
        more = os.read(info, 4096)
        data += more
        if not more:
            break
    os.close(info)
    try:
        return int(json.loads(data)["child-pid"])
    except (ValueError, KeyError):
        raise _failure(running) from None


def _send(running: Running, data: bytes) -> None:
    try:
        with contextlib.closing(socket.socket(fileno=os.dup(running.control))) as channel:
            channel.settimeout(_START_WITHIN_S)
            channel.sendall(data)
    except OSError:
        raise _failure(running) from None


def _failure(running: Running) -> StartFailed:
    """What the sandbox wrote to its stderr before it gave up."""
    running.destroy()
    os.set_blocking(running.stderr, False)
    said = b""
    with contextlib.suppress(BlockingIOError):
        said = os.read(running.stderr, 4096)
    words = said.decode(errors="replace").strip().splitlines()
    for fd in (running.stdout, running.stderr, running.control):
        os.close(fd)
    return StartFailed(words[-1] if words else "the sandbox ended before the job began")


if sys.platform != "linux":
    raise ImportError("jobs run on Linux only")
