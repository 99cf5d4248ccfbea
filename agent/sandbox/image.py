"""A sandbox whose files are an image's: what bubblewrap mounts in place of the host's system.

The image's root is bound read-only; over it lie what every sandbox has, and under /opt/gridloom
our init with this host's Python (`agent.sandbox.borrowed`) and, for a job with GPUs, this host's
driver. Of the host's other files nothing is seen.
"""

from pathlib import Path
from typing import Final

from agent.order import KeeperOrder
from agent.sandbox import borrowed, nvidia
from agent.sandbox.binds import cores, each, parents
from agent.sandbox.unpack import MOUNTS

_OURS: Final = "/opt/gridloom"
DRIVER: Final = f"{_OURS}/driver"
"""Where the driver's libraries are looked for first."""
_KEPT: Final = ("HOME", "USER", "TMPDIR")
assert {"sys", _OURS[1:]} <= set(MOUNTS)


def system(rootfs: str, folder: Path) -> list[str]:
    """The image's root, with the job's own users and hosts. `folder` is the assignment's."""
    etc = {f"/etc/{name}": str(folder / "etc" / name) for name in ("passwd", "group", "hosts")}
    return [
        *("--ro-bind", rootfs, "/"),
        *each("--ro-bind", etc),
        *("--perms", "0755", "--tmpfs", "/sys", *cores()),
    ]


def beside(python: str, init: dict[str, str], *, driver: bool) -> list[str]:
    """What of this host is there: its Python with `init` (target → source), and its driver's
    libraries. To be mounted last: nobody writes beside them."""
    binds = {**borrowed.binds(python), **init}
    if driver:
        binds |= {f"{DRIVER}/{name}": path for name, path in nvidia.driver_libraries().items()}
    words = ["--perms", "0755", "--tmpfs", _OURS]
    for target in binds:
        words += parents(target)
    return [*words, *each("--ro-bind", binds), "--remount-ro", _OURS, "--remount-ro", "/sys"]


def environment(order: KeeperOrder, ours: dict[str, str]) -> dict[str, str]:
    """The image's variables, but for those that are the sandbox's to say."""
    assert order.image is not None
    found = {**ours, **order.image.env, **{name: ours[name] for name in _KEPT}}
    if order.gpus:
        # As an image for CUDA would have it; without the host's driver it has none.
        known = found.get("LD_LIBRARY_PATH", "")
        found["LD_LIBRARY_PATH"] = f"{DRIVER}:{known}" if known else DRIVER
    return found
