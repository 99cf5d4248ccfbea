"""The first process inside the sandbox: gives up all rights, starts the job, and ends with it.

Its keeper holds the other end of a socket, whose descriptor is this program's only argument.
Down comes one message (see `agent.sandbox.launch.message`), then single letters: T asks for SIGTERM
to the job, A for a shell beside it. When the socket closes, the keeper is dead and the job must not outlive it. Up go lines:
`started <boot clock, ms>`, `failed <why>`, `exited <code> <signal>`; and before them, for a job
that may reach somebody, `door` with a socket that listens on the job's own loopback. Each A is
answered by `shell` with a socket to a terminal (`serve_shell`), or by `noshell`.

As process 1 of a process namespace its exit takes every process of the job with it. Without one
(rung none) it adopts orphans and kills all descendants itself.

Runs as `python -I -S init.py FD`: standard library only, and few imports, since its start is part
of every job's: `typing` alone takes 10 ms to import, and 5 ms the enumerations by which `signal`
differs from `_signal`. Nothing that the job chose (environment, arguments) touches this process.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import ctypes
import os
import resource
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 1, 4, 24, 36
LAST_CAPABILITY = 63
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero)


def main() -> NoReturn:
    control = int(sys.argv[1])
    os.set_inheritable(control, False)
    uid, root, cwd, has_door, limits, argv, env = receive(control)
    alone = os.getpid() == 1
    if not alone:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    if root:
        change_root(root)
    if root or uid >= 0:
        give_up_rights(uid)
    set_limits(limits)
    if has_door:
        env = open_door(control) | env
    # The job shares our uid: without this it could read and trace us.
    prctl(PR_SET_DUMPABLE, 0)
    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, lambda *_: None)  # the keeper speaks through the socket alone
    now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    job, failure = start(argv, env, cwd)
    if failure:
        say(control, f"failed {failure}")
        os._exit(127)
    say(control, f"started {now_ms}")
    status = watch(control, wake, job, (env, cwd))
    if not alone:
        kill_descendants()
    if status is not None:
        said = os.waitstatus_to_exitcode(status)
        say(control, f"exited {max(said, 0)} {max(-said, 0)}")
    os._exit(0)


def receive(control: int) -> tuple[int, str, str, bool, dict[str, int], list[str], dict[str, str]]:
    """The keeper's message: 4 bytes of length, then fields that end in NUL."""
    length = int.from_bytes(read_exactly(control, 4), "little")
    fields = os.fsdecode(read_exactly(control, length)).split("\0")[:-1]
    uid, root, cwd, has_door = int(fields[0]), fields[1], fields[2], fields[3] == "door"
    count, rest = int(fields[4]), fields[5:]
    limits = {name: int(value) for name, value in (one.split("=") for one in rest[:count])}
    count, rest = int(rest[count]), rest[count + 1 :]
    pairs = (one.partition("=") for one in rest[count:])
    env = {name: value for name, _, value in pairs}
    return uid, root, cwd, has_door, limits, rest[:count], env


def read_exactly(control: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = os.read(control, length - len(data))
        if not more:
            os._exit(1)  # the keeper is gone
        data += more
    return data


def change_root(root: str) -> None:
    """Makes an image's files the only ones there are. Nothing of ours comes from them: all that is
    imported later is imported now, and no place is left to import from."""
    import _socket  # noqa: F401
    import fcntl  # noqa: F401
    import termios  # noqa: F401
    import warnings  # noqa: F401

    sys.meta_path.clear()
    sys.path.clear()
    sys.path_importer_cache.clear()
    os.chroot(root)
    os.chdir("/")


def give_up_rights(uid: int) -> None:
    """Drops every capability and becomes `uid`, unless that is -1: it is the job's already."""
    for capability in range(LAST_CAPABILITY + 1):
        prctl(PR_CAPBSET_DROP, capability)
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)  # clears the permitted, effective and ambient sets
    version_3_of_this_process = (ctypes.c_uint32 * 2)(0x20080522, 0)
    none = (ctypes.c_uint32 * 6)()
    if libc.capset(version_3_of_this_process, none) != 0:  # all that is left of them
        raise OSError(ctypes.get_errno(), "capset")
    if uid >= 0:
        # Changing the uid cleared it, and the socket alone is not enough for a frozen process.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def set_limits(limits: dict[str, int]) -> None:
    """Lowers both soft and hard limits; one already lower stays."""
    for name, value in limits.items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(which, (value, value))


def open_door(control: int) -> dict[str, str]:
    """Hands up a socket that listens on this network's loopback: whoever accepts there (the gate)
    is outside. Returns the variables by which programs find it."""
    import _socket

    kind = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC
    door = _socket.socket(_socket.AF_INET, kind)
    door.bind(("127.0.0.1", 0))
    door.listen(128)
    hand_up(control, b"door\n", door.fileno())
    found = dict.fromkeys(PROXIES, f"http://127.0.0.1:{door.getsockname()[1]}")
    door.close()
    return found | {name.lower(): value for name, value in found.items()}


