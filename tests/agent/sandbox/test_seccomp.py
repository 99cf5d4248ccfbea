"""Our list of system calls, run as the kernel would run it."""

import errno
import struct

import pytest

from agent.sandbox import seccomp, syscalls

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS, EAFNOSUPPORT, EPROTONOSUPPORT = (
    0x50000 | number
    for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
)
MACHINES = ["x86_64", "aarch64"]
BIT32 = 1 << 32


def verdict(machine, name_or_number, *arguments, arch=None, also_refused=()):
    """What the filter says to one call, by a small machine for its instructions."""
    number = name_or_number
    if isinstance(number, str):
        numbers = (syscalls.ALLOWED | syscalls.JUDGED | syscalls.REFUSED)[number]
        number = numbers[MACHINES.index(machine)]
    arch = seccomp.AUDIT_ARCH[machine] if arch is None else arch
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *words)
    at = loaded = 0
    program = seccomp.instructions(machine, also_refused)
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("<I", data, k)
        elif code == 0x06:
            return k
        elif code == 0x05:
            at += k
        else:
            true = {0x15: loaded == k, 0x35: loaded >= k, 0x45: bool(loaded & k)}[code]
            at += if_true if true else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_of_the_tables_meets_its_verdict(machine):
    column = MACHINES.index(machine)
    for table, expected in ((syscalls.ALLOWED, ALLOW), (syscalls.REFUSED, EPERM)):
        for name, numbers in table.items():
            if numbers[column] is not None:
                assert verdict(machine, name) == expected, name


@pytest.mark.parametrize("machine", MACHINES)
def test_every_other_number_does_not_exist(machine):
    column = MACHINES.index(machine)
    known = syscalls.ALLOWED | syscalls.JUDGED | syscalls.REFUSED
    numbers = {row[column] for row in known.values()}
    for number in (*range(600), 0x40000000, 0x40000027, 0xFFFFFFFF):
        if number not in numbers:
            assert verdict(machine, number) == ENOSYS, number


@pytest.mark.parametrize("machine", MACHINES)
def test_no_number_stands_twice(machine):
    tables = (syscalls.ALLOWED, syscalls.JUDGED, syscalls.REFUSED)
    names = [name for table in tables for name in table]
    column = MACHINES.index(machine)
    numbers = [row[column] for table in tables for row in table.values() if row[column] is not None]
    assert len(names) == len(set(names))
    assert len(numbers) == len(set(numbers))


def test_the_numbers_are_the_kernels():
    # Where only the agent's own packages are seen (`test_as_ordinary_user`), it is left out.
    library = pytest.importorskip("pyseccomp", reason="one of development's packages")
    arches = {"x86_64": library.Arch.X86_64, "aarch64": library.Arch.AARCH64}
    compared = 0
    for name, row in (syscalls.ALLOWED | syscalls.JUDGED | syscalls.REFUSED).items():
        for machine, number in zip(MACHINES, row, strict=True):
            known = library.resolve_syscall(arches[machine], name)
            if known >= 0:  # an older library does not know the newest calls
                assert number == known, (name, machine)
                compared += 1
            elif number is None:
                assert known < 0, (name, machine)
    assert compared > 500


def test_a_foreign_architecture_kills():
    i386, arm = 0x40000003, 0x40000028
    assert verdict("x86_64", "read", arch=i386) == KILL
    assert verdict("x86_64", "read", arch=seccomp.AUDIT_ARCH["aarch64"]) == KILL
    assert verdict("aarch64", "read", arch=arm) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_and_processes_yes_namespaces_no(machine):
    thread = 0x3D0F00  # what glibc asks for a thread
    assert verdict(machine, "clone", thread) == ALLOW
    assert verdict(machine, "clone", 17) == ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(machine, "clone", flag | 17) == EPERM
    assert verdict(machine, 435) == ENOSYS  # clone3: glibc falls back to clone
    assert verdict(machine, 425) == ENOSYS  # io_uring_setup


@pytest.mark.parametrize("machine", MACHINES)
def test_sockets_by_family_and_protocol(machine):
    unix, inet, inet6, netlink, packet, vsock, algorithm = 1, 2, 10, 16, 17, 40, 38
    for family, protocol, expected in (
        *((unix, 0, ALLOW), (inet, 0, ALLOW), (inet, 6, ALLOW), (inet6, 17, ALLOW)),
        *((inet, 1, EPROTONOSUPPORT), (inet, 132, EPROTONOSUPPORT), (inet, 262, EPROTONOSUPPORT)),
        *((netlink, 0, ALLOW), (netlink, 12, EPROTONOSUPPORT)),
        *((packet, 0, EAFNOSUPPORT), (vsock, 0, EAFNOSUPPORT), (algorithm, 0, EAFNOSUPPORT)),
    ):
        assert verdict(machine, "socket", family, 1, protocol) == expected, (family, protocol)
    assert verdict(machine, "socketpair", unix) == ALLOW
    assert verdict(machine, "socketpair", inet) == EAFNOSUPPORT


@pytest.mark.parametrize("machine", MACHINES)
def test_bits_that_the_kernel_ignores_change_nothing(machine):
    typing = 0x5412
    for command in (typing, typing | BIT32, 0x541C, 0x5423):
        assert verdict(machine, "ioctl", 0, command) == EPERM
    assert verdict(machine, "ioctl", 0, 0x5401) == ALLOW
    assert verdict(machine, "socket", 40 | BIT32) == EAFNOSUPPORT


@pytest.mark.parametrize("machine", MACHINES)
def test_the_personality_stays_as_it_is(machine):
    assert verdict(machine, "personality", 0xFFFFFFFF) == ALLOW
    assert verdict(machine, "personality", 0) == ALLOW
    for persona in (0x0400000, 0x0040000, 8):
        assert verdict(machine, "personality", persona) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_what_weaker_bounds_need_is_refused_as_well(machine):
    assert verdict(machine, "sched_setaffinity") == ALLOW
    for name in (*seccomp.UNBOUNDED_CPUS, *seccomp.UNBOUNDED_MEMORY):
        assert verdict(machine, name, also_refused=[name]) == EPERM


def test_the_program_is_what_the_kernel_takes():
    for machine in MACHINES:
        program = seccomp.program(machine)
        assert len(program) == 8 * len(seccomp.instructions(machine))
        assert len(program) < 4096 * 8  # BPF_MAXINSNS


def test_another_processor_is_named():
    with pytest.raises(seccomp.UnsupportedMachine, match="riscv64"):
        seccomp.program("riscv64")
