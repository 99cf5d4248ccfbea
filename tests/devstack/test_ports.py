"""Ports: the usual one, else the next free one, and a word about it."""

import os
import socket
from pathlib import Path

import pytest

from marketplace.devstack import ports
from marketplace.devstack.ports import Wish
from marketplace.devstack.process import StackError


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def free() -> int:
    """A port that nobody uses, with nobody on the next ones."""
    return ports.anywhere([Wish("x", 0, (0, 1, 2, 3))])["x"]


def test_a_free_port_is_used_as_it_is(free, told):
    assert ports.choose([Wish("site", free)], {}, say=told.append) == {"site": free}
    assert told == []


def test_a_taken_port_is_left_to_its_owner_and_that_is_said(free, told):
    with socket.create_server(("127.0.0.1", free)):
        assert ports.choose([Wish("site", free)], {}, say=told.append) == {"site": free + 1}
    assert told == [f"Port {free} is taken by another program: site uses {free + 1}."]


def test_a_port_once_chosen_is_kept(free, told):
    kept = {"site": free + 2}
    assert ports.choose([Wish("site", free)], kept, say=told.append) == kept


def test_two_services_never_get_the_same_port(free, told):
    chosen = ports.choose([Wish("a", free), Wish("b", free)], {}, say=told.append)
    assert chosen == {"a": free, "b": free + 1}


def test_a_port_whose_companion_is_taken_is_taken(free, told):
    with socket.create_server(("127.0.0.1", free + 1)):
        chosen = ports.choose([Wish("s3", free, (0, 1))], {}, say=told.append)
    assert chosen["s3"] > free


def test_a_socket_file_of_another_user_counts_as_taken(free, monkeypatch, told):
    left = Path(f"/tmp/seaweedfs-tests-grpc-{free}.sock")
    left.touch()
    try:
        monkeypatch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
        assert ports.choose([Wish("s3", free)], {}, say=told.append) == {"s3": free + 1}
    finally:
        left.unlink()


def test_no_free_port_at_all_is_said(told):
    with pytest.raises(StackError, match="No free port for site"):
        ports.choose([Wish("site", 32_767)], {}, say=told.append)