def hand_up(control: int, line: bytes, descriptor: int) -> None:
    """Says a line, and passes a descriptor with it."""
    import _socket

    channel = _socket.socket(fileno=os.dup(control))
    rights = descriptor.to_bytes(4, sys.byteorder)
    channel.sendmsg([line], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    channel.close()


def open_shell(control: int, env: dict[str, str], cwd: str) -> None:
    """A shell beside the job, under all that binds the job; its other end is handed up, or
    `noshell` said."""
    import _socket

    kind = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC
    try:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, kind)
        relay = os.fork()
    except OSError:  # the job has used up its processes: it goes on, and the visitor leaves
        say(control, "noshell")
        return
    if relay == 0:
        try:
            serve_shell(os.dup2(ours.fileno(), 3), env, cwd)
        finally:
            os._exit(0)
    hand_up(control, b"shell\n", theirs.fileno())
    ours.close()
    theirs.close()


def serve_shell(peer: int, env: dict[str, str], cwd: str) -> None:
    """Moves bytes between `peer` and a shell's terminal until either ends.

    From the peer come frames: a letter, two bytes of length, and as much: d is typed, w is the
    window's rows and columns, two bytes each. To it goes what the terminal shows, as it is.
    """
    signal.set_wakeup_fd(-1)
    os.closerange(peer + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    terminal, inside = os.openpty()
    shell = os.fork()
    if shell == 0:
        become_shell(inside, env, cwd)
    os.close(inside)
    told = b""
    while True:
        ready, _, _ = select.select([peer, terminal], [], [])
        if terminal in ready:
            try:
                shown = os.read(terminal, 4096)
            except OSError:
                return  # nobody has the terminal open any more
            while shown:
                shown = shown[os.write(peer, shown) :]
        if peer in ready:
            more = os.read(peer, 4096)
            if not more:
                os.kill(shell, signal.SIGHUP)
                return
            told = obey(told + more, terminal)


def obey(told: bytes, terminal: int) -> bytes:
    """Does what whole frames ask for; what is left of the last one."""
    import fcntl
    import termios

    while len(told) >= 3 and len(told) >= 3 + int.from_bytes(told[1:3], "big"):
        size = int.from_bytes(told[1:3], "big")
        letter, data, told = told[:1], told[3 : 3 + size], told[3 + size :]
        if letter == b"d":
            os.write(terminal, data)
        elif letter == b"w" and size == 4:
            window = data[1::-1] + data[3:1:-1] + bytes(4)  # struct winsize, little-endian
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, window)
    return told


def become_shell(terminal: int, env: dict[str, str], cwd: str) -> NoReturn:
    try:
        os.login_tty(terminal)
        for number in (*range(1, 32), *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)):
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
        prctl(PR_SET_DUMPABLE, 1)
        os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        os.chdir(cwd)
        for name in ("bash", "sh"):
            try:
                os.execvpe(name, [name, "-i"], {**env, "TERM": "xterm-256color"})
            except FileNotFoundError:
                continue
    finally:
        os._exit(127)


def start(argv: list[str], env: dict[str, str], cwd: str) -> tuple[int, str]:
    """(process, "") of the job, or (0, why it could not start)."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    job = os.fork()
    if job == 0:
        become_job(argv, env, cwd, tell)
    os.close(tell)
    failure = os.read(told, 4096).decode(errors="replace")
    os.close(told)
    return (0, failure) if failure else (job, "")


def become_job(argv: list[str], env: dict[str, str], cwd: str, tell: int) -> NoReturn:
    doing = "preparing the job"
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (*range(1, 32), *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)):
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
        prctl(PR_SET_DUMPABLE, 1)  # or its own /proc files would not be its own
        with open("/proc/self/oom_score_adj", "w") as adjust:
            adjust.write("800")  # where memory runs out, the job goes first
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        tell = os.dup2(tell, 3, inheritable=False) if tell != 3 else 3
        os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        os.chdir(cwd)
        doing = argv[0]
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        os.write(tell, f"{doing}: {error.strerror or error}".encode(errors="replace"))
    finally:
        os._exit(127)


def watch(
    control: int, wake: int, job: int, surroundings: tuple[dict[str, str], str]
) -> int | None:
    """The job's wait status, or None when the keeper is gone."""
    while True:
        ready, _, _ = select.select([control, wake], [], [])
        if wake in ready:
            drain(wake)
            status = reap(job)
            if status is not None:
                return status
        if control in ready:
            letters = os.read(control, 16)
            if not letters:
                return None
            if b"T" in letters:
                os.kill(job, signal.SIGTERM)
            for _ in range(letters.count(b"A")):
                open_shell(control, *surroundings)


def drain(wake: int) -> None:
    try:
        while os.read(wake, 4096):
            pass
    except BlockingIOError:
        pass


def reap(job: int) -> int | None:
    """Collects every dead child; the job's status once it is among them."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == job:
            status = ended


def kill_descendants() -> None:
    """Kills children until none is left; the orphans of each become ours (subreaper)."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            pids = [int(pid) for pid in children.read().split()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def say(control: int, line: str) -> None:
    try:
        os.write(control, line.encode(errors="replace") + b"\n")
    except OSError:
        os._exit(1)  # nobody listens: the keeper is gone


if __name__ == "__main__":
    main()
