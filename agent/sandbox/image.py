"""A job that sees an image's files in place of the host's.

The image's root is bound read-only at `TOP`, with all that every sandbox mounts below it. Our init
starts outside, on the host's system as ever, and makes `TOP` its root before it drops its rights:
so nothing of an image is read or run by anybody but the job's own uid, and a job that got out of
that root would find what every job sees.
"""

from pathlib import Path
from typing import Final

from agent.order import KeeperOrder
from agent.sandbox import nvidia
from agent.sandbox.binds import cores, each
from agent.sandbox.unpack import FILES, MOUNTS

TOP: Final = "/image"
DRIVER: Final = "/opt/gridloom/driver"
"""Inside: where the host's NVIDIA driver lies, and is looked for first."""
_KEPT: Final = ("HOME", "USER", "TMPDIR")
assert {"sys", "opt/gridloom"} <= set(MOUNTS)


def system(rootfs: str, folder: Path) -> list[str]:
    """The image's root, with the job's own users and hosts. `folder` is the assignment's."""
    etc = {f"{TOP}/{name}": str(folder / name) for name in FILES}
    return [
        *("--ro-bind", rootfs, TOP),
        *each("--ro-bind", etc),
        *("--perms", "0755", "--tmpfs", f"{TOP}/sys", *cores(TOP)),
    ]


def ours(order: KeeperOrder) -> list[str]:
    """Under /opt/gridloom, where nobody writes: the driver's libraries, for a job with GPUs. To be
    mounted last."""
    words = ["--perms", "0755", "--tmpfs", f"{TOP}/opt/gridloom"]
    if order.gpus:
        libraries = nvidia.driver_libraries()
        binds = {f"{TOP}{DRIVER}/{name}": path for name, path in libraries.items()}
        words += ["--perms", "0755", "--dir", TOP + DRIVER, *each("--ro-bind", binds)]
    return [*words, "--remount-ro", f"{TOP}/opt/gridloom", "--remount-ro", f"{TOP}/sys"]


def environment(order: KeeperOrder, ours: dict[str, str]) -> dict[str, str]:
    """The image's variables, but for those that are the sandbox's to say."""
    assert order.image is not None
    found = {**ours, **order.image.env, **{name: ours[name] for name in _KEPT}}
    if order.gpus:
        # As an image for CUDA would have it; without the host's driver it has none.
        known = found.get("LD_LIBRARY_PATH", "")
        found["LD_LIBRARY_PATH"] = f"{DRIVER}:{known}" if known else DRIVER
    return found
