"""The system call filter of a job: our list (`syscalls.py`) as a program for the kernel.

A seccomp filter is a program of classic BPF instructions over (call number, architecture,
arguments), see seccomp(2). We write it ourselves: the list stays readable in this repository and
nothing has to be installed. The calls are looked up by bisecting their numbers, about nine
comparisons each; the kernel caches the verdict of calls that are allowed whatever their arguments.
"""

import errno
import platform
import struct
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from agent.sandbox.syscalls import ALLOWED, JUDGED, REFUSED

AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""How the kernel names an architecture to a filter (linux/audit.h)."""

# linux/filter.h, linux/bpf_common.h: load a word of the data, compare with k and jump, return k
_LOAD, _JUMP, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000  # linux/seccomp.h
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data; arguments follow at 16, 8 bytes each

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEW: NS, CGROUP, UTS, IPC, USER, PID, NET
_TERMINAL_TRICKS = (0x5412, 0x541C, 0x541D, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16


class UnsupportedMachine(RuntimeError):
    """We have no table of system calls for this processor."""


class Instruction(NamedTuple):
    """struct sock_filter: jumps count the instructions to skip."""

    code: int
    if_true: int
    if_false: int
    k: int


_Code = list[Instruction]

UNBOUNDED_CPUS: Final = ("sched_setaffinity",)
"""To refuse where nothing but the affinity of its processes keeps a job on its CPUs."""

UNBOUNDED_MEMORY: Final = ("shmget",)
"""To refuse where memory is watched: a detached segment belongs to no process."""


def program(
    machine: str | None = None,
    *,
    also_refused: Collection[str] = (),
    also_allowed: Collection[str] = (),
) -> bytes:
    """The filter for `machine` (as platform.machine() says it) as bytes for `bwrap --seccomp`.

    Calls from our tables that this job may not make (see `UNBOUNDED`), or may (what the kernel
    refuses it all the same). Raises UnsupportedMachine.
    """
    found = instructions(machine, also_refused, also_allowed)
    return b"".join(struct.pack("<HBBI", *one) for one in found)


def instructions(
    machine: str | None = None,
    also_refused: Collection[str] = (),
    also_allowed: Collection[str] = (),
) -> Sequence[Instruction]:
    """The filter, readable; see `program`."""
    machine = machine or platform.machine()
    if machine not in AUDIT_ARCH:
        raise UnsupportedMachine(
            f"no list of system calls for {machine}; jobs run on {' and '.join(AUDIT_ARCH)}"
        )
    # A 32-bit or x32 call would be looked up in the wrong table: foreign doors kill, and x32's
    # numbers lie beyond all of ours.
    foreign = _deny(_KILL_PROCESS)
    return [
        _load(_ARCH),
        Instruction(_IF_EQUAL, len(foreign), 0, AUDIT_ARCH[machine]),
        *foreign,
        _load(_NUMBER),
        *_bisect(_verdicts(machine, also_refused, also_allowed)),
    ]


def _verdicts(
    machine: str, also_refused: Collection[str], also_allowed: Collection[str]
) -> list[tuple[int, _Code]]:
    """(first number, what happens from there on) in order, neighbours with one verdict merged."""
    column = 0 if machine == "x86_64" else 1
    codes = {name: _allow() for name in ALLOWED} | {name: _refuse() for name in REFUSED}
    codes |= {name: judge() for name, judge in _JUDGES.items()}
    codes |= {name: _refuse() for name in also_refused}
    codes |= {name: _allow() for name in also_allowed}
    numbers = ALLOWED | JUDGED | REFUSED
    by_number = {numbers[name][column]: code for name, code in codes.items()}
    unknown = _deny(_ERRNO | errno.ENOSYS)
    verdicts: list[tuple[int, _Code]] = []
    for number in range(max(one for one in by_number if one is not None) + 2):
        verdict = by_number.get(number, unknown)
        if not verdicts or verdicts[-1][1] != verdict:
            verdicts.append((number, verdict))
    return verdicts


def _bisect(verdicts: list[tuple[int, _Code]]) -> _Code:
    """Code that finds the verdict for the number loaded before."""
    if len(verdicts) == 1:
        return verdicts[0][1]
    middle = len(verdicts) // 2
    below, above = _bisect(verdicts[:middle]), _bisect(verdicts[middle:])
    least = verdicts[middle][0]
    if len(below) <= 255:  # as far as a conditional jump reaches
        return [Instruction(_IF_AT_LEAST, len(below), 0, least), *below, *above]
    far = Instruction(_JUMP, 0, 0, len(below))
    return [Instruction(_IF_AT_LEAST, 0, 1, least), far, *below, *above]


def _load(offset: int) -> Instruction:
    return Instruction(_LOAD, 0, 0, offset)


def _argument(index: int) -> Instruction:
    """Loads the low half of an argument: all that the kernel reads of an int."""
    return _load(16 + 8 * index)


def _deny(verdict: int) -> _Code:
    return [Instruction(_RETURN, 0, 0, verdict)]


def _allow() -> _Code:
    return _deny(_ALLOW)


def _refuse() -> _Code:
    return _deny(_ERRNO | errno.EPERM)


def _if_among(values: Sequence[int], then: _Code, otherwise: _Code) -> _Code:
    """Whether the loaded argument is one of the values decides between two ends."""
    tests = [
        Instruction(_IF_EQUAL, len(values) - 1 - at + len(otherwise), 0, value)
        for at, value in enumerate(values)
    ]
    return [*tests, *otherwise, *then]


def _judge_clone() -> _Code:
    """Processes and threads yes, namespaces no."""
    return [_argument(0), Instruction(_IF_ANY_BIT, 0, 1, _NEW_NAMESPACES), *_refuse(), *_allow()]


def _judge_ioctl() -> _Code:
    """All but what types into or takes over a terminal; devices are kept out by /dev."""
    return [_argument(1), *_if_among(_TERMINAL_TRICKS, _refuse(), _allow())]


def _judge_personality() -> _Code:
    """Asking, and the ordinary one; others switch protections of memory off."""
    return [_argument(0), *_if_among((0, 0xFFFFFFFF), _allow(), _refuse())]


def _judge_socket() -> _Code:
    """TCP, UDP, Unix and asking for routes: every other family is kernel code no job needs, and
    some (VSOCK, Bluetooth) reach outside, whatever the network namespace."""
    no_family = _deny(_ERRNO | errno.EAFNOSUPPORT)
    no_protocol = _deny(_ERRNO | errno.EPROTONOSUPPORT)
    internet = [_argument(2), *_if_among((0, 6, 17), _allow(), no_protocol)]
    netlink = [_argument(2), *_if_among((0,), _allow(), no_protocol)]  # NETLINK_ROUTE
    rest = _if_among((_NETLINK,), netlink, _if_among((_UNIX,), _allow(), no_family))
    return [_argument(0), *_if_among((_INET, _INET6), internet, rest)]


def _judge_socketpair() -> _Code:
    return [_argument(0), *_if_among((_UNIX,), _allow(), _deny(_ERRNO | errno.EAFNOSUPPORT))]


_JUDGES: Final[dict[str, Callable[[], _Code]]] = {
    "clone": _judge_clone,
    "ioctl": _judge_ioctl,
    "personality": _judge_personality,
    "socket": _judge_socket,
    "socketpair": _judge_socketpair,
}
