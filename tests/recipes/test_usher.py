"""How the ranks of a gang keep in touch."""

import contextlib
import socket
import threading
from collections import deque

import pytest

from agent.recipes import usher
from agent.recipes.usher import PeerLost, Usher, take_seat

TOKEN = "a" * 64


@pytest.fixture
def gone():
    """Ranks that were missed, and a bell for them."""
    return deque(), threading.Event()


@pytest.fixture
def first(monkeypatch, gone):
    """The first rank's usher, on a port of its own."""
    with socket.socket() as channel:
        channel.bind(("127.0.0.1", 0))
        monkeypatch.setattr(usher, "PORT", channel.getsockname()[1])
    ranks, bell = gone

    def lost(rank):
        ranks.append(rank)
        bell.set()

    return Usher("127.0.0.1", TOKEN, lost)


def wanted():
    """Nobody has asked us to leave."""


def seat(rank, token=TOKEN):
    return take_seat("127.0.0.1", token, rank, within_s=10, still_wanted=wanted)


def test_all_who_come_hear_what_the_first_says(first):
    seats = [seat(1), seat(2)]
    first.gather(2, 10, wanted)
    first.tell("join")
    first.dismiss("leave 0")
    assert [[one.hear(), one.hear()] for one in seats] == [["join", "leave 0"]] * 2


def test_a_rank_that_goes_is_missed_at_once_and_one_that_was_dismissed_is_not(first, gone):
    ranks, bell = gone
    seats = [seat(1), seat(2)]
    first.gather(2, 10, wanted)
    seats[1]._channel.close()
    assert bell.wait(10)
    assert list(ranks) == [2]
    first.dismiss("leave 0")
    assert seats[0].hear() == "leave 0"
    seats[0]._channel.close()
    # A stranger's connection is seen through after it, in the same way.
    with pytest.raises(PeerLost, match="first rank is gone"):
        seat(3, token="b" * 64).hear()
    assert list(ranks) == [2]


def test_who_does_not_know_the_token_is_nobody(first):
    for words in (b"", b"\n", b"b" * 64 + b" 1\n", TOKEN.encode() + b" one\n", b"x" * 5000):
        channel = socket.create_connection(("127.0.0.1", usher.PORT))
        # It may have been hung up on by now: then there is nothing left to shut down.
        with channel, contextlib.suppress(OSError):
            channel.sendall(words)
            channel.shutdown(socket.SHUT_WR)
            assert channel.recv(10) == b""
    with pytest.raises(PeerLost, match="rank 1 did not come"):
        first.gather(1, 0.01, wanted)


def test_the_others_do_not_wait_for_ever_nor_when_they_are_asked_to_leave(monkeypatch):
    with socket.socket() as channel:
        channel.bind(("127.0.0.1", 0))
        monkeypatch.setattr(usher, "PORT", channel.getsockname()[1])
        with pytest.raises(PeerLost, match="let UDP through"):
            take_seat("127.0.0.1", TOKEN, 1, within_s=0.01, still_wanted=wanted)

        def leave():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            take_seat("127.0.0.1", TOKEN, 1, within_s=60, still_wanted=leave)


def test_a_first_rank_that_dies_frees_the_others(first):
    one = seat(1)
    first.gather(1, 10, wanted)
    first._present[1].shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerLost):
        one.hear()
