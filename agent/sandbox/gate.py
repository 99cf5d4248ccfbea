"""The gate: the one way out of a job's sandbox, for the names that the job listed.

`python -m agent.sandbox.gate LISTENER KEEPER` is a child of the keeper, outside the sandbox, and speaks
HTTP's proxy protocol (CONNECT, and absolute addresses for plain http) on a socket that listens on
the loopback *inside*: our init made it there and handed it up, so nothing of the host is bound
into the sandbox, and the job keeps a network of its own with no interface but that loopback.

The gate resolves a name itself, dials the very address that it has checked, and knows nothing but
its list (`reach.py`). Its standard error is the job's: who was refused, and what was moved, stands
in the job's log. It has no rights to lose: as root it becomes nobody before it listens.
"""

import asyncio
import concurrent.futures.thread  # noqa: F401 - asyncio would load it later, as nobody
import contextlib
import ctypes
import ipaddress
import os
import resource
import signal
import socket
import subprocess
import sys
from collections import Counter
from typing import Final
from urllib.parse import urlsplit

import msgspec
import psutil
from msgspec import Struct

from agent.sandbox import reach
from agent.sandbox.reach import Network

_HEAD: Final = 16 * 1024
_CHUNK: Final = 64 * 1024
_AT_ONCE: Final = 256
_HEAD_S, _DIAL_S, _QUIET_S = 15.0, 15.0, 900.0
_MOST_LINES: Final = 100
_MOST_BYTES: Final = 64 * 2**30
"""That one job moves, in and out together: a data set or a model, and no service for others."""
_FILES: Final = 1024
"""Descriptors that it may have open: two for each connection, and those that wait."""
_NOBODY: Final = 65_534
_PR_SET_PDEATHSIG: Final = 1
# Between two ends of a connection, and no business of the server's.
_HOP: Final = (b"connection:", b"proxy-", b"keep-alive:", b"te:", b"upgrade:")


class Told(Struct, frozen=True):
    """What the keeper says on standard input."""

    names: list[str]
    networks: list[str]


class _No(Exception):
    """What the client is answered instead: a status, and why."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status


class Gate:
    """The keeper's hold on it."""

    def __init__(self, listener: int, names: list[str], networks: list[str], stderr: int) -> None:
        """Owns `listener` and `stderr`."""
        self._listener, self._stderr = listener, stderr
        self._told = msgspec.json.encode(Told(names, networks))
        self._process = self._start()

    def revive(self) -> None:
        """Starts it again should it have died: the job's network must not end before the job."""
        if self._process.poll() is not None:
            self._process = self._start()

    def close(self, within_s: float = 1.0) -> None:
        """Ends it; it says what it has moved."""
        self._process.terminate()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for fd in (self._listener, self._stderr):
            os.close(fd)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "agent.sandbox.gate", str(self._listener), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            pass_fds=(self._listener,),
            cwd="/",
        )
        assert process.stdin is not None
        with process.stdin as told, contextlib.suppress(BrokenPipeError):
            told.write(self._told)
        return process


