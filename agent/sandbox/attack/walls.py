"""Attacks on files, environment, identity and processes.

Each check takes the targets that the probe set up on the host and returns how far it got, in
words, or None if the wall held; an OSError means that it held.
"""

import ctypes
import glob
import os
import resource
import socket
import stat
import sys
from collections.abc import Callable
from typing import Any

Targets = dict[str, Any]
"""From JSON: what the probe hid on the host, and what the order allows."""

_DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd",
            "stdin", "stdout", "stderr", "core", "console", "mqueue"}  # fmt: skip
_OUR_ENV = {"PATH", "HOME", "USER", "LANG", "TMPDIR", "PYTHONPATH", "PYTHONUNBUFFERED",
            "CUDA_VISIBLE_DEVICES", "LC_CTYPE"}  # fmt: skip


def _contains_secret(path: str, targets: Targets) -> str | None:
    with open(path) as file:
        return f"read {path}" if targets["secret"] in file.read() else None


def host_file(targets: Targets) -> str | None:
    return _contains_secret(targets["file"], targets)


def host_shared_memory(targets: Targets) -> str | None:
    return _contains_secret(targets["shm_file"], targets)


def agent_state(targets: Targets) -> str | None:
    found = os.listdir(targets["state"])
    return f"listed the agent's folder: {found[:3]}" if found else None


def passwords(targets: Targets) -> str | None:
    with open("/etc/shadow") as file:
        return f"read {len(file.read())} bytes of /etc/shadow"


def host_users(targets: Targets) -> str | None:
    with open("/etc/passwd") as file:
        names = [line.split(":")[0] for line in file]
    return None if set(names) <= {"root", "job"} else f"users: {names[:5]}"


def homes(targets: Targets) -> str | None:
    seen = [path for top in ("/root", "/home") if os.path.isdir(top) for path in _list(top)]
    allowed = tuple(targets["training_env"])
    foreign = [one for one in seen if not any(path.startswith(one) for path in allowed)]
    return f"saw {foreign[:3]}" if foreign else None


def _list(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder)]
    except OSError:
        return []


def host_sockets(targets: Targets) -> str | None:
    found = [
        path
        for path in glob.glob("/run/**", recursive=True) + glob.glob("/var/run/**", recursive=True)
        if stat.S_ISSOCK(os.lstat(path).st_mode)
    ]
    return f"sockets: {found[:3]}" if found else None


def unix_socket_by_path(targets: Targets) -> str | None:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(targets["unix"])
        return "connected to a socket of the host"


def unix_socket_by_abstract_name(targets: Targets) -> str | None:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect("\0" + targets["abstract"])
        return "connected to a socket of the host"


def devices(targets: Targets) -> str | None:
    foreign = [name for name in os.listdir("/dev") if name not in _DEVICES]
    foreign = [name for name in foreign if not name.startswith("nvidia")]
    return f"/dev holds {foreign[:5]}" if foreign else None


def make_device(targets: Targets) -> str | None:
    for folder in (".", "/tmp", "/dev/shm"):
        try:
            os.mknod(f"{folder}/disk", 0o600 | stat.S_IFBLK, os.makedev(254, 0))
        except OSError:
            continue
        return f"made a disk's device node in {folder}"
    return None


def _can_write(path: str) -> str | None:
    """Opens for writing and writes nothing."""
    os.close(os.open(path, os.O_WRONLY))
    return f"opened {path} for writing"


def write_kernel_settings(targets: Targets) -> str | None:
    for path in (
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/proc/sys/vm/drop_caches",
        "/sys/devices/system/cpu/cpu0/online",
        "/sys/kernel/uevent_helper",
    ):
        try:
            return _can_write(path)
        except OSError:
            continue
    return None


def read_kernel_memory(targets: Targets) -> str | None:
    for path in ("/proc/kcore", "/dev/mem", "/dev/kmem", "/dev/kmsg"):
        try:
            with open(path, "rb", buffering=0) as file:
                if file.read(16):
                    return f"read {path}"
        except OSError:
            continue
    return None


def host_keys(targets: Targets) -> str | None:
    with open("/proc/keys") as file:
        return "listed the kernel's keys" if file.read() else None


def _made(path: str) -> str | None:
    with open(path, "x"):
        pass
    os.unlink(path)
    return f"wrote to {os.path.dirname(path)}"


def write_system(targets: Targets) -> str | None:
    for folder in ("/", "/usr", "/etc", "/bin/", "/opt", "/sys", "/proc", "/dev"):
        try:
            return _made(os.path.join(folder, "gridloom-was-here"))
        except OSError:
            continue
    return None


def write_training_environment(targets: Targets) -> str | None:
    for folder in (sys.prefix, sys.base_prefix, *targets["training_env"]):
        try:
            return _made(f"{folder}/gridloom-was-here")
        except OSError:
            continue
    return None


def write_package(targets: Targets) -> str | None:
    for folder in ("/opt/gridloom", "/opt/gridloom/agent"):
        try:
            return _made(f"{folder}/gridloom-was-here")
        except OSError:
            continue
    return None


