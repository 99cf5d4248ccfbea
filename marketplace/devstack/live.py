"""A whole site on this machine, from the disk to the nodes: started, watched, stopped in order."""

import fcntl
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from marketplace.devstack import provision
from marketplace.devstack.process import Stage
from marketplace.devstack.stack import DATA, Say, Stack, opened
from marketplace.devstack.supervisor import Supervisor

_JOBS_GRACE_S = 10
_KEEPER_ENDS_WITHIN_S = 10
_POLL_S = 0.1


@dataclass(frozen=True)
class LiveSite:
    """A running site. An account is a row of `manage.py seed`: role, email, password, org, key."""

    stack: Stack
    supervisor: Supervisor
    accounts: Sequence[dict[str, str]]

    def start_nodes(self, say: Say) -> list[dict[str, Any]]:
        """Two suppliers' machines, enrolled, verified and on offer, as their suppliers see them."""
        follow_market(self.stack.folder / "nodes", self.stack.agents_url)
        return provision.nodes(self.stack, self.supervisor, self.accounts, say=say)


@contextmanager
def live_services(folder: Path, say: Say, *, anywhere: bool = False) -> Iterator[LiveSite]:
    """PostgreSQL, Valkey, S3 and Stripe's stand-in, with tables, bucket and accounts, while the
    block runs; the site's own processes are not started."""
    with (
        _terminated_like_interrupted(),
        opened(folder, say, anywhere=anywhere) as stack,
        Supervisor(stack.logs, say) as supervisor,
    ):
        try:
            supervisor.start(*stack.data_services())
            if "DATABASE_URL" not in stack.given:
                stack.postgres.prepare()
            (printed,) = supervisor.run(stack.command("prepare"))
            yield LiveSite(stack, supervisor, json.loads(printed.splitlines()[-1]))
        finally:
            with _uninterrupted():
                supervisor.stop(down_to=Stage.NODES)
                end_jobs(folder / "nodes", grace_s=_JOBS_GRACE_S)
                supervisor.stop()


@contextmanager
def live_site(
    folder: Path = DATA, say: Say = print, *, anywhere: bool = False
) -> Iterator[LiveSite]:
    """The whole site, still without nodes, while the block runs. Call it from the main thread.

    With `anywhere`, on ports at random. Raises StackError, in words for a person.
    """
    with live_services(folder, say, anywhere=anywhere) as site:
        site.supervisor.start(*site.stack.site_services())
        yield site


def follow_market(nodes: Path, agents_url: str) -> None:
    """Tells nodes that enrolled on another port where the market is now.

    A real market keeps its name; this one moves when another program has taken its port.
    """
    for path in nodes.glob("*/config.json"):
        config = json.loads(path.read_text())
        moved = {"agents_url": agents_url, "market": agents_url}
        moved["server"] = urlsplit(agents_url).netloc
        if config != config | moved:
            draft = path.with_name(".config.json.new")
            draft.touch(mode=0o600)
            draft.write_text(json.dumps(config | moved, indent=2))
            draft.replace(path)


def end_jobs(nodes: Path, *, grace_s: float) -> None:
    """Asks every job that still runs on these nodes to save and leave, and waits until it has.

    A keeper outlives its agent on purpose; a stack that stops must not leave jobs behind. They
    go on from their checkpoints when it starts again.
    """
    kept = [lock.parent for lock in nodes.glob("*/assignments/*/keeper.lock") if _is_held(lock)]
    for folder in kept:
        draft = folder / ".drain.json.new"
        why = "the stack on this machine stops"
        draft.write_text(json.dumps({"why": why, "grace_ms": round(grace_s * 1000)}))
        draft.replace(folder / "drain.json")
    deadline = time.monotonic() + grace_s + _KEEPER_ENDS_WITHIN_S
    for folder in kept:
        while _is_held(folder / "keeper.lock") and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _is_held(lock: Path) -> bool:
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind as Ctrl-C does, so that whatever ends us stops the services."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling(interrupt, signal.SIGTERM, signal.SIGHUP):
        yield


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not cut the stop short: it is bounded by each service's grace."""
    with _handling(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield


@contextmanager
def _handling(
    handler: "Callable[[int, FrameType | None], None] | signal.Handlers", *numbers: signal.Signals
) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
