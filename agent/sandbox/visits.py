"""Who comes to look at a running job: a terminal in its sandbox, by way of the keeper.

The keeper listens at `visits.sock` in the assignment's folder, which only the agent's own user
reaches. A visitor that connects is handed one end of a socket whose other end is a terminal that
our init has opened inside (`init.serve_shell`): under the job's uid, its namespaces, its filter,
its limits. From then on the keeper has no part in it; the terminal ends with the job.
"""

import contextlib
import os
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from agent.sandbox.launch import Running

_SOCKET = "visits.sock"
_WITHIN_S = 20.0
_AT_ONCE = 4


class NoVisit(RuntimeError):
    """No terminal is to be had; says why."""


class Visits:
    """The keeper's side."""

    def __init__(self, folder: Path) -> None:
        self._waiting: deque[socket.socket] = deque()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _near(folder) as path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._listener.bind(path)
            os.chmod(path, 0o600)
        self._listener.listen(_AT_ONCE)
        self._listener.setblocking(False)

    def fileno(self) -> int:
        """Readable when somebody comes."""
        return self._listener.fileno()

    def welcome(self, running: Running) -> None:
        """Asks for a terminal for whoever has come."""
        with contextlib.suppress(BlockingIOError):
            visitor, _ = self._listener.accept()
            if len(self._waiting) >= _AT_ONCE:
                visitor.close()
                return
            self._waiting.append(visitor)
            running.ask_for_shell()

    def hand_over(self, running: Running) -> None:
        """Gives terminals that have come to those who wait for them."""
        while running.shells and self._waiting:
            terminal, visitor = running.shells.pop(0), self._waiting.popleft()
            if terminal >= 0:
                with contextlib.suppress(OSError):
                    socket.send_fds(visitor, [b"s"], [terminal])
                os.close(terminal)
            visitor.close()

    def close(self) -> None:
        """Nobody else comes in."""
        for visitor in self._waiting:
            visitor.close()
        self._listener.close()


def visit(folder: Path) -> socket.socket:
    """The agent's side: a socket to a terminal in the job's sandbox. Raises NoVisit."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_WITHIN_S)
        try:
            with _near(folder) as path:
                channel.connect(path)
            _, handed, _, _ = socket.recv_fds(channel, 1, 1)
        except OSError as error:
            raise NoVisit(f"its sandbox gives no terminal: {error.strerror or error}") from None
    if not handed:
        raise NoVisit("its sandbox gives no terminal: the job is ending, or too many are open")
    return socket.socket(fileno=handed[0])


@contextlib.contextmanager
def _near(folder: Path) -> Iterator[str]:
    """The socket's path, short enough for its kernel structure however deep the folder lies."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_SOCKET}"
    finally:
        os.close(descriptor)
