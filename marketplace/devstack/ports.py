"""Which port each service gets, kept between starts, and another one where it is taken."""

import os
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from marketplace.devstack.process import StackError

GRPC_OFFSET = 10_000
_TRIES = 200
# Below the range from which the kernel takes ports for outgoing connections (32768 and up).
_HIGHEST = 32_767


@dataclass(frozen=True)
class Wish:
    """A service's usual port, and what else it opens, as offsets from it."""

    name: str
    port: int
    offsets: tuple[int, ...] = (0,)


SITE = Wish("site", 8000)
AGENTS = Wish("agents", 8010)
STRIPE = Wish("stripe", 8020)
POSTGRES = Wish("postgres", 15432)
VALKEY = Wish("valkey", 16379)
# SeaweedFS opens a gRPC port beside each of its own.
S3 = Wish("s3", 8333, (0, GRPC_OFFSET))
S3_MASTER = Wish("s3_master", 9333, (0, GRPC_OFFSET))
S3_VOLUME = Wish("s3_volume", 9340, (0, GRPC_OFFSET))
S3_FILER = Wish("s3_filer", 9350, (0, GRPC_OFFSET))
S3_ADMIN = Wish("s3_admin", 9360, (0, GRPC_OFFSET))
S3_WISHES = (S3, S3_MASTER, S3_VOLUME, S3_FILER, S3_ADMIN)


def choose(
    wishes: Sequence[Wish], kept: dict[str, int], *, say: Callable[[str], None]
) -> dict[str, int]:
    """A free port for each wish: the kept one, else the usual one, else the next free one above.

    Says so where a port was taken. Raises StackError if nothing near it is free.
    """
    chosen: dict[str, int] = {}
    used: set[int] = set()
    for wish in wishes:
        first = kept.get(wish.name, wish.port)
        port = next(
            (
                port
                for port in range(first, min(first + _TRIES, _HIGHEST))
                if _is_free(port, wish.offsets, used)
            ),
            None,
        )
        if port is None:
            raise StackError(f"No free port for {wish.name} in {first}–{first + _TRIES}.")
        if port != first:
            say(f"Port {first} is taken by another program: {wish.name} uses {port}.")
        chosen[wish.name] = port
        used.update(port + offset for offset in wish.offsets)
    return chosen


def anywhere(wishes: Sequence[Wish]) -> dict[str, int]:
    """Free ports at random, for a stack that shares the machine with others (tests)."""
    chosen: dict[str, int] = {}
    used: set[int] = set()
    for wish in wishes:
        for _ in range(_TRIES):
            port = random.randrange(10_000, 22_000)
            if _is_free(port, wish.offsets, used):
                break
        else:
            raise StackError(f"No free port for {wish.name} in 10000–22000.")
        chosen[wish.name] = port
        used.update(port + offset for offset in wish.offsets)
    return chosen


def _is_free(port: int, offsets: Sequence[int], used: set[int]) -> bool:
    numbers = [port + offset for offset in offsets]
    return all(
        number not in used and _may_be_bound(number) and not _has_foreign_socket(number)
        for number in numbers
    )


def _may_be_bound(port: int) -> bool:
    with socket.socket() as probe:
        # As our servers do: a port in TIME_WAIT after our own last stop is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _has_foreign_socket(port: int) -> bool:
    """SeaweedFS's gRPC also listens at a fixed path. What another user's left there when it was
    killed can't be replaced, and then it never gets ready."""
    me = os.geteuid()
    left = Path("/tmp").glob(f"seaweedfs-*-{port}.sock")
    return me != 0 and any(path.lstat().st_uid != me for path in left)
