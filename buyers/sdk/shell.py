"""A shell in a running job: its terminal, on this one. What is typed is kept by the market."""

import contextlib
import os
import select
import shutil
import signal
import struct
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from buyers.sdk.errors import GridloomError, Unreachable

_CHUNK = 8 * 1024


class Shell:
    """The connection: `type` keys, `resize` the window, `read` what is shown."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    def type(self, data: bytes) -> None:
        """Sends keys."""
        self._send(b"d", data)

    def resize(self, rows: int, columns: int) -> None:
        """Says how large the window is."""
        self._send(b"w", struct.pack(">HH", rows, columns))

    def read(self) -> bytes:
        """What is shown next; nothing once the shell is over. Raises GridloomError where the
        market says why it ends."""
        try:
            data = self._socket.recv()
        except ConnectionClosed as closed:
            if closed.rcvd and closed.rcvd.reason:
                raise GridloomError(closed.rcvd.reason) from None
            return b""
        return data if isinstance(data, bytes) else data.encode()

    def _send(self, letter: bytes, data: bytes) -> None:
        with contextlib.suppress(ConnectionClosed):
            self._socket.send(letter + struct.pack(">H", len(data)) + data)


@contextlib.contextmanager
def opened(url: str, key: str, job: str) -> Iterator[Shell]:
    """A shell in a job; raises GridloomError, Unreachable."""
    parts = urlsplit(url)
    scheme = "wss" if parts.scheme == "https" else "ws"
    address = f"{scheme}://{parts.netloc}/api/v1/jobs/{job}/shell"
    try:
        socket = connect(
            address,
            origin=Origin(f"{parts.scheme}://{parts.netloc}"),
            additional_headers={"Authorization": f"Bearer {key}"},
            compression=None,
            proxy=None if parts.hostname in ("127.0.0.1", "localhost", "::1") else True,
        )
    except InvalidStatus as refused:
        raise GridloomError(
            f"there is no such job of yours, or this API key lacks the scope attach "
            f"({refused.response.status_code})"
        ) from None
    except (OSError, TimeoutError) as error:
        raise Unreachable(f"{url} gives no answer ({error})") from None
    with socket:
        yield Shell(socket)


def interact(shell: Shell) -> None:
    """Joins it to this process's terminal until the shell ends."""
    done = threading.Event()

    def resize(*_: object) -> None:
        size = shutil.get_terminal_size()
        shell.resize(size.lines, size.columns)

    with _raw():
        resize()
        signal.signal(signal.SIGWINCH, resize)
        typing = threading.Thread(target=_type, args=(shell, done), daemon=True)
        typing.start()
        try:
            while data := shell.read():
                os.write(sys.stdout.fileno(), data)
        finally:
            done.set()
            typing.join(1)
            signal.signal(signal.SIGWINCH, signal.SIG_DFL)


def _type(shell: Shell, done: threading.Event) -> None:
    keys = sys.stdin.fileno()
    while not done.is_set():
        if select.select([keys], [], [], 0.2)[0]:
            data = os.read(keys, _CHUNK)
            # The end of a file is what Ctrl-D types.
            shell.type(data or b"\x04")
            if not data:
                return


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Keys as they are typed, where this is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
