"""Bells: rung at once, while busy, by the dozen, and with a holder that is killed."""

import json
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from celery.contrib.testing.worker import start_worker
from django.db import connection, transaction

from marketplace import locks
from scheduler import tasks
from scheduler.celery import app

pytestmark = pytest.mark.django_db(transaction=True)
BELL = "a_bell"


class Work:
    """Counts its flights; each waits to be let go, but for those after the last `wait`."""

    def __init__(self, waits=0):
        self.flights, self.waits = 0, waits
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self):
        self.flights += 1
        self.begun.release()
        if self.flights <= self.waits:
            assert self.go_on.acquire(timeout=60)


@contextmanager
def flying(work, **how):
    """Another worker flies; it has begun."""
    done = []

    def fly():
        try:
            done.append(locks.single_flight(BELL, work, **how))
        finally:
            connection.close()

    thread = threading.Thread(target=fly)
    thread.start()
    assert work.begun.acquire(timeout=60)
    try:
        yield done
    finally:
        work.go_on.release(work.waits)
        thread.join()


def come(work):
    """A bell rings, and a worker comes for it. How often it flies."""
    locks.ring(BELL)
    return locks.single_flight(BELL, work, rung=True)


def test_two_bells_at_once_are_answered_once():
    work = Work()
    assert [locks.ring(BELL), locks.ring(BELL)] == [True, False]
    assert [locks.single_flight(BELL, work, rung=True) for _ in range(2)] == [1, 0]


@pytest.mark.parametrize("bells", [1, 10])
def test_what_rings_while_busy_is_answered_once_more_by_whoever_flies(bells):
    work = Work(waits=1)
    with flying(work) as done:
        assert [come(work) for _ in range(bells)] == [0] * bells
        assert work.flights == 1
    assert done == [2]
    assert locks.single_flight(BELL, work, rung=True) == 0


def test_a_bell_in_the_repeat_is_answered_by_another():
    work = Work(waits=2)
    with flying(work) as done:
        come(work)
        work.go_on.release()
        assert work.begun.acquire(timeout=60)
        come(work)
    assert done == [3]


def test_a_timer_flies_though_nothing_rang_and_goes_away_while_busy():
    work = Work(waits=1)
    with flying(work) as done:
        assert locks.single_flight(BELL, work) == 0
    assert done == [1]
    assert locks.single_flight(BELL, work) == 1


def test_work_that_fails_frees_its_lock_and_keeps_what_rang_meanwhile():
    def fail():
        locks.ring(BELL)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        locks.single_flight(BELL, fail)
    assert locks.single_flight(BELL, Work(), rung=True) == 1


def test_the_next_bell_flies_after_a_holder_that_was_killed():
    names = ("NAME", "USER", "PASSWORD", "HOST", "PORT")
    database = json.dumps({name: connection.settings_dict[name] for name in names})
    command = [sys.executable, "-m", "tests.flyer", database, BELL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "flying\n"
        assert come(Work()) == 0
        holder.kill()
    # PostgreSQL lets go when it sees that the connection is gone: this waits for that.
    with transaction.atomic():
        locks.hold(BELL)
    work = Work()
    assert locks.single_flight(BELL, work) == work.flights == 1
    assert come(work) == 1


def test_ten_bells_at_a_busy_worker_over_a_real_broker_are_answered_once_more(valkey):
    work, last = Work(waits=1), threading.Event()

    @app.task(name="tests.a_bell")
    def bell(*, rung=False):
        try:
            locks.single_flight(BELL, work, rung=rung)
        finally:
            connection.close()

    @app.task(name="tests.last")
    def after():
        last.set()

    try:
        with start_worker(app, pool="solo", perform_ping_check=False):
            tasks.ring(bell)
            assert work.begun.acquire(timeout=60)
            for _ in range(10):
                tasks.ring(bell)
            assert work.flights == 1
            work.go_on.release()
            after.apply_async()
            assert last.wait(60)
    finally:
        app.tasks.unregister("tests.a_bell")
        app.tasks.unregister("tests.last")
    assert work.flights == 2
