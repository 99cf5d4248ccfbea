"""The agent's daemon: what the market wants against what this node has, until it is stopped.

Everything here runs in one event loop; what blocks goes to threads. Stopping the daemon, or
killing it, ends no job: the keepers go on, and the next daemon finds them.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent import cache, keeper, owner, reconcile, shells
from agent import order as files
from agent import record as records
from agent.api import Api, Bearer
from agent.client import PACE, Client, Pace
from agent.config import Config, State
from agent.hardware import Machine
from agent.images import Images
from agent.life import Life
from agent.making import Shelves
from agent.packages import Builds
from agent.patience import Backoff
from agent.protocol import (
    Desired,
    Drain,
    Heartbeat,
    Inventory,
    Receipt,
    Samples,
    Status,
    Usage,
    Welcome,
)
from agent.proving import Prover
from agent.sampling import Foreign, Sampler
from agent.sandbox import outputs
from agent.telling import Outbox
from agent.tools import Tools
from agent.transfer import Bandwidth, Downloads
from agent.uploads import Uploads
from agent.usage import BadReceipt, Spool

log = logging.getLogger(__name__)

_TICK_S: Final = 1.0
_LOAD_S: Final = 5.0
_BEATS_A_CLAIM: Final = 6
_AWAY: Final = "market_away"
_DEAF_S: Final = 2.0
"""A market that is away when we leave is not waited for longer than this."""
_GOODBYE: Final = "its machine is going down"


class Daemon:
    """One node at work. It is the client's `Node`."""

    def __init__(
        self,
        state: State,
        config: Config,
        key: Ed25519PrivateKey,
        machine: Machine,
        pace: Pace = PACE,
    ) -> None:
        self._state, self._config, self._machine = state, config, machine
        self._shelves = Shelves(state.environments, state.cache, self._is_in_use)
        bearer = Bearer()
        self._client = Client(config, key, self, bearer, pace)
        api, bandwidth = Api(config.agents_url, bearer), Bandwidth(state.root / "bandwidth")
        downloads = Downloads(state.cache, bandwidth)
        self._tools = Tools(
            machine=machine,
            api=api,
            downloads=downloads,
            shelves=self._shelves,
            builds=Builds(self._shelves, machine),
            images=Images(self._shelves, machine, downloads),
            uploads=Uploads(api),
            spool=Spool(state.root, config.node, key, config.market_key),
            sampler=Sampler(machine.inventory.devices, machine.cores, machine.driver),
            outbox=Outbox(),
            changed=self._changed,
            noted=self._client.ring_soon,
            taken=self._taken,
        )
        self._prover = Prover(state, machine, api, bandwidth)
        self._lives: dict[UUID, Life] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._forgetting, self._shells = set[UUID](), set[UUID]()
        self._desired: Desired | None = None
        """None until the market has said it once."""
        self._interval_s, self._spool_s = 10.0, 3600.0
        self._owner_why = ""
        self._leaving, self._news = asyncio.Event(), asyncio.Event()
        self._foreign = Foreign(machine.cores, machine.driver)
        self._mood, self._load_at = owner.Mood(), time.monotonic()

    def leave(self) -> None:
        """Says goodbye: what runs saves, is sent, and goes on elsewhere; then `run` returns."""
        self._leaving.set()

    async def run(self) -> None:
        """Until cancelled, or gone after `leave`; raises TurnedAway when the market has turned us
        away for good."""
        await asyncio.to_thread(cache.sweep, self._state.cache)
        await asyncio.to_thread(self._shelves.sweep)
        await self._find_lives()
        work = [
            asyncio.create_task(one)
            for one in (
                self._client.run(),
                self._tick(),
                self._prover.run(self._is_idle),
                self._left(),
            )
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*work, *self._tasks):
                task.cancel()
            await asyncio.gather(*work, *self._tasks, return_exceptions=True)
            for tool in (self._tools.api, self._tools.downloads, self._tools.uploads):
                await tool.aclose()

    # What the client asks and tells (`agent.client.Node`).

    def inventory(self) -> Inventory:
        """The node as it was found at the start."""
        return self._machine.inventory

    def statuses(self) -> list[Status]:
        """All assignments that the node has."""
        return [life.status() for life in self._lives.values()]

    def heartbeat(self, seq: int) -> Heartbeat:
        """The node as it is."""
        return Heartbeat(
            seq=seq,
            boot_id=files.boot_id(),
            up_ms=files.up_ms(),
            assignments=self.statuses(),
            devices=self._tools.sampler.take(),
            owner_busy=bool(self._owner_why),
            owner_why=self._owner_why,
        )

    def claims(self) -> dict[UUID, Usage]:
        """Claims without a receipt."""
        return self._tools.spool.waiting()

    def samples(self) -> Samples | None:
        """Curves and output, as much as one message holds."""
        return self._tools.outbox.take()

    def welcomed(self, welcome: Welcome) -> None:
        """The market has let us in."""
        self._interval_s, self._spool_s = welcome.interval_s, welcome.spool_s
        self._prover.look_again()

    def desires(self, desired: Desired) -> None:
        """What the market wants of this node now."""
        self._desired = desired
        self._reconcile()

    def receives(self, receipt: Receipt) -> None:
        """The market's word on a claim. One that isn't its own is not kept, and claimed again."""
        try:
            body = self._tools.spool.take(receipt)
        except BadReceipt as error:
            log.error("%s", error)
            return
        if body.reason:
            log.warning("claim %d of %s: %s", body.n, body.assignment, body.reason)

    # The loop.

    def _reconcile(self) -> None:
        if self._desired is None:
            return
        held = {id: life.record.held() for id, life in self._lives.items()}
        for action in reconcile.reconcile(self._desired, held):
            self._do(action)
        for wanted in self._desired.assignments:
            for shell in wanted.shells:
                self._attend(wanted.id, shell)

    def _attend(self, assignment: UUID, shell: UUID) -> None:
        """Opens a shell that was not opened before, in a job that runs."""
        life = self._lives.get(assignment)
        if shell in self._shells or life is None or not life.is_running():
            return
        self._shells.add(shell)
        log.info("a shell is opened in %s: %s", assignment, shell)
        url, bearer = self._config.agents_url, self._tools.api.bearer
        self._spawn(shells.attend(shell, life.folder, url, bearer))

    def _do(self, action: reconcile.Action) -> None:
        log.info("%s", action)
        match action:
            case reconcile.Start(wanted):
                folder, record = records.accept(self._state.assignments, wanted)
                self._begin(Life(folder, record, self._tools))
                self._client.ring()
            case reconcile.Pay(id, paid_through_ms):
                self._lives[id].pay(paid_through_ms)
            case reconcile.AskToLeave(id, drain):
                self._lives[id].ask_to_leave(drain)
            case reconcile.Abandon(id):
                self._lives[id].abandon()
            case reconcile.Forget(id):
                if id not in self._forgetting:
                    self._forgetting.add(id)
                    self._spawn(self._forget(self._lives[id]))

    async def _find_lives(self) -> None:
        """Takes up what an earlier agent has left."""
        for folder in records.folders(self._state.assignments):
            try:
                life = Life(folder, records.load(folder), self._tools)
                await life.look()
            except (records.Unreadable, files.OrderError) as error:
                # The market will see that it isn't there, and run it elsewhere.
                log.error("an assignment can't be gone on with: %s", error)
                await asyncio.to_thread(_bury, folder)
            else:
                self._begin(life)

    def _begin(self, life: Life) -> None:
        self._lives[life.record.id] = life
        self._spawn(self._see_through(life))

    async def _see_through(self, life: Life) -> None:
        """Lives one life to its end, beginning anew where it stands whenever something fails."""
        backoff = Backoff(first=1.0)
        while not life.record.is_settled:
            try:
                await life.run()
            except Exception as error:
                log.exception("assignment %s is in trouble", life.record.id)
                life.say(f"in trouble: {error}")
                await backoff.pause()

    async def _forget(self, life: Life) -> None:
        backoff = Backoff(first=1.0)
        while True:
            try:
                await asyncio.to_thread(outputs.clean, life.folder)
                break
            except OSError as error:
                log.error("%s can't be removed: %s", life.folder, error)
                await backoff.pause()
        del self._lives[life.record.id]
        self._forgetting.discard(life.record.id)
        self._changed()

    async def _tick(self) -> None:
        """What is due by time alone."""
        claimed_at = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            await self._ask_owner()
            if time.monotonic() - claimed_at >= _BEATS_A_CLAIM * self._interval_s:
                claimed_at = time.monotonic()
                self._claim()
                self._client.ring()
            if self._client.away_s > (_DEAF_S if self._leaving.is_set() else self._spool_s):
                self._leave_alone()

    def _claim(self) -> None:
        """What runs is claimed; on a full disk a claim waits for the next time, and the job goes
        on."""
        for life in self._lives.values():
            try:
                if life.is_running():
                    life.claim()
            except OSError as error:
                log.error("a claim can't be kept: %s", error)

    async def _left(self) -> None:
        """Returns once we were to leave and nothing is left to do: the market reclaims what runs
        here as it does for an owner, and hears of each end before we are gone."""
        await self._leaving.wait()
        await self._ask_owner()
        while any(self._keeps_us(life) for life in self._lives.values()):
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._news.wait()
        self._client.ring()
        await asyncio.sleep(_TICK_S / 4)

    def _keeps_us(self, life: Life) -> bool:
        """Whether it still runs, or has something to send to a market that is there."""
        return life.is_running() or (self._client.away_s == 0 and not life.record.is_settled)

    async def _ask_owner(self) -> None:
        rules = self._config.owner
        elapsed = time.monotonic() - self._load_at
        if rules.busy_share is not None and elapsed >= _LOAD_S:
            self._load_at = time.monotonic()
            keepers = [life.seen.keeper_pid for life in self._lives.values() if life.seen]
            load = await asyncio.to_thread(self._foreign.read, keepers)
            self._mood = owner.follow(self._mood, load, elapsed, rules)
        why = owner.why_busy(
            rules,
            datetime.now().astimezone(),
            self._mood,
            drain_asked=self._state.drain.exists(),
        )
        if self._leaving.is_set():
            why = _GOODBYE
        if why != self._owner_why:
            log.info("the owner %s", f"needs the machine: {why}" if why else "lets it again")
            self._owner_why = why
            self._client.ring()

    def _leave_alone(self) -> None:
        """Cut off for longer than anybody pays for: what runs saves its work and ends."""
        for life in self._lives.values():
            if not life.record.is_gone and life.record.drain is None:
                grace_s = life.spec.grace_s if life.spec else 0.0
                life.ask_to_leave(Drain(why=_AWAY, grace_s=grace_s))

    def _is_in_use(self, made: Path) -> bool:
        """Whether a job that this node has runs in it, or may."""
        orders = self._state.assignments.glob(f"*/{files.ORDER}")
        return any(str(made) in path.read_text(errors="replace") for path in orders)

    def _is_idle(self) -> bool:
        return not self._lives

    def _taken(self, by_others_than: UUID) -> Collection[str]:
        return {
            device
            for id, life in self._lives.items()
            if id != by_others_than
            for device in life.devices()
        }

    def _changed(self) -> None:
        self._news.set()
        self._reconcile()
        self._client.ring()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _bury(folder: Path) -> None:
    """Removes what can't be gone on with, its job first."""
    with contextlib.suppress(files.OrderError):
        keeper.kill(folder)
    outputs.clean(folder)