def write_inputs(targets: Targets) -> str | None:
    return _made("inputs/attack/gridloom-was-here")


def environment(targets: Targets) -> str | None:
    told = [name for name, value in os.environ.items() if targets["secret"] in value]
    foreign = set(os.environ) - _OUR_ENV
    if told:
        return f"found the agent's secret in {told}"
    return f"inherited {sorted(foreign)[:5]}" if foreign else None


def inherited_descriptors(targets: Targets) -> str | None:
    extra = [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
    held = []
    for fd in extra:
        try:
            held.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue  # the one that listed the folder
    return f"holds {held}" if held else None


def capabilities(targets: Targets) -> str | None:
    for line in _status():
        name, _, value = line.partition(":")
        if name.startswith("Cap") and int(value, 16):
            return line.replace("\t", " ")
    return None


def new_privileges(targets: Targets) -> str | None:
    return None if "NoNewPrivs:\t1" in _status() else "a setuid program would work"


def system_call_filter(targets: Targets) -> str | None:
    return None if "Seccomp:\t2" in _status() else "no filter is set"


def _status() -> list[str]:
    with open("/proc/self/status") as file:
        return file.read().splitlines()


def become_root(targets: Targets) -> str | None:
    if os.getuid() == 0:
        return "runs as root"
    os.setuid(0)
    return "became root"


def groups_of_the_agent(targets: Targets) -> str | None:
    foreign = set(os.getgroups()) - {os.getgid(), 65534}
    return f"is in groups {sorted(foreign)}" if foreign else None


def see_host_processes(targets: Targets) -> str | None:
    count = sum(name.isdecimal() for name in os.listdir("/proc"))
    return f"sees {count} processes" if count > 4 else None


def signal_host_processes(targets: Targets) -> str | None:
    if targets["pid"] <= os.getpid() + 8:
        return None  # the number may be one of ours: says nothing
    os.kill(targets["pid"], 0)
    return "could signal the agent"


def read_init(targets: Targets) -> str | None:
    for path in ("/proc/1/mem", "/proc/1/environ", "/proc/1/maps"):
        try:
            with open(path, "rb", buffering=0) as file:
                file.read(1)
        except PermissionError:
            continue
        except OSError:
            pass  # opened; that byte alone is not mapped
        return f"opened {path}"
    return None


def take_descriptors_of_init(targets: Targets) -> str | None:
    return f"listed {len(os.listdir('/proc/1/fd'))} of them"


def shared_memory_of_the_host(targets: Targets) -> str | None:
    found = ctypes.CDLL(None).shmget(targets["shm_key"], 0, 0)
    return "found a System V segment of the host" if found >= 0 else None


def processors(targets: Targets) -> str | None:
    allowed = set(targets["cpus"])
    try:
        os.sched_setaffinity(0, range(os.sysconf("SC_NPROCESSORS_CONF")))
    except OSError:
        pass
    foreign = os.sched_getaffinity(0) - allowed
    return f"may use CPUs {sorted(foreign)}" if foreign else None


def priority(targets: Targets) -> str | None:
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    return "put itself before other processes"


def out_of_memory_order(targets: Targets) -> str | None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-500")
    return "would be spared when memory runs out"


def core_dumps(targets: Targets) -> str | None:
    return "may dump core" if resource.getrlimit(resource.RLIMIT_CORE)[1] else None


def temporary_files(targets: Targets) -> str | None:
    for folder, most in (("/tmp", targets["tmp_bytes"]), ("/dev/shm", targets["shm_bytes"])):
        path, block = f"{folder}/hog", bytes(2**20)
        try:
            with open(path, "wb", buffering=0) as file:
                for _ in range(most // len(block) + 8):
                    if file.write(block) < len(block):
                        break
                else:
                    return f"wrote more than {most} bytes to {folder}"
        except OSError:
            continue  # no space left
        finally:
            os.unlink(path)
    return None


def fork_bomb(targets: Targets) -> str | None:
    """Children that wait, until one more is refused."""
    children: list[int] = []
    most = targets["pids"] + 20
    waiting, release = os.pipe()
    try:
        while len(children) < most:
            child = os.fork()
            if child == 0:
                os.close(release)
                os.read(waiting, 1)
                os._exit(0)
            children.append(child)
        return f"started {most} processes"
    finally:
        os.close(release)
        for child in children:
            os.waitpid(child, 0)


CHECKS: dict[str, Callable[[Targets], str | None]] = {
    check.__name__: check
    for check in (
        *(host_file, host_shared_memory, agent_state, passwords, host_users, homes),
        *(host_sockets, unix_socket_by_path, unix_socket_by_abstract_name),
        *(devices, make_device, write_kernel_settings, read_kernel_memory, host_keys),
        *(write_system, write_training_environment, write_package, write_inputs),
        *(environment, inherited_descriptors, capabilities, new_privileges, system_call_filter),
        *(become_root, groups_of_the_agent, see_host_processes, signal_host_processes),
        *(read_init, take_descriptors_of_init, shared_memory_of_the_host, processors, priority),
        *(out_of_memory_order, core_dumps, temporary_files, fork_bomb),
    )
}
