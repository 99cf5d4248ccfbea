"""Attacks on the network: whatever is no peer of the job's must be out of reach."""

import ctypes
import socket
import struct
from collections.abc import Callable

from .walls import Targets

_METADATA = "169.254.169.254"  # where clouds tell a machine its secrets
_SET_FLAGS, _SET_NEIGHBOUR = 0x8914, 0x8955


def interfaces(targets: Targets) -> str | None:
    known = {"lo", *targets["cards"]}
    foreign = [name for _, name in socket.if_nameindex() if name not in known]
    return f"has {foreign}" if foreign else None


def routes(targets: Targets) -> str | None:
    """Any route but through loopback, or to the gang's own net, reaches some address outside."""
    with open("/proc/net/route") as file:
        lines = [line.split() for line in file.read().splitlines()[1:]]
    with open("/proc/net/ipv6_route") as file:
        lines += [[line.split()[-1]] for line in file]
    own = [(card, targets["net"]) for card in targets["cards"]]
    foreign = [line for line in lines if line[0] != "lo" and tuple(line[:2]) not in own]
    return f"{len(foreign)} routes, by {foreign[0][0]}" if foreign else None


def route_to_metadata(targets: Targets) -> str | None:
    """By the table of routes: nothing is sent."""
    (address,) = struct.unpack("=I", socket.inet_aton(_METADATA))
    with open("/proc/net/route") as file:
        for line in file.read().splitlines()[1:]:
            fields = line.split()
            if address & int(fields[7], 16) == int(fields[1], 16):
                return f"{_METADATA} is reached by {fields[0]}"
    return None


def host_loopback(targets: Targets) -> str | None:
    with socket.create_connection(("127.0.0.1", targets["port"]), timeout=2):
        return "connected to a port of the host"


def host_addresses(targets: Targets) -> str | None:
    """The host by its addresses in its own networks, on a port where it listens."""
    for address in targets["addresses"]:
        try:
            with socket.create_connection((address, targets["open_port"]), timeout=2):
                return f"connected to the host at {address}"
        except OSError:
            continue
    return None


def redirect_neighbours(targets: Targets) -> str | None:
    """Writes a neighbour's address anew (SIOCSARP): whoever may, can choose where packets go."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        protocol = struct.pack("=HxxI8x", socket.AF_INET, 1)
        hardware = struct.pack("=H6s8x", 1, bytes(6))
        request = protocol + hardware + struct.pack("=I16s16s", 4, bytes(16), b"lo")
        if ctypes.CDLL(None).ioctl(channel.fileno(), _SET_NEIGHBOUR, request) == 0:
            return "may redirect its neighbours"
    return None


def configure_network(targets: Targets) -> str | None:
    """Brings loopback up (SIOCSIFFLAGS): whoever may do that may do more."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        request = struct.pack("16sh14x", b"lo", 0x41)
        if ctypes.CDLL(None).ioctl(channel.fileno(), _SET_FLAGS, request) == 0:
            return "may configure the network"
    return None


CHECKS: dict[str, Callable[[Targets], str | None]] = {
    check.__name__: check
    for check in (
        *(interfaces, routes, route_to_metadata, host_loopback, host_addresses),
        *(redirect_neighbours, configure_network),
    )
}
