"""Attacks by system call: what must be refused whoever asks.

A refusal is EPERM, EACCES or ENOSYS; with any other answer the call got past the filter, and the
arguments are such that it then fails or changes nothing. Calls that may kill or change the caller
run in a child.
"""

import ctypes
import errno
import mmap
import os
import platform
import signal
import socket
from collections.abc import Callable

from .walls import Targets

_libc = ctypes.CDLL(None, use_errno=True)
_REFUSALS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}
_NEWUSER, _NEWNS, _NEWNET = 0x10000000, 0x00020000, 0x40000000
_X86 = platform.machine() == "x86_64"

# name → number on x86-64, on ARM64, arguments that harm nobody
_CALLS: dict[str, tuple[int, int, tuple[object, ...]]] = {
    "mount": (165, 40, (b"none", b"/nowhere", b"tmpfs", 0, 0)),
    "umount": (166, 39, (b"/nowhere", 0)),
    "pivot_root": (155, 41, (b"/nowhere", b"/nowhere")),
    "chroot": (161, 51, (b"/nowhere",)),
    "open_tree": (428, 428, (-1, b"/nowhere", 0)),
    "fsopen": (430, 430, (b"no-such-file-system", 0)),
    "move_mount": (429, 429, (-1, b"/nowhere", -1, b"/nowhere", 0)),
    "bpf": (321, 280, (0, 0, 0)),
    "perf_event_open": (298, 241, (0, 0, -1, -1, 0)),
    "userfaultfd": (323, 282, (0x7FFFFFFF,)),
    "io_uring_setup": (425, 425, (0, 0)),
    "add_key": (248, 217, (b"user", b"gridloom", b"x", 0, -1)),
    "request_key": (249, 218, (b"user", b"gridloom-no-such-key", 0, 0)),
    "keyctl": (250, 219, (0, -3, 0)),
    "open_by_handle_at": (304, 265, (-1, 0, 0)),
    "process_vm_readv": (310, 270, (1, 0, 0, 0, 0, 0)),
    "pidfd_getfd": (438, 438, (-1, 0, 0)),
    "kcmp": (312, 272, (1, 1, 99, 0, 0)),
    "init_module": (175, 105, (0, 0, b"")),
    "finit_module": (313, 273, (-1, b"", 0)),
    "kexec_load": (246, 104, (0, 99, 0, 0)),
    "reboot": (169, 142, (0, 0, 0, 0)),
    "swapon": (167, 224, (b"/nowhere", 0)),
    "quotactl": (179, 60, (0, 0, 0, 0)),
    "syslog": (103, 116, (10, 0, 0)),
    "clock_settime": (227, 112, (0, 0)),
    "personality": (135, 92, (0x0400000,)),
    "fanotify_init": (300, 262, (0x7FFFFFFF, 0)),
    "memfd_secret": (447, 447, (0x7FFFFFFF,)),
    "unknown_call": (9999, 9999, ()),
}


def _attempt(name: str) -> Callable[[Targets], str | None]:
    x86, arm, arguments = _CALLS[name]

    def check(_: Targets) -> str | None:
        return _answer_in_child(lambda: _call(x86 if _X86 else arm, *arguments))

    return check


def _call(number: int, *arguments: object) -> int:
    """errno of a system call, 0 if it succeeded."""
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return ctypes.get_errno() if _libc.syscall(ctypes.c_long(number), *words) == -1 else 0


def _answer_in_child(attempt: Callable[[], int]) -> str | None:
    """None if the attempt was refused, or the child killed for it."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(attempt() & 0xFF)
        finally:
            os._exit(errno.EPERM)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended in _REFUSALS or ended in (-signal.SIGSYS, -signal.SIGSEGV):
        return None
    return "it worked" if ended == 0 else f"it came as far as {errno.errorcode.get(ended, ended)}"


def user_namespace(_: Targets) -> str | None:
    return _answer_in_child(lambda: _call(272 if _X86 else 97, _NEWUSER))


def mount_namespace(_: Targets) -> str | None:
    return _answer_in_child(lambda: _call(272 if _X86 else 97, _NEWNS))


def namespace_by_clone(_: Targets) -> str | None:
    """With a flag that makes the call invalid even if namespaces are let through."""
    invalid = 0x00000800  # CLONE_SIGHAND without CLONE_VM
    return _answer_in_child(lambda: _call(56 if _X86 else 220, _NEWUSER | invalid, 0, 0, 0, 0))


def namespace_by_clone3(_: Targets) -> str | None:
    return _answer_in_child(lambda: _call(435, 0, 0))


def enter_namespace_of_init(_: Targets) -> str | None:
    def enter() -> int:
        fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        return _call(308 if _X86 else 268, fd, _NEWNET)

    return _answer_in_child(enter)


def trace_another(_: Targets) -> str | None:
    """PTRACE_SEIZE of our own child: what works on it works on every process of the same user."""
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        return _answer_in_child(lambda: _call(101 if _X86 else 117, 0x4206, child, 0, 0))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def type_into_terminal(_: Targets) -> str | None:
    return _answer_in_child(lambda: _call(16 if _X86 else 29, 0, 0x5412, b"x"))


def type_into_terminal_by_wide_command(_: Targets) -> str | None:
    """The same with bits set that the kernel ignores and a careless filter compares."""
    return _answer_in_child(lambda: _call(16 if _X86 else 29, 0, 0x5412 | 1 << 32, b"x"))


def _family(family: int, kind: int, protocol: int = 0) -> Callable[[Targets], str | None]:
    def check(_: Targets) -> str | None:
        socket.socket(family, kind, protocol).close()
        return "got a socket"

    return check


def thirty_two_bit_door(_: Targets) -> str | None:
    """int 0x80 calls by the numbers of another table: 20 is getpid there, writev here."""
    if not _X86:
        return None
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\x31\xc0\xc3"  # mov eax, 20; int 0x80; xor eax, eax; ret
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return _answer_in_child(ctypes.CFUNCTYPE(ctypes.c_int)(address))


def x32_door(_: Targets) -> str | None:
    return _answer_in_child(lambda: _call(0x40000000 + 39)) if _X86 else None


CHECKS: dict[str, Callable[[Targets], str | None]] = {
    **{f"call_{name}": _attempt(name) for name in _CALLS},
    **{
        check.__name__: check
        for check in (
            *(user_namespace, mount_namespace, namespace_by_clone, namespace_by_clone3),
            *(enter_namespace_of_init, trace_another, type_into_terminal),
            *(type_into_terminal_by_wide_command, thirty_two_bit_door, x32_door),
        )
    },
    "socket_packet": _family(17, socket.SOCK_RAW),
    "socket_raw": _family(2, socket.SOCK_RAW, 1),
    "socket_vsock": _family(40, socket.SOCK_STREAM),
    "socket_crypto": _family(38, socket.SOCK_SEQPACKET),
    "socket_bluetooth": _family(31, socket.SOCK_RAW),
    "socket_netfilter": _family(16, socket.SOCK_RAW, 12),
    "socket_sctp": _family(2, socket.SOCK_STREAM, 132),
}
