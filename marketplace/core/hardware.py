"""What machines are made of: GPU classes, interconnect levels, trust and service tiers.

The numbers are part of the order book's file format (see `scheduler.matching.book`).
"""

import re
from enum import IntEnum
from typing import Final


class Level(IntEnum):
    """The loosest interconnect a gang accepts, or the one it got."""

    NODE = 0
    SITE = 1
    ANY = 2


class Trust(IntEnum):
    """How a site is vouched for: 0 is best."""

    CONTRACTED = 0
    VERIFIED = 1
    KNOWN = 2
    COMMUNITY = 3


class Tier(IntEnum):
    """How reliable a node has shown itself: 0 is best (`marketplace.core.reliability`)."""

    STEADY = 0
    NORMAL = 1
    UNPROVEN = 2


class Network(IntEnum):
    """What joins the nodes of one site."""

    INFINIBAND = 0
    ROCE = 1
    ETHERNET = 2


# Regions are bits of a mask in the order book, so their order never changes; new ones are added
# at the end. The codes are ours; a site picks the one it stands in.
REGIONS: Final = (
    "eu-west", "eu-central", "eu-north", "eu-south", "eu-east",
    "us-east", "us-central", "us-west", "ca", "sa",
    "uk", "ch", "tr", "me", "af",
    "in", "jp", "kr", "sg", "au", "cn",
)  # fmt: skip

# The device's name as its driver tells it → our class. First match wins.
_NAMED: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), gpu_class)
    for pattern, gpu_class in (
        (r"\bGB200\b", "gb200"),
        (r"\bB200\b", "b200"),
        (r"\bH200\b(?!.*NVL)", "h200-sxm"),
        (r"\bH200\b", "h200-nvl"),
        (r"\bH100\b.*\b(PCIe|NVL)\b", "h100-pcie"),
        (r"\bH100\b", "h100-sxm"),
        (r"\bA100\b(?=.*PCIe).*80", "a100-pcie-80"),
        (r"\bA100\b.*80", "a100-sxm-80"),
        (r"\bA100\b.*PCIe", "a100-pcie-40"),
        (r"\bA100\b", "a100-sxm-40"),
    )
)


def gpu_class(device_name: str) -> str:
    """The class a device trades in: `NVIDIA H100 80GB HBM3` → `h100-sxm`.

    A device that is in no table of ours trades under its own name, made plain
    (`NVIDIA GeForce RTX 4090` → `rtx-4090`), so that new hardware can be let on day one.
    """
    for pattern, name in _NAMED:
        if pattern.search(device_name):
            return name
    plain = re.sub(
        r"\b(NVIDIA|AMD|GeForce|Tesla|Quadro|Graphics|GPU)\b", " ", device_name, flags=re.IGNORECASE
    )
    return _slug(plain) or "unknown"


def cpu_class(model_name: str) -> str:
    """The class of a machine without a GPU: `AMD EPYC 9654 96-Core Processor` → `cpu-epyc-9654`.

    Honest by its first word: nobody takes it for a GPU, and the whole market works on a laptop.
    """
    plain = re.sub(
        r"\(R\)|\(TM\)|@.*$|\d+-Core|\b(AMD|Intel|CPU|Processor|with.*)\b",
        " ",
        model_name,
        flags=re.IGNORECASE,
    )
    return f"cpu-{_slug(plain) or 'unknown'}"


def is_cpu(name: str) -> bool:
    """Whether a class is a machine without a GPU."""
    return name.startswith("cpu-")


def region_mask(names: list[str] | tuple[str, ...]) -> int:
    """The order book's bit mask; no names means anywhere. Raises ValueError for an unknown one."""
    if not names:
        return (1 << len(REGIONS)) - 1
    return sum(1 << REGIONS.index(name) for name in dict.fromkeys(names))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
