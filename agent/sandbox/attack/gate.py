"""Attacks on the gate, by a job that may reach one name: whom else does it get to?"""

import os
import socket
from collections.abc import Callable
from typing import Any

Targets = dict[str, Any]


def reach_the_named(targets: Targets) -> str | None:
    """Not an attack: a gate that lets nobody through is of no use."""
    said = _ask(f"localhost:{targets['port']}")
    return None if " 200 " in said else f"the listed name is not reached: {said[:200]}"


def reach_others(targets: Targets) -> str | None:
    """By address, by another port, by another name, and where clouds tell their secrets."""
    port = targets["port"]
    for target in (
        *(f"127.0.0.1:{port}", f"[::1]:{port}", f"0.0.0.0:{port}", f"[::ffff:127.0.0.1]:{port}"),
        *(f"job:{port}", "localhost:22", "169.254.169.254:80", "metadata.google.internal:80"),
        *("10.0.0.1:443", "192.168.0.1:80", "example.com:443"),
    ):
        if " 200 " in _ask(target):
            return f"reached {target}"
    return None


def _ask(target: str) -> str:
    port = os.environ["HTTPS_PROXY"].rpartition(":")[2]
    with socket.create_connection(("127.0.0.1", int(port)), timeout=20) as gate:
        gate.sendall(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        return gate.recv(4096).decode(errors="replace").partition("\r\n")[0]


CHECKS: dict[str, Callable[[Targets], str | None]] = {
    check.__name__: check for check in (reach_the_named, reach_others)
}
