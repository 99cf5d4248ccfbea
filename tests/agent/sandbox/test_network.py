"""The network of a gang: peers are reached, nothing else is, and nothing is left of it."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from agent import keeper
from agent.order import Network, Peer, Rung
from agent.sandbox import network, outputs, probe
from tests.agent.sandbox.jobs import IS_ROOT, Assignment, until

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="making a lease's network takes root")

RUNG = Rung(wall="root", limits="rlimits", disk="watchdog")
NUMBER = 2**24 - 7
INSIDE = ("10.64.0.1", "10.64.0.2")

SERVE = """
import socket
servers = [socket.create_server(("", port)) for port in (5001, 29500, 61000)]
print("serving", flush=True)
for server in servers:
    channel, (peer, _) = server.accept()
    channel.sendall(f"hello {peer}".encode())
    channel.close()
import signal
signal.pause()
"""
CALL = """
import socket
for port in (5001, 29500, 61000):
    with socket.create_connection(("10.64.0.1", port), timeout=20) as channel:
        print(port, channel.recv(100).decode(), flush=True)
"""
REACH = """
import json, socket, sys
for address, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((address, port), timeout=1)
        print("reached", address, port)
    except OSError:
        pass
for address in json.loads(sys.argv[2]):
    channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        channel.sendto(b"x", (address, 53))
        print("sent to", address)
    except OSError:
        pass
"""


def joined(rank: int, lans: tuple[str, str] = ("127.0.0.1", "127.0.0.1"), number=NUMBER) -> Network:
    other = 1 - rank
    return Network(
        id=number, address=INSIDE[rank], lan=lans[rank], port=47_800 + rank, mtu=1400,
        peers=[Peer(address=INSIDE[other], lan=lans[other], port=47_800 + other)],
    )  # fmt: skip


@pytest.fixture
def pair(place: Path) -> Iterator[list[Assignment]]:
    found = []
    for rank in range(2):
        (place / str(rank)).mkdir()
        found.append(Assignment(place / str(rank)))
    yield found
    for one in found:
        keeper.kill(one.folder)
        outputs.clean(one.folder)


def start(one: Assignment, code: str, joins: Network, *arguments: str) -> None:
    one.start(RUNG, "python3", "-c", code, *arguments, network=joins)


def tunnels() -> int:
    """Sockets of tunnels on this machine: the one trace that a gang's network leaves outside."""
    lines = Path("/proc/net/udp").read_text().splitlines()
    return sum(f":{port:04X} " in line for line in lines for port in (47_800, 47_801))


def test_ranks_reach_each_other_on_every_port_and_know_who_calls(pair):
    start(pair[0], SERVE, joined(0))
    pair[0].until_it_said("serving")
    start(pair[1], CALL, joined(1))
    assert pair[1].end().exit_code == 0, pair[1].stderr()
    assert pair[1].stdout().split("\n")[:3] == [
        f"{port} hello 10.64.0.2" for port in (5001, 29500, 61000)
    ]


def test_of_seven_forbidden_places_none_is_reached(pair):
    """The host by loopback and by its own address, another lease, a third rank that isn't one,
    the metadata service, the gateway, the internet."""
    import json

    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        cards = psutil.net_if_addrs().values()
        own = {one.address for card in cards for one in card if one.family == socket.AF_INET}
        start(pair[0], SERVE, joined(0, number=NUMBER + 1))  # of another lease
        pair[0].until_it_said("serving")
        outside = ["169.254.169.254", "192.0.2.1", "198.51.100.7", "10.64.0.77"]
        targets = [(address, port) for address in own] + [(one, 80) for one in outside]
        targets += [("10.64.0.1", one) for one in (5001, 29500, 61000)]
        start(pair[1], REACH, joined(1), json.dumps(targets), json.dumps(outside[:3]))
        assert pair[1].end().exit_code == 0, pair[1].stderr()
    assert pair[1].stdout() == ""


def test_the_attack_on_a_gangs_sandbox_gets_nowhere(place):
    assert probe.attack_gang(place, RUNG) == ""


@pytest.mark.parametrize("victim", ["the job", "its keeper"])
def test_nothing_is_left_of_it_whoever_is_killed(pair, victim):
    start(pair[0], SERVE, joined(0))
    pair[0].until_it_said("serving")
    links = psutil.net_if_addrs().keys()
    assert tunnels() == 1
    status = keeper.read_status(pair[0].folder)
    if victim == "its keeper":
        os.kill(status.keeper_pid, signal.SIGKILL)
    else:
        keeper.kill(pair[0].folder)
    assert pair[0].end().state == "gone"
    until(lambda: tunnels() == 0)
    assert psutil.net_if_addrs().keys() == links


def test_a_network_that_cannot_be_made_is_no_start(pair):
    broken = joined(0, lans=("203.0.113.9", "127.0.0.1"))
    taken = joined(0)
    held = network.make(taken)
    try:
        status = pair[0].run(RUNG, "true", network=taken)
    finally:
        os.close(held)
    assert (status.why, status.exit_code) == ("start_failed", None)
    assert "network can't be made" in status.detail
    assert broken.lan == "203.0.113.9"


# Two machines and a printer on one network, as namespaces of this machine.

PRINTER = "172.31.77.9"
LANS = ("172.31.77.1", "172.31.77.2")


@contextlib.contextmanager
def within(namespace: int) -> Iterator[None]:
    """What is made or started here belongs to that namespace."""
    host = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    network.enter(namespace)
    try:
        yield
    finally:
        network.enter(host)
        os.close(host)


def run(words: str, inside: int) -> None:
    subprocess.run(words.split(), check=True, preexec_fn=partial(network.enter, inside))


@pytest.fixture
def site() -> Iterator[list[int]]:
    """Namespaces of two hosts and a printer, all at one switch."""
    with contextlib.ExitStack() as stack:
        switch, *hosts = (network._new_namespace() for _ in range(4))
        for one in (switch, *hosts):
            stack.callback(os.close, one)
        run("ip link add lan type bridge", switch)
        run("ip link set lan up", switch)
        for number, (host, address) in enumerate(zip(hosts, (*LANS, PRINTER), strict=True)):
            path = f"/proc/{os.getpid()}/fd/{host}"
            run(f"ip link add p{number} type veth peer name eth0 netns {path}", switch)
            run(f"ip link set p{number} master lan up", switch)
            run(f"ip addr add {address}/24 dev eth0", host)
            run("ip link set eth0 up", host)
            run("ip link set lo up", host)
        yield hosts


def test_ranks_on_two_machines_meet_over_their_network_and_see_nothing_else_in_it(pair, site):
    import json

    with within(site[2]):
        printer = socket.create_server((PRINTER, 80))
    with printer:
        with within(site[0]):
            start(pair[0], SERVE, joined(0, LANS))
        pair[0].until_it_said("serving")
        places = json.dumps([(address, 80) for address in (*LANS, PRINTER)])
        with within(site[1]):
            server = socket.create_server((LANS[1], 80))
            start(pair[1], CALL + REACH, joined(1, LANS), places, json.dumps([PRINTER]))
        with server:
            assert pair[1].end().exit_code == 0, pair[1].stderr()
    assert pair[1].stdout().count("hello 10.64.0.2") == 3
    assert "reached" not in pair[1].stdout()
    assert "sent" not in pair[1].stdout()
