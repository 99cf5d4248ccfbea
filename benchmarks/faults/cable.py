"""A network of a node's own: a namespace with one cable to the market, which can be pulled.

Pulled, nothing is refused and nothing is closed: what was sent is never answered. Takes root and
iproute2; where they are missing, the faults that need it are left out, and that is said.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from marketplace.devstack import ports
from marketplace.devstack.live import LiveSite
from marketplace.devstack.stack import ROOT


@dataclass(frozen=True)
class Cable:
    """The market's end of a veth pair."""

    link: str

    def pull(self) -> None:
        """Nothing goes through any more."""
        _ip("link", "set", self.link, "down")

    def plug(self) -> None:
        """It is back."""
        _ip("link", "set", self.link, "up")


def is_possible() -> bool:
    """Whether this host lets us make namespaces."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


@contextlib.contextmanager
def laid(site: LiveSite, nodes: Sequence[str]) -> Iterator[dict[str, Cable]]:
    """Moves these nodes, which run, each behind a cable of its own, while the block lasts."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(_laid(site, name, number))
            for number, name in enumerate(nodes)
        }


@contextlib.contextmanager
def _laid(site: LiveSite, node: str, number: int) -> Iterator[Cable]:
    space = f"glf{os.getpid()}-{number}"
    ours, theirs = f"glo{os.getpid() % 100_000}-{number}", f"gli{os.getpid() % 100_000}-{number}"
    net = f"10.{200 + number}.{os.getpid() % 250}"
    wanted = [site.stack.port[wish.name] for wish in (ports.SITE, ports.AGENTS, ports.S3_WISHES[0])]
    inside = ["ip", "netns", "exec", space]
    relays = []
    _ip("netns", "add", space)
    try:
        _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", space)
        _ip("addr", "add", f"{net}.1/30", "dev", ours)
        _ip("link", "set", ours, "up")
        _ip("-n", space, "addr", "add", f"{net}.2/30", "dev", theirs)
        _ip("-n", space, "link", "set", theirs, "up")
        _ip("-n", space, "link", "set", "lo", "up")
        # Ports of our own between the two: the object store wants its own on every address.
        between = {port: _free_port(f"{net}.1") for port in wanted}
        relays += [
            _relay([], [f"{net}.1:{via}=127.0.0.1:{port}" for port, via in between.items()]),
            _relay(inside, [f"127.0.0.1:{port}={net}.1:{via}" for port, via in between.items()]),
        ]
        service = site.supervisor.end(f"node-{node}")
        site.supervisor.start(replace(service, argv=(*inside, *service.argv)))
        yield Cable(ours)
    finally:
        for relay in relays:
            relay.kill()
            relay.wait()
        _ip("netns", "del", space)


def _relay(inside: list[str], routes: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*inside, sys.executable, "-m", "benchmarks.faults.relay", *routes], cwd=ROOT
    )


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
