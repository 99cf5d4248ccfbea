"""How the ranks of a gang keep in touch: each holds one connection to the first, and says little.

The first rank knows by it who is there, and at once when one is gone: the kernel closes the
connections of a process that is killed, and a few seconds without a sign end those of a machine
that is. The others learn by it when to join and how to leave. Lines of text; the first one must
bring the lease's token.
"""

import contextlib
import hmac
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

PORT: Final = 6378
_LONGEST: Final = 200
_AGAIN_S: Final = 0.2
_HELLO_WITHIN_S: Final = 5.0


class PeerLost(Exception):
    """A rank that the gang can't go on without is gone; says which."""


class Usher:
    """The first rank's side. `lost` is called, from a thread, with each rank that goes."""

    def __init__(self, address: str, token: str, lost: Callable[[int], None]) -> None:
        self._token, self._lost = token, lost
        self._present: dict[int, socket.socket] = {}
        self._changed = threading.Condition()
        self._is_over = False
        self._server = socket.create_server((address, PORT))
        threading.Thread(target=self._admit, daemon=True).start()

    def gather(self, ranks: int, within_s: float, still_wanted: Callable[[], None]) -> None:
        """Returns once so many others are there; raises PeerLost if they don't come in time, and
        whatever `still_wanted` raises."""
        deadline = time.monotonic() + within_s
        with self._changed:
            while len(self._present) < ranks:
                still_wanted()
                if time.monotonic() > deadline:
                    missing = sorted(set(range(1, ranks + 1)) - set(self._present))
                    raise PeerLost(f"rank {missing[0]} did not come within {within_s:.0f} s")
                self._changed.wait(_AGAIN_S)

    def present(self) -> list[int]:
        """The other ranks that are there."""
        with self._changed:
            return sorted(self._present)

    def tell(self, words: str) -> None:
        """One line to everybody who is there."""
        with self._changed:
            for channel in self._present.values():
                with contextlib.suppress(OSError):
                    channel.sendall(words.encode() + b"\n")

    def dismiss(self, words: str) -> None:
        """The last line to everybody: who goes from here on isn't missed."""
        with self._changed:
            self._is_over = True
        self.tell(words)

    def _admit(self) -> None:
        while True:
            channel, _ = self._server.accept()
            threading.Thread(target=self._attend, args=(channel,), daemon=True).start()

    def _attend(self, channel: socket.socket) -> None:
        """One rank, from its hello to its end."""
        with channel, contextlib.suppress(OSError):
            _watch_over(channel)
            channel.settimeout(_HELLO_WITHIN_S)
            token, _, number = next(_lines(channel), "").partition(" ")
            if not hmac.compare_digest(token, self._token) or not number.isdigit():
                return
            rank = int(number)
            with self._changed:
                self._present[rank] = channel
                self._changed.notify_all()
            channel.settimeout(None)
            try:
                for _ in _lines(channel):
                    pass
            except OSError:
                pass  # the machine went without a word
            with self._changed:
                self._present.pop(rank, None)
                missed = not self._is_over
            if missed:
                self._lost(rank)


class Seat:
    """Another rank's side."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._heard = _lines(channel)

    def hear(self) -> str:
        """The next line from the first rank; raises PeerLost when it is gone."""
        try:
            return next(self._heard)
        except (StopIteration, OSError):
            raise PeerLost("the first rank is gone") from None


def take_seat(
    address: str, token: str, rank: int, *, within_s: float, still_wanted: Callable[[], None]
) -> Seat:
    """Connects as soon as the first rank is there; raises PeerLost if it doesn't come."""
    deadline = time.monotonic() + within_s
    while True:
        still_wanted()
        try:
            channel = socket.create_connection((address, PORT), timeout=_HELLO_WITHIN_S)
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLost(
                    f"the first rank can't be reached at {address}: {error}; "
                    "the site's network must let UDP through between its nodes"
                ) from None
            time.sleep(_AGAIN_S)  # it may not be there yet: nobody tells
            continue
        channel.settimeout(None)
        _watch_over(channel)
        channel.sendall(f"{token} {rank}\n".encode())
        return Seat(channel)


def _lines(channel: socket.socket) -> Iterator[str]:
    """Lines as they come, until the other side closes or says too much; raises OSError."""
    data = b""
    while more := channel.recv(_LONGEST):
        *lines, data = (data + more).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
        if len(data) > _LONGEST:
            return


def _watch_over(channel: socket.socket) -> None:
    """Lets the kernel notice within some ten seconds that the other machine is gone."""
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 3),
        (socket.TCP_KEEPINTVL, 3),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, 10_000),
    ):
        channel.setsockopt(socket.IPPROTO_TCP, option, value)
