"""Jobs that list names to reach: the owner's word, the gate, and what the log says of it."""

import http.server
from collections.abc import Iterator

import msgspec
import pytest

from agent import config, orders
from agent.config import Network, State
from tests.agent import node as nodes
from tests.agent.conftest import spec
from tests.agent.market import Market
from tests.serving import on_loopback, running

ASK = b"""
import os, socket
with socket.create_connection(("127.0.0.1", int(os.environ["HTTP_PROXY"].split(":")[2]))) as gate:
    gate.sendall(b"GET http://localhost:PORT/ HTTP/1.1\\r\\n\\r\\n")
    said = b""
    while more := gate.recv(4096): said += more
print(said.split(b"\\r\\n")[-1].decode())
"""


@pytest.fixture
def port() -> Iterator[int]:
    """A server on this machine."""

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            pass

    with running(on_loopback(Hello)) as server:
        yield server.server_port


@pytest.fixture
def state(state: State) -> State:
    """Its owner lets jobs out, and to this machine's own loopback."""
    network = Network(egress=True, allow=["127.0.0.0/8"])
    config.save(state, msgspec.structs.replace(config.load(state), network=network))
    return state


async def test_a_job_reaches_what_it_lists_where_the_owner_lets_it(
    market: Market, node: State, port: int
):
    device = nodes.machine(node).inventory.devices[0].uuid
    assert (await market.until(lambda: market.hellos))[-1].inventory.egress
    script = market.offer({"main.py": ASK.replace(b"PORT", str(port).encode())}, "script")
    job = market.want(spec(script, devices=[device], egress=[f"localhost:{port}"]))
    status = await market.until(lambda: market.settled(job))
    [logs] = market.sent("log")
    assert status.exit.code == 0, logs.files
    assert logs.files["stdout.log"] == b"hello\n"
    assert b"egress: localhost: " in logs.files["stderr.log"]


async def test_a_node_whose_owner_lets_nobody_out_refuses_such_a_job(market: Market, state: State):
    config.save(state, msgspec.structs.replace(config.load(state), network=Network()))
    refusing = nodes.machine(state)
    assert not refusing.inventory.egress
    asked = spec(
        market.offer({"main.py": b""}, "script"),
        devices=[refusing.inventory.devices[0].uuid],
        egress=["huggingface.co"],
    )
    with pytest.raises(orders.SpecRefused, match="reach nothing outside"):
        orders.check(asked, refusing, ())