class _Proxy:
    """The gate itself, in its own process."""

    def __init__(self, told: Told) -> None:
        self._names = [reach.parse(name) for name in told.names]
        self._networks = [ipaddress.ip_network(network) for network in told.networks]
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._moved: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    async def serve(self, listener: socket.socket) -> None:
        """Until SIGTERM."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        server = await asyncio.start_server(self._welcome, sock=listener, limit=_HEAD)
        async with server:
            await stop.wait()
        self._sum_up()

    async def _welcome(self, job: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            async with self._room:
                await self._serve_one(job, back)
        except _No as no:
            with contextlib.suppress(OSError):
                back.write(_answer(no))
                await back.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # either end has gone away
        finally:
            back.close()

    async def _serve_one(self, job: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_S):
            head = await _read_head(job)
        host, port, onward = _asked(head)
        addresses = await self._find(host, port)
        there, out = await self._dial(host, addresses, port)
        try:
            if onward:
                out.write(onward)
            else:
                back.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(self._pump(job, out, host), self._pump(there, back, host))
        finally:
            out.close()

    async def _find(self, host: str, port: int) -> list[str]:
        """Addresses of a listed name that may be dialled; raises _No."""
        if why := reach.why_not(self._names, host, port) or self._used_up():
            raise self._refuse(host, why)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host.encode("ascii", "replace"), port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise _No("502 Bad Gateway", f"{host}: {error}") from None
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        usable = reach.usable(addresses, self._networks, near())
        if not usable:
            raise self._refuse(host, "its address is not one of the public internet")
        return usable

    async def _dial(
        self, host: str, addresses: list[str], port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        why = "it has no address"
        for address in addresses:
            try:
                async with asyncio.timeout(_DIAL_S):
                    return await asyncio.open_connection(address, port, limit=_CHUNK)
            except (OSError, TimeoutError) as error:
                why = str(error) or "it does not answer"
        raise _No("502 Bad Gateway", f"{host}: {why}")

    async def _pump(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, host: str
    ) -> None:
        """Moves bytes until one end closes; the other direction may go on."""
        while True:
            async with asyncio.timeout(_QUIET_S):
                data = await source.read(_CHUNK)
            if not data:
                break
            self._moved[host] += len(data)
            if why := self._used_up():
                self._refuse(host, why)
                raise ConnectionAbortedError(why)
            to.write(data)
            await to.drain()
        with contextlib.suppress(OSError):
            to.write_eof()

    def _used_up(self) -> str:
        if self._moved.total() <= _MOST_BYTES:
            return ""
        return f"the {_MOST_BYTES:,} bytes that a job may move are used up"

    def _refuse(self, host: str, why: str) -> _No:
        """Said in the job's log once for each name, and no more often than anybody would read."""
        shown = "".join(letter for letter in host[:253] if letter.isprintable())
        self._refused[shown] += 1
        if self._refused[shown] == 1 and len(self._refused) <= _MOST_LINES:
            _say(f"egress: {shown} is not reached: {why}")
        return _No("403 Forbidden", f"{shown}: {why}")

    def _sum_up(self) -> None:
        for host, size in self._moved.most_common(_MOST_LINES):
            _say(f"egress: {host}: {size:,} bytes")


async def _read_head(job: asyncio.StreamReader) -> bytes:
    try:
        return await job.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _No("431 Request Header Fields Too Large", "the request's head is too long") from None


def _asked(head: bytes) -> tuple[str, int, bytes]:
    """(host, port, what to send on) of a request; nothing to send on for CONNECT. Raises _No."""
    line, *fields = head[:-4].split(b"\r\n")
    words = line.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise _No("400 Bad Request", "this is a proxy for HTTP")
    method, target = words[0], words[1].decode("ascii", "replace")
    tunnel = method == b"CONNECT"
    try:
        parts = urlsplit(f"//{target}" if tunnel else target)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        host, port = "", None
    if not host or (tunnel and port is None) or not (tunnel or parts.scheme == "http"):
        raise _No("400 Bad Request", "name a host: CONNECT host:port, or http://host/path")
    if tunnel:
        return host, port or 443, b""
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    named = f"{host}:{port}" if port else host
    kept = [one for one in fields if not one.lower().startswith((b"host:", *_HOP))]
    onward = [b"%s %s HTTP/1.1" % (method, path.encode()), b"Host: " + named.encode(), *kept]
    return host, port or 80, b"\r\n".join([*onward, b"Connection: close", b"", b""])


def _answer(no: _No) -> bytes:
    body = f"{no}\n".encode(errors="replace")
    head = f"HTTP/1.1 {no.status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def near() -> set[Network]:
    """The networks that this machine is on by now, its own addresses among them: interfaces come
    and go."""
    every = (one for these in psutil.net_if_addrs().values() for one in these)
    found = (reach.network_of(one.address, one.netmask) for one in every)
    return {network for network in found if network is not None}


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _give_up_rights(*, keeper: int) -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    zero = ctypes.c_ulong(0)
    # After the change of the uid, which clears it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), zero, zero, zero)
    if os.getppid() != keeper:
        os._exit(1)  # it died before we could ask to die with it


def main() -> None:
    """The gate's process."""
    told = msgspec.json.decode(sys.stdin.buffer.read(), type=Told)
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.setblocking(False)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    proxy = _Proxy(told)
    _give_up_rights(keeper=int(sys.argv[2]))
    asyncio.run(proxy.serve(listener))


if __name__ == "__main__":
    main()
