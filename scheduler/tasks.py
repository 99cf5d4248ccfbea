"""Celery is a doorbell, not a mailbox: tasks carry no data, so losing one loses nothing.

Beat rings every bell on a timer; views and sockets ring early, after the commit, by `ring`.
"""

import logging
from typing import Any

import kombu.exceptions
from celery import Task
from celery.signals import celeryd_after_setup
from django.db import transaction
from django.utils import timezone

from buyers import checking, fetching
from marketplace.locks import single_flight
from marketplace.payments import services as payments
from scheduler import metering, public, restores
from scheduler import watch as watching
from scheduler.celery import app

log = logging.getLogger(__name__)


def ring(bell: "Task[Any, Any]") -> None:
    """Rings once the current transaction has committed. A broker that is away is only logged."""
    transaction.on_commit(lambda: _send(bell), robust=True)


@app.task
def clear_market() -> None:
    """One round. Two bells rung at once clear once: what the second meant is in the next."""
    # Here, for the web processes import these bells and have no use for the compiled loops.
    from scheduler import clearing

    with single_flight("clear_market") as mine:
        if mine:
            now = timezone.now()
            clearing.clear_market(now=now, followed=clearing.FOLLOWED)
            public.note_supply(clearing.FOLLOWED.standing, now=now)


@celeryd_after_setup.connect
def warm_up(instance: Any, **_: Any) -> None:
    """The worker of the rounds loads its compiled loops before it takes the first bell."""
    if "clearing" in instance.app.amqp.queues.consume_from:
        from scheduler import clearing

        clearing.warm_up()


@app.task
def settle() -> None:
    """Bills what has run since the last time, and tops up the escrows."""
    with single_flight("settle") as mine:
        if mine:
            metering.settle(now=timezone.now())


@app.task
def watch() -> None:
    """Looks for nodes that fell silent, starts that took too long, leases past their time."""
    with single_flight("watch") as mine:
        if mine:
            watching.watch(now=timezone.now())


@app.task
def judge_checkpoints() -> None:
    """Reads what a node could not go on from, and says who was wrong."""
    with single_flight("judge_checkpoints") as mine:
        if mine:
            restores.judge(now=timezone.now())


@app.task
def sweep_payments() -> None:
    """Asks the card processor about payments whose webhook never came."""
    with single_flight("sweep_payments") as mine:
        if mine:
            payments.settle_pending(now=timezone.now())


@app.task
def fetch_bases() -> None:
    """Brings bases from their hubs. It may fly for hours: its queue is its own."""
    with single_flight("fetch_bases") as mine:
        if mine:
            fetching.work(timezone.now)


@app.task
def check_datasets() -> None:
    """Looks through what was uploaded and is too large to be looked at while its buyer waits."""
    with single_flight("check_datasets") as mine:
        if mine:
            checking.work(timezone.now)


def _send(bell: "Task[Any, Any]") -> None:
    try:
        bell.apply_async()
    except (kombu.exceptions.OperationalError, OSError) as error:
        log.warning("the bell %s did not ring: %s", bell.name, error)
