"""What a job needs of an NVIDIA driver: the leased devices, its libraries, the PCI tree.

Written from NVIDIA's container documentation; run on one H200 (driver 580), with the driver's
libraries below /usr. Several GPUs in one machine were not tried.
"""

import os
import re
import subprocess
from collections.abc import Iterable

SYSTEM_FOLDERS = ("/sys/bus/pci", "/sys/module/nvidia", "/sys/module/nvidia_uvm", "/sys/class/drm")
"""Where the driver's libraries and NCCL look up how devices are wired."""

_CONTROL = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
_DRIVER = re.compile(r"^\s*(?:libcuda|libnvidia-|libcudadebugger|libnvcuvid|libnvoptix)\S*\.so")


class NoSuchDevice(RuntimeError):
    """The order names a device that this machine lacks."""


def device_nodes(indexes: Iterable[int]) -> list[str]:
    """The device files of these GPUs and of the driver; raises NoSuchDevice. Others stay unseen,
    so CUDA numbers the leased ones from 0."""
    nodes = [f"/dev/nvidia{index}" for index in indexes]
    for node in (*nodes, "/dev/nvidiactl"):
        if not os.path.exists(node):
            raise NoSuchDevice(f"{node} is missing: is the NVIDIA driver loaded? (try nvidia-smi)")
    return nodes + [node for node in _CONTROL if os.path.exists(node)]


def driver_files() -> list[str]:
    """Driver libraries outside /usr and /lib, which a job sees anyway."""
    files: dict[str, None] = {}
    for path in driver_libraries().values():
        files |= dict.fromkeys((path, os.path.realpath(path)))
    return [path for path in files if not path.startswith(("/usr/", "/lib"))]


def driver_libraries() -> dict[str, str]:
    """The name that each of the driver's libraries is asked for by → where it lies, as ldconfig
    knows them."""
    known = subprocess.run(
        ["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False
    ).stdout
    found: dict[str, str] = {}
    for line in known.splitlines():
        if _DRIVER.match(line) and " => " in line:
            name, _, path = line.strip().partition(" => ")
            found.setdefault(name.split(" ")[0], path)
    return found
