"""Celery is a doorbell, not a mailbox: tasks carry no data, so losing one loses nothing.

Beat rings every bell on a timer; views and sockets ring early, after the commit, by `ring`. Those
rings are noted: however many there are before a bell is answered, they are answered once, and a bell
that rings while it is being answered is answered once more (`marketplace.locks`). `rung` tells such
a ring from a timer's.
"""

import logging
from typing import Any

import kombu.exceptions
from celery import Task
from celery.signals import celeryd_after_setup
from django.db import transaction
from django.utils import timezone

from buyers import checking, fetching
from marketplace import locks
from marketplace.locks import single_flight
from marketplace.payments import services as payments
from scheduler import archive, metering, proving, public, restores
from scheduler import watch as watching
from scheduler.celery import app

log = logging.getLogger(__name__)


def ring(bell: "Task[Any, Any]") -> None:
    """Rings once the current transaction has committed. A broker that is away is only logged."""
    transaction.on_commit(lambda: _send(bell), robust=True)


@app.task
def clear_market(*, rung: bool = False) -> None:
    """One round; what it wrote down is published next."""
    # Here, for the web processes import these bells and have no use for the compiled loops.
    from scheduler import clearing, growing

    def work() -> None:
        now = timezone.now()
        placed = clearing.clear_market(now=now, followed=clearing.FOLLOWED)
        growing.grow_market(clearing.FOLLOWED.standing, now=now)
        public.note_supply(clearing.FOLLOWED.standing, now=now)
        if placed:
            _send(publish_rounds)

    single_flight("clear_market", work, rung=rung)


@celeryd_after_setup.connect
def warm_up(instance: Any, **_: Any) -> None:
    """The worker of the rounds loads its compiled loops before it takes the first bell."""
    if "clearing" in instance.app.amqp.queues.consume_from:
        from scheduler import clearing

        clearing.warm_up()


@app.task
def settle(*, rung: bool = False) -> None:
    """Bills what has run since the last time, and tops up the escrows."""
    single_flight("settle", lambda: metering.settle(now=timezone.now()), rung=rung)


@app.task
def watch(*, rung: bool = False) -> None:
    """Looks for nodes that fell silent, starts that took too long, leases past their time."""
    single_flight("watch", lambda: watching.watch(now=timezone.now()), rung=rung)


@app.task
def judge_checkpoints(*, rung: bool = False) -> None:
    """Reads what a node could not go on from, and says who was wrong."""
    single_flight("judge_checkpoints", lambda: restores.judge(now=timezone.now()), rung=rung)


@app.task
def publish_rounds(*, rung: bool = False) -> None:
    """Makes the roots of new rounds, stores their files, releases what is due, forgets what is old."""

    def work() -> None:
        archive.publish()
        now = timezone.now()
        if archive.release(now=now):
            _send(check_rounds)
        archive.forget(now=now)

    single_flight("publish_rounds", work, rung=rung)


@app.task
def check_rounds(*, rung: bool = False) -> None:
    """Checks released rounds that somebody wants checked, one after the other."""

    def work() -> None:
        while proving.check(now=timezone.now()):
            pass

    single_flight("check_rounds", work, rung=rung)


@app.task
def sweep_payments(*, rung: bool = False) -> None:
    """Asks the card processor about payments whose webhook never came."""
    single_flight("sweep_payments", lambda: payments.settle_pending(now=timezone.now()), rung=rung)


@app.task
def fetch_bases(*, rung: bool = False) -> None:
    """Brings bases from their hubs. It may fly for hours: its queue is its own."""
    single_flight("fetch_bases", lambda: fetching.work(timezone.now), rung=rung)


@app.task
def check_datasets(*, rung: bool = False) -> None:
    """Looks through what was uploaded and is too large to be looked at while its buyer waits."""
    single_flight("check_datasets", lambda: checking.work(timezone.now), rung=rung)


def _send(bell: "Task[Any, Any]") -> None:
    name = bell.name.rpartition(".")[2]
    if not locks.ring(name):
        return
    try:
        bell.apply_async(kwargs={"rung": True})
    except (kombu.exceptions.OperationalError, OSError) as error:
        locks.answer(name)
        log.warning("the bell %s did not ring: %s", bell.name, error)
