"""The gate: a job reaches the names that it listed, and nothing else of the host or its network."""

import asyncio
import http.server
import json
import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from agent import keeper
from agent.sandbox import gate
from tests.agent.sandbox.jobs import Assignment, each_rung, each_wall, until
from tests.serving import on_loopback, running

# Asks the gate for each target in turn, as CONNECT and as a plain request; prints what came.
ASK = """
import json, os, socket, sys
def ask(line, then=b""):
    gate = os.environ.get("HTTPS_PROXY", "").rpartition(":")[2]
    if not gate: return "no gate"
    with socket.create_connection(("127.0.0.1", int(gate)), timeout=20) as to:
        to.sendall(line + then)
        said = b""
        while more := to.recv(4096): said += more
    return said.decode(errors="replace")
found = {}
for target in json.loads(sys.argv[1]):
    host = target.rpartition(":")[0]
    request = b"GET /hello HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n"
    found[target] = [
        ask(f"CONNECT {target} HTTP/1.1\\r\\n\\r\\n".encode(), request),
        ask(f"GET http://{target}/hello HTTP/1.1\\r\\nHost: y\\r\\n\\r\\n".encode()),
    ]
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=2)
    found["directly"] = "reached"
except OSError as error:
    found["directly"] = "refused"
print(json.dumps(found))
"""
LOOPBACK = ["127.0.0.0/8"]


class _Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"hello from {self.headers['Host']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """A server of the host's own, which a job may reach only by the gate."""
    with running(on_loopback(_Hello)) as server:
        yield server.server_port


def _asks(assignment: Assignment, rung, targets: list[str], port: int, **order) -> dict:
    status = assignment.run(rung, "python3", "-c", ASK, json.dumps(targets), str(port), **order)
    assert (status.why, status.exit_code) == ("exited", 0), assignment.stderr() + status.detail
    return json.loads(assignment.stdout())


@each_wall
def test_a_listed_name_is_reached_and_what_was_moved_stands_in_the_log(assignment, rung, port):
    target = f"localhost:{port}"
    found = _asks(assignment, rung, [target], port, egress=[target], networks=LOOPBACK)
    tunnel, plain = found[target]
    assert "200 Connection established" in tunnel
    assert "hello from x" in tunnel
    assert plain.endswith(f"hello from {target}")  # whatever host the request's own head named
    assert found["directly"] == "refused"
    assert "egress: localhost: " in assignment.stderr()


@each_wall
def test_nothing_else_is_reached(assignment, rung, port):
    """Not by number, not by another port, not another name, and no name that leads inside."""
    targets = [f"127.0.0.1:{port}", "localhost:1", "169.254.169.254:80", f"[::1]:{port}",
               "10.0.0.1:443", "example.org:443", f"localhost:{port}"]  # fmt: skip
    found = _asks(assignment, rung, targets, port, egress=[f"localhost:{port}", ".example.com"])
    assert found.pop("directly") == "refused"
    refused = {target: [said.split(" ")[1] for said in both] for target, both in found.items()}
    assert refused == {target: ["403", "403"] for target in targets}
    log = assignment.stderr()
    assert "egress: example.org is not reached: it is not among the names" in log
    assert "egress: localhost is not reached" in log


@each_wall
def test_without_a_list_there_is_no_gate(assignment, rung, port):
    found = _asks(assignment, rung, ["example.org:443"], port)
    assert found == {"example.org:443": ["no gate", "no gate"], "directly": "refused"}


@each_rung
def test_a_gate_that_dies_comes_back_and_goes_with_its_job(assignment, rung, port):
    waits = "import time\nprint('ready', flush=True)\nwhile True: time.sleep(0.05)"
    assignment.start(rung, "python3", "-c", waits, egress=[f"localhost:{port}"])
    assignment.until_it_said("ready")
    top = keeper.read_status(assignment.folder).keeper_pid
    until(lambda: _gates(top))
    (first,) = _gates(top)
    os.kill(first, signal.SIGKILL)
    until(lambda: [pid for pid in _gates(top) if pid != first])
    (second,) = _gates(top)
    if os.getuid() == 0 and rung.wall == "root":
        until(lambda: psutil.Process(second).uids().real == 65534)
    keeper.kill(assignment.folder)
    assert not _lives(second)


@each_wall
def test_a_gate_does_not_outlive_a_killed_keeper(assignment, rung, port):
    waits = "import time\nprint('ready', flush=True)\nwhile True: time.sleep(0.05)"
    assignment.start(rung, "python3", "-c", waits, egress=[f"localhost:{port}"])
    assignment.until_it_said("ready")
    top = keeper.read_status(assignment.folder).keeper_pid
    until(lambda: _gates(top))
    (gate,) = _gates(top)
    os.kill(top, signal.SIGKILL)
    until(lambda: not _lives(gate))


def test_a_job_that_has_moved_all_that_it_may_is_let_through_no_more(monkeypatch, port):
    monkeypatch.setattr(gate, "_MOST_BYTES", 1000)
    proxy = gate._Proxy(gate.Told([f"localhost:{port}"], LOOPBACK))

    async def move() -> None:
        assert await proxy._find("localhost", port) == ["127.0.0.1"]
        source = asyncio.StreamReader()
        source.feed_data(b"x" * 1001)
        with pytest.raises(ConnectionAbortedError):
            await proxy._pump(source, None, "localhost")
        with pytest.raises(gate._No, match="used up"):
            await proxy._find("localhost", port)

    asyncio.run(move())


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # its parent may be slow
    except psutil.NoSuchProcess:
        return False


def _gates(keeper_pid: int) -> list[int]:
    found = []
    for child in psutil.Process(keeper_pid).children():
        try:
            if "agent.sandbox.gate" in child.cmdline() and child.status() != "zombie":
                found.append(child.pid)
        except psutil.Error:
            continue
    return found
