"""The node's place in its site's network: by which address the other nodes reach it."""

import ipaddress
import socket
from dataclasses import dataclass
from typing import Final

import psutil

from agent.sandbox.network import OVERHEAD

# Of a net for documentation: nothing is sent there, it only takes the default route.
_OUTSIDE: Final = ("198.51.100.1", 9)
_MOST_MTU: Final = 9000


class NoLan(RuntimeError):
    """The node has no place in a network; says what to do."""


@dataclass(frozen=True)
class Lan:
    """An address (IPv4) of this machine, and the longest packet that a gang may send by it."""

    address: str
    mtu: int


def find(configured: str) -> Lan:
    """The address that the owner has named, else the default route's; raises NoLan."""
    address = configured or _by_route()
    cards = psutil.net_if_addrs()
    holding = [name for name, own in cards.items() if any(one.address == address for one in own)]
    if not holding:
        raise NoLan(
            f"no network card has the address {address}: correct lan_address in config.json"
        )
    mtu = psutil.net_if_stats()[holding[0]].mtu
    return Lan(address, min(mtu, _MOST_MTU) - OVERHEAD)


def _by_route() -> str:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
            channel.connect(_OUTSIDE)
            found: str = channel.getsockname()[0]
    except OSError:
        found = "127.0.0.1"
    if ipaddress.IPv4Address(found).is_loopback:
        raise NoLan("this machine is in no network: name lan_address in config.json if it is")
    return found
