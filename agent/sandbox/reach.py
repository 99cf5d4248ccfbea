"""Whom a job may reach, and whom nobody may: the rules of the gate (`gate.py`). Pure.

A job lists names; a leading dot takes in a name and all below it; ports are 80 and 443 unless the
name brings its own, which is none of the system's (no mail is sent from here, and nobody's logins
are tried). Whatever a name resolves to must be an address of the public internet: not the owner's
network, not the machine itself nor its neighbours, not a cloud's metadata. An owner who wants
otherwise (a package mirror on a private address) allows that network in config.json.

What this can't see: a server that answers for a listed name and, on the same address, for another
one. A list of names bounds where bytes can go, not what is done with them there.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORTS: Final = frozenset({80, 443})
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(\.?)((?:{_LABEL}\.)*{_LABEL})(?::([1-9][0-9]{{0,4}}))?")
_SYSTEM_PORTS: Final = 1024
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
# Not global in any sense of ours, whatever the standard library of a Python says: a site's own,
# a site's own NAT64, and IPv4 written as IPv6.
_INSIDE: Final = tuple(map(ipaddress.IPv6Network, ("fec0::/10", "64:ff9b:1::/48", "::/96")))


class BadName(ValueError):
    """What a job lists is no name of a host."""


@dataclass(frozen=True)
class Name:
    """One entry of a job's list."""

    host: str
    below: bool
    """Whether all names below it are meant too."""
    ports: frozenset[int]

    def takes(self, host: str, port: int) -> bool:
        """Whether it lets that one through."""
        inside = host == self.host or (self.below and host.endswith(f".{self.host}"))
        return inside and port in self.ports


def parse(text: str) -> Name:
    """`huggingface.co`, `.wandb.ai`, `pypi.example:8443`; raises BadName."""
    found = _NAME.fullmatch(text.lower())
    if found is None or len(found[2]) > 253 or int(found[3] or 1) > 65_535:
        raise BadName(f"{text[:80]!r} is no host name, like huggingface.co or .wandb.ai")
    ports = frozenset({int(found[3])}) if found[3] else _PORTS
    if min(ports - _PORTS, default=_SYSTEM_PORTS) < _SYSTEM_PORTS:
        raise BadName(f"{text[:80]!r}: of the ports below {_SYSTEM_PORTS} only 80 and 443 are open")
    return Name(found[2], bool(found[1]), ports)


def why_not(names: Iterable[Name], host: str, port: int) -> str:
    """Why the list does not let a job there; "" if it does."""
    host = host.lower().rstrip(".")
    if any(name.takes(host, port) for name in names):
        return ""
    if any(name.takes(host, any_port) for name in names for any_port in name.ports):
        return f"port {port} is not allowed there"
    return "it is not among the names that this job listed"


def usable(
    addresses: Iterable[str], allowed: Collection[Network], near: Collection[Network]
) -> list[str]:
    """Those of a name's addresses that may be dialled. `near`: networks that the machine is on."""
    return [text for text in addresses if _may_dial(_address(text), allowed, near)]


def network_of(address: str, netmask: str | None) -> Network | None:
    """The network that an interface's address lies in; None if it is none of IP."""
    try:
        one = ipaddress.ip_address(address.partition("%")[0])
        mask = int(ipaddress.ip_address(netmask)) if netmask else 0
    except ValueError:
        return None
    length = mask.bit_count() or one.max_prefixlen  # a point to point has no mask
    return ipaddress.ip_network(f"{one}/{length}", strict=False)


def _may_dial(
    address: Address | None, allowed: Collection[Network], near: Collection[Network]
) -> bool:
    if address is None:
        return False
    if _lies_in(address, allowed):
        return True
    # is_global has been true of some multicast groups; and what is ours is never the internet.
    is_public = address.is_global and not address.is_multicast
    return is_public and not _lies_in(address, (*_INSIDE, *near))


def _lies_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in one for one in networks if one.version == address.version)


def _address(text: str) -> Address | None:
    """The address that is dialled in the end: IPv4 within IPv6 is judged as IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None  # with a zone: of one link only
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            return None
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address
