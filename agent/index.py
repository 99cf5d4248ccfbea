"""Whether a package index answers this node, as the agent finds for itself.

What a build says of its own failure is the words of a sandbox in which strangers' lock is read;
whose fault it was is not to be decided by them. Asked under the gate's own rules.
"""

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from agent.protocol import Packages
from agent.sandbox import gate, reach

_WITHIN_S: Final = 10.0
_SERVER_ERROR: Final = 500


def why_away(packages: Packages, allow: Sequence[str]) -> str:
    """Which of the index's hosts does not answer, and why; "" if all do. `allow`: the networks
    that the owner lets them lie in. Takes a while."""
    index = urlsplit(packages.index)
    asked = {index.netloc: f"{index.path.rstrip('/')}/"}
    asked |= {host: "/" for host in packages.hosts if host not in asked and host[:1] != "."}
    for netloc, path in asked.items():
        if why := _why_silent(f"{index.scheme}://{netloc}{path}", packages.hosts, allow):
            return f"{netloc}: {why}"
    return ""


def _why_silent(url: str, hosts: Sequence[str], allow: Sequence[str]) -> str:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if reach.why_not([reach.parse(name) for name in hosts], host, port):
        return ""  # no build would reach it anyhow: the lock's own fault
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return str(error)
    addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
    networks = [ipaddress.ip_network(network) for network in allow]
    why = "its address is not one of the public internet"
    for address in reach.usable(addresses, networks, gate.near()):
        try:
            status = _ask(address, port, url)
        except (OSError, http.client.HTTPException) as error:
            why = str(error) or "it does not answer"
            continue
        return f"it answers with {status}" if status >= _SERVER_ERROR else ""
    return why


def _ask(address: str, port: int, url: str) -> int:
    """The status of a HEAD request to that very address."""
    parts = urlsplit(url)
    to: socket.socket = socket.create_connection((address, port), _WITHIN_S)
    try:
        if parts.scheme == "https":
            to = ssl.create_default_context().wrap_socket(to, server_hostname=parts.hostname)
        connection = http.client.HTTPConnection(parts.netloc)
        connection.sock = to
        connection.request("HEAD", parts.path)
        return connection.getresponse().status
    finally:
        to.close()
