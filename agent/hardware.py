"""The node as it finds itself: its inventory, and what of it the market does not see."""

import logging
import os
import platform
import re
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil

from agent import lan, protocol
from agent.config import CLOSED, Network, State
from agent.environment import Training
from agent.lan import Lan
from agent.nvml import Nvml, open_nvml
from agent.order import Rung
from agent.protocol import Device
from agent.sampling import Sampler
from agent.sandbox import workspace
from agent.walls import Walls

log = logging.getLogger(__name__)

_NAMESPACE: Final = uuid.UUID("5c6c1b3e-6d0a-5c58-9d3e-6b0b7f1f5d0e")
_KEPT: Final = 0.1
"""Share of the memory that the system and the agent keep for themselves."""
# Where a container's own memory limit stands, cgroup v2 and v1.
_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Machine:
    """All that a job is checked against and started with."""

    inventory: protocol.Inventory
    training: Training
    rung: Rung | None
    """None where strangers' code must not run."""
    cores: tuple[int, ...]
    minors: dict[str, int]
    """GPU uuid → N of its /dev/nvidiaN."""
    driver: Nvml | None
    lan: Lan | None
    """None where no rank of a gang can run."""
    network: Network
    """What the owner lets jobs reach."""


def survey(
    state: State, training: Training, walls: Walls, lan_address: str = "", network: Network = CLOSED
) -> Machine:
    """Looks at the whole machine; `walls` is what the agent's attack on its own sandbox found,
    `lan_address` what its owner says of its network, `network` what they let jobs reach.

    What is let: the GPUs, or on a machine without any the cores of the agent's CPU affinity.
    """
    place = _place(walls, lan_address)
    driver, cores = open_nvml(), sorted(os.sched_getaffinity(0))
    devices, minors = _devices(state, driver, cores)
    return Machine(
        inventory=protocol.Inventory(
            hostname=_plain(socket.gethostname()) or "host",
            system=_plain(f"{_distribution()}, Linux {platform.release()}")[:200],
            agent_version=version(),
            cpu_model=cpu_model(),
            cpu_cores=len(cores),
            memory_bytes=memory_bytes(),
            disk_bytes=disk_bytes(state),
            devices=devices,
            nvlink=driver is not None and driver.has_nvlink(),
            driver=_plain(driver.driver())[:60] if driver else "",
            measures_power=Sampler(devices, cores, driver).measures,
            environment=training.shown,
            sandbox=walls.shown,
            egress=network.egress,
            registries=_registries(network, walls),
            builds=network.builds and walls.rung is not None,
            lan_address=place.address if place else "",
        ),
        training=training,
        rung=walls.rung,
        cores=tuple(cores),
        minors=minors,
        driver=driver,
        network=network,
        lan=place,
    )


def why_no_images() -> str:
    """Why no container images are run on this machine; "" if they can be."""
    machine = platform.machine()
    return "" if machine == "x86_64" else f"the market's images are for x86_64, not {machine}"


def _registries(network: Network, walls: Walls) -> list[str]:
    """From where jobs' images are fetched: into walls, and for the processors that they are for."""
    walled = walls.rung is not None and walls.rung.wall != "none"
    return network.registries if walled and not why_no_images() else []


def _place(walls: Walls, lan_address: str) -> Lan | None:
    """Where gangs find this node; None if it takes no part in any."""
    if walls.no_gang:
        return None
    try:
        return lan.find(lan_address)
    except lan.NoLan as reason:
        log.info("no gangs of several nodes here: %s", reason)
        return None


def version() -> str:
    """Of the package that this agent came with."""
    try:
        return metadata.version("gridloom")
    except metadata.PackageNotFoundError:
        return f"source, protocol {protocol.VERSION}"


def cpu_model() -> str:
    """The processor's own name."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    return " ".join(_plain(name).split())[:200] or "processor"


def memory_bytes() -> int:
    """The machine's memory, or what its container may use of it."""
    limits = [psutil.virtual_memory().total]
    for name in _LIMITS:
        try:
            text = Path(name).read_text("ascii").strip()
        except OSError:
            continue
        limits += [int(text)] if text.isdigit() and int(text) > 0 else []
    return min(limits)


def disk_bytes(state: State) -> int:
    """What jobs may book: free space beyond the reserve, and what makes room: the cache,
    environments and images."""
    free = workspace.free_bytes(state.root) - workspace.RESERVE_BYTES
    cached = (one.stat().st_blocks * 512 for one in state.cache.rglob("*") if one.is_file())
    return max(0, free + sum(cached) + _made(state.environments))


def _made(root: Path) -> int:
    """Bytes of environments and images (`agent.making`)."""
    return sum(
        os.lstat(os.path.join(above, name)).st_blocks * 512
        for path in (*root.glob("orgs/*/*"), *root.glob("images/*"))
        for above, _, names in os.walk(path)
        for name in names
    )


def cpu_uuid(state: State, cores: Sequence[int]) -> str:
    """Names the processor as a device: the same after a reboot, another one for other cores or
    another state folder, so that two agents may share a machine by disjoint cores."""
    mask = sum(1 << core for core in cores)
    return f"CPU-{uuid.uuid5(_NAMESPACE, f'{_machine_id()}/{mask:x}/{state.root}')}"


def _devices(
    state: State, driver: Nvml | None, cores: Sequence[int]
) -> tuple[list[Device], dict[str, int]]:
    if driver is not None:
        cards = driver.cards()
        devices = [
            Device(
                uuid=card.uuid,
                kind="gpu",
                index=card.index,
                name=card.name,
                memory_bytes=card.memory_bytes,
                watts=card.watts,
            )
            for card in cards
        ]
        return devices, {card.uuid: card.minor for card in cards}
    share = len(cores) / (psutil.cpu_count() or len(cores))
    processor = Device(
        uuid=cpu_uuid(state, cores),
        kind="cpu",
        index=0,
        name=cpu_model(),
        memory_bytes=int(memory_bytes() * (1 - _KEPT) * min(1.0, share)),
        cores=len(cores),
    )
    return [processor], {}


def _machine_id() -> str:
    for name in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            text = Path(name).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            return text
    return f"{uuid.getnode():012x}"  # the first network card's address


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _plain(text: str) -> str:
    """Without control characters, which the market refuses."""
    return "".join(letter for letter in text if letter.isprintable())
