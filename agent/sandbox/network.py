"""The network of a gang: the sandboxes of one lease reach each other, and nothing else.

A sandbox with peers gets a network namespace whose only way out is a VXLAN tunnel to them. The
tunnel's socket stays with the host, so the namespace holds no address of the host, no route and
no gateway; the tunnel learns nothing, answers no broadcast, and knows each peer by an entry that
the job has no right to change. What isn't a peer can't be addressed at all, so no firewall is
asked; and who forges a packet from outside gets no answer, since answers too go to peers only.

The job sees one card, `gl0`. It is not the tunnel itself: what a tunnel sends to another one of
the same machine carries its sender's route and is dropped, unless it has passed a bridge.

A namespace has no name. It lives as long as the sandbox's processes and takes its links along, so
nothing is left to be cleaned, whoever is killed. Takes root, and iproute2.
"""

import contextlib
import ctypes
import ipaddress
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from agent.order import Network, Peer

CARD: Final = "gl0"
LINKS: Final = ("tunnel", "port", "switch", CARD)
NUMBERS: Final = 2**23
"""Networks of leases have numbers below this, trials above: a namespace goes a little later than
its last process, and a number is free only then."""
OVERHEAD: Final = 50
"""Bytes that VXLAN over IPv4 puts around a packet."""

_CLONE_NEWNET: Final = 0x40000000
_OURS: Final = "/proc/thread-self/ns/net"
_SETTINGS: Final = {
    "/proc/sys/net/ipv6/conf/default/disable_ipv6": "1",
    # A connection to a rank that is gone holds the namespace, and with it the tunnel's port, for
    # as long as the kernel tries to close it: nearly two minutes by default.
    "/proc/sys/net/ipv4/tcp_orphan_retries": "2",
}
_WITHIN_S: Final = 10
_TRIAL_PORT: Final = 47_890

_libc = ctypes.CDLL(None, use_errno=True)


class NetworkError(RuntimeError):
    """The gang's network can't be made here; says what is in the way."""


def why_none() -> str:
    """Why this machine can't take part in a gang of several nodes; "" if it can.

    Found by trying: two namespaces, and a connection from one to the other.
    """
    if os.getuid() != 0:
        return "making a lease's network takes root"
    try:
        _tool("ip")
        _tool("bridge")
        with contextlib.ExitStack() as stack:
            number = NUMBERS + secrets.randbelow(NUMBERS)
            first, second = (
                stack.enter_context(_held(make(trial(rank, number)))) for rank in range(2)
            )
            _connect(first, second)
    except (NetworkError, OSError) as error:
        return str(error)
    return ""


def make(network: Network) -> int:
    """A namespace of the gang's network, as a descriptor: it lives while that is open or a
    process is in it. Raises NetworkError."""
    namespace = _new_namespace()
    try:
        _fit(network, namespace)
    except NetworkError:
        os.close(namespace)
        raise
    return namespace


def enter(namespace: int) -> None:
    """Moves the calling thread into a namespace; raises OSError."""
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "a network namespace can't be entered")


def trial(rank: int, number: int = 0) -> Network:
    """The network of a gang of two on this machine alone, as `rank` sees it."""
    addresses = ("10.64.0.1", "10.64.0.2")
    other = Peer(address=addresses[1 - rank], lan="127.0.0.1", port=_TRIAL_PORT + 1 - rank)
    return Network(
        id=number or NUMBERS + secrets.randbelow(NUMBERS),
        address=addresses[rank],
        lan="127.0.0.1",
        port=_TRIAL_PORT + rank,
        mtu=1400,
        peers=[other],
    )


def route_of(network: Network) -> str:
    """The gang's own net as /proc/net/route writes it."""
    bits = ipaddress.ip_network(f"{network.address}/{_prefix(network)}", strict=False)
    return f"{int.from_bytes(bits.network_address.packed, 'little'):08X}"


def _new_namespace() -> int:
    host = os.open(_OURS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(_CLONE_NEWNET) != 0:
            why = os.strerror(ctypes.get_errno())
            raise NetworkError(f"a network namespace can't be made: {why}")
        try:
            for name, value in _SETTINGS.items():
                with contextlib.suppress(FileNotFoundError):  # a kernel without version 6
                    Path(name).write_text(value)
            return os.open(_OURS, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NetworkError(f"a network namespace can't be set up: {error}") from None
        finally:
            enter(host)
    finally:
        os.close(host)


def _fit(network: Network, namespace: int) -> None:
    """Lays the links. The tunnel is made from the host, where its packets go in and out."""
    mtu = f"mtu {network.mtu}"
    _run(
        "ip",
        f"link add tunnel {mtu} netns /proc/{os.getpid()}/fd/{namespace} type vxlan"
        f" id {network.id} local {network.lan} dstport {network.port} nolearning",
    )
    lines = [
        "link set lo up",
        f"link add {CARD} address {_mac(network.address)} {mtu} type veth peer name port {mtu}",
        f"link add switch {mtu} type bridge",
        "link set tunnel master switch",
        "link set port master switch",
        *(f"link set {link} up" for link in LINKS),
        f"addr add {network.address}/{_prefix(network)} dev {CARD}",
        *(
            f"neigh add {peer.address} lladdr {_mac(peer.address)} dev {CARD} nud permanent"
            for peer in network.peers
        ),
    ]
    _run("ip", *lines, inside=namespace)
    ways = (
        f"fdb append {_mac(peer.address)} dev tunnel dst {peer.lan} port {peer.port} self"
        for peer in network.peers
    )
    _run("bridge", *ways, inside=namespace)


def _run(tool: str, *lines: str, inside: int | None = None) -> None:
    try:
        done = subprocess.run(
            [_tool(tool), "-batch", "-"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            timeout=_WITHIN_S,
            check=False,
            pass_fds=() if inside is None else (inside,),
            preexec_fn=None if inside is None else partial(enter, inside),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NetworkError(f"{tool}: {error}") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NetworkError(f"{tool}: {said[0]}")


def _tool(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        raise NetworkError(f"{name} is missing: install iproute2")
    return found


def _mac(address: str) -> str:
    """A card's address, from the one it has in the gang's network: unique within it."""
    return ":".join(f"{byte:02x}" for byte in (2, 0x67, *ipaddress.IPv4Address(address).packed))


def _prefix(network: Network) -> int:
    """Bits of the smallest net that holds all members."""
    numbers = [int(ipaddress.IPv4Address(one.address)) for one in (network, *network.peers)]
    differing = min(numbers) ^ max(numbers)
    # A bit more than they differ in: no member may have the net's first or last address.
    return 32 - (differing.bit_length() + 1 if differing else 2)


@contextlib.contextmanager
def _held(namespace: int) -> Iterator[int]:
    try:
        yield namespace
    finally:
        os.close(namespace)


def _connect(first: int, second: int) -> None:
    """Sockets belong to the namespace that they were made in, whoever uses them later."""
    host = os.open(_OURS, os.O_RDONLY | os.O_CLOEXEC)
    with _held(host), contextlib.ExitStack() as stack:
        try:
            enter(first)
            server = stack.enter_context(socket.create_server(("10.64.0.1", 0)))
            enter(second)
            stack.enter_context(socket.create_connection(server.getsockname(), timeout=2))
        except OSError as error:
            raise NetworkError(f"two sandboxes can't reach each other: {error}") from None
        finally:
            enter(host)
