"""The keeper of one assignment: a small process of its own session, the parent of the sandbox.

`python -m agent.keeper FOLDER` reads `order.json` there, runs the job, writes what it prints to
capped files and how it is to `status.json`, and ends it when its paid time or its grace is over,
whether or not an agent is there. A killed or upgraded agent finds its jobs again through
`read_status`; a killed keeper takes its job with it.

The agent's side: `start`, `read_status`, `wait`, `drain`, `kill`. All times are running time of
the job (boot clock since its process started), see `agent.order`.
"""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

import agent
from agent import order as files
from agent.order import Drain, KeeperOrder, OrderError, Status
from agent.sandbox import traces, workspace
from agent.sandbox.supervise import Supervisor

READY = "ready"
_READY_WITHIN_S = 30.0
_KILL_WITHIN_S = 10.0
_LOCK_WITHIN_S = 1.0


class KeeperError(RuntimeError):
    """A keeper could not be started; the message says why."""


def start(folder: Path) -> None:
    """Makes the work folder and starts the keeper; returns once it holds its lock.

    Nothing happens if one is at work already. Raises OrderError (the order is missing, malformed,
    or has been run), WorkspaceError (no room), KeeperError.
    """
    order = files.read(folder / files.ORDER, KeeperOrder)
    if order is None:
        raise OrderError(f"{folder / files.ORDER} is missing")
    if files.read_paid_through(folder) is None:
        raise OrderError(f"{folder / files.PAID_THROUGH} must hold milliseconds as a number")
    kept, last = _is_kept(folder), _last_word(folder)
    if kept and (last is None or last.state != "gone"):
        return
    if last is not None:
        raise OrderError(f"{folder} has been run already; a new try needs a new folder")
    workspace.prepare(folder, order)
    said = _spawn(folder)
    if said != READY:
        raise KeeperError(said or f"the keeper died before it was ready: see {folder}/keeper.log")


def read_status(folder: Path) -> Status | None:
    """How the job is; None if no keeper was ever started here.

    A keeper that died without a last word is reported as gone (`keeper_lost`, after making sure
    that nothing of the job survives, or `rebooted`), and that is written down.
    """
    while True:
        kept = _is_kept(folder)  # asked first: the last word is written before the lock goes
        status = _last_word(folder)
        if status is None or status.state == "gone":
            if status is None and kept:
                time.sleep(0.005)  # between its lock and its first word
                continue
            workspace.attach(folder)
            return status
        if kept:
            workspace.attach(folder)
            return status
        return _bury(folder, status)


def drain(folder: Path, why: str, grace_ms: int | None = None) -> None:
    """Asks for the job's end: SIGTERM, and SIGKILL after the grace (None: the order's)."""
    files.write(folder / files.DRAIN, Drain(why=why, grace_ms=grace_ms))


def kill(folder: Path) -> Status | None:
    """Ends the job at once and waits until nothing of it is left; its last status."""
    status = read_status(folder)
    if status is None or status.state == "gone":
        return status
    with contextlib.suppress(ProcessLookupError):
        os.kill(status.keeper_pid, signal.SIGTERM)
    deadline = time.monotonic() + _KILL_WITHIN_S
    while _is_kept(folder):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(status.keeper_pid, signal.SIGKILL)
        time.sleep(0.01)
    return read_status(folder)


def wait(folder: Path, within_s: float) -> Status | None:
    """The last word about the job, or None if it is not spoken in time."""
    deadline = time.monotonic() + within_s
    while True:
        status = read_status(folder)
        if status is not None and status.state == "gone":
            return status
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)


def _last_word(folder: Path) -> Status | None:
    """The status as written; a file that lost its content with the machine's power is one of an
    earlier boot."""
    try:
        return files.read(folder / files.STATUS, Status)
    except OrderError:
        return Status(keeper_pid=0, boot_id="unknown", state="starting")


def _bury(folder: Path, last: Status) -> Status:
    """Writes the last word that a dead keeper could not write."""
    if last.boot_id == files.boot_id():
        traces.erase(folder)
        gone = msgspec.structs.replace(
            last, state="gone", why="keeper_lost", detail="its keeper died, and the job with it"
        )
        workspace.attach(folder)
    else:
        gone = msgspec.structs.replace(
            last, state="gone", why="rebooted", detail="the machine was started anew"
        )
    with contextlib.suppress(OSError):  # a full disk: it will be found out again
        files.write(folder / files.STATUS, gone, durable=True)
    return gone


def _is_kept(folder: Path) -> bool:
    """Whether a living keeper holds the lock."""
    try:
        with open(folder / files.LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _spawn(folder: Path) -> str:
    """Starts a detached keeper; what it says when it is ready, or why it isn't."""
    told, tell = os.pipe()
    homes = (str(Path(module.__file__ or "").parent.parent) for module in (agent, msgspec))
    try:
        with open(folder / "keeper.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "agent.keeper", str(folder.resolve()), str(tell)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # nothing of the agent's own environment: it may hold keys
                env={"PYTHONPATH": os.pathsep.join(homes), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                cwd="/",
                pass_fds=(tell,),
                start_new_session=True,
            )
    finally:
        os.close(tell)
    process.wait()  # it forks at once: the keeper is nobody's child, and leaves no zombie
    ready = select.select([told], [], [], _READY_WITHIN_S)[0]
    said = os.read(told, 4096).decode(errors="replace") if ready else "it was not ready in time"
    os.close(told)
    return said


def main(argv: list[str]) -> int:
    """The keeper process; `argv`: FOLDER, and the descriptor on which to say "ready"."""
    if len(argv) not in (1, 2):
        sys.stderr.write("usage: python -m agent.keeper FOLDER [READY_FD]\n")
        return 2
    folder, tell = Path(argv[0]), int(argv[1]) if len(argv) == 2 else None
    if tell is not None and os.fork():
        os._exit(0)
    if tell is not None:
        os.setsid()
    try:
        _take_lock(folder)
        secrets = files.take_secrets(folder)
        order = files.read(folder / files.ORDER, KeeperOrder)
    except (OSError, OrderError) as error:
        _say(tell, f"{folder}: {error}")
        return 1
    if order is None or (folder / files.STATUS).exists():
        _say(tell, f"{folder}: {'has been run already' if order else 'there is no order.json'}")
        return 1
    supervisor = Supervisor(folder, order, secrets)
    _say(tell, READY)
    supervisor.run()
    return 0


def _take_lock(folder: Path) -> int:
    """Holds the lock until the process ends; a reader who asks may hold it for a moment."""
    lock = os.open(folder / files.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_WITHIN_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _say(tell: int | None, words: str) -> None:
    if tell is None:
        sys.stderr.write(f"{words}\n")
    else:
        os.write(tell, words.encode(errors="replace"))
        os.close(tell)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
