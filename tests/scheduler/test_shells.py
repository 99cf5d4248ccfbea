"""Shells: asked for in a running job, fetched once by its own node, and told in its story."""

import asyncio
from datetime import timedelta

import pytest
from asgiref.sync import sync_to_async

from buyers.shells import Frames
from marketplace import telemetry
from marketplace.core.errors import Conflict, Missing
from marketplace.core.ids import uuid7
from scheduler import assignments, shells
from scheduler.models import Shell
from tests import world

pytestmark = pytest.mark.django_db


@pytest.fixture
def running(buyer, node, now):
    job = world.job(buyer, now=now)
    share = world.lease(job, node, now=now).assignments.get()
    node.says(world.status(share, "running", running_ms=1), now=now)
    job.refresh_from_db()
    return job


def waiting(node):
    [wanted] = assignments.desired(node.node).assignments
    return wanted.shells


def test_a_nodes_agent_is_told_of_a_shell_until_it_has_come_for_it(running, buyer, node, now):
    shell = shells.open_shell(running, by=buyer.members.first(), now=now)
    assert waiting(node) == [shell.pk]
    stranger = world.agent(world.org("Other", now=now), now=now)
    with pytest.raises(Missing):
        shells.take(stranger.node, shell.pk, now=now)
    assert shells.take(node.node, shell.pk, now=now).pk == shell.pk
    assert waiting(node) == []
    with pytest.raises(Missing):
        shells.take(node.node, shell.pk, now=now)


def test_who_looked_when_for_how_long_and_what_was_typed_is_kept(running, buyer, node, now):
    by = buyer.members.first()
    shell = shells.open_shell(running, by=by, now=now)
    assert shells.keep(shell, typed="ls\nexit\0", now=now)
    for _ in range(2):
        shells.end(shell, now=now + timedelta(seconds=7))
    assert not shells.keep(shell, typed="ls\nexit\0", now=now)
    kept = Shell.objects.get()
    assert (kept.typed, kept.by) == ("ls\nexit␀", by.get_username())
    opened, ended = running.story().filter(event__in=("attach", "detach"))
    assert (opened.by, opened.source, opened.target) == (by.get_username(), "running", "running")
    assert "open for 7 s; 8 characters typed" in ended.reason


def test_a_shell_opens_in_a_running_job_only_and_not_without_end(buyer, running, now):
    by = buyer.members.first()
    with pytest.raises(Conflict, match="queued"):
        shells.open_shell(world.job(buyer, now=now), by=by, now=now)
    for _ in range(4):
        shells.open_shell(running, by=by, now=now)
    with pytest.raises(Conflict, match="at most 4"):
        shells.open_shell(running, by=by, now=now)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_what_was_typed_is_read_however_it_is_cut_and_nothing_unread_passes_on(size):
    sent = b"d\0\3ls\nw\0\4\0\1\0\2d\0\1\xc3d\0\1\xa9"
    told = sent + b"d\0\7hid"
    frames = Frames()
    passed = b"".join(frames.take(told[at : at + size]) for at in range(0, len(told), size))
    assert passed == sent
    assert (frames.typed, frames.received) == ("ls\né", len(told))


def test_shells_that_nobody_else_ends_are_ended(running, buyer, node, now):
    by = buyer.members.first()
    untaken, silent, kept = (shells.open_shell(running, by=by, now=now) for _ in range(3))
    for shell in (silent, kept):
        shells.take(node.node, shell.pk, now=now)
    later = now + timedelta(minutes=4)
    shells.sweep(now=now)
    assert Shell.objects.filter(ended_at=None).count() == 3
    shells.keep(kept, typed="ls", now=later)
    shells.sweep(now=later)
    assert set(Shell.objects.exclude(ended_at=None)) == {untaken, silent}
    share = running.leases.get().assignments.get()
    node.says(world.status(share, "gone", exit=world.exited(1), settled=True), now=later)
    shells.sweep(now=later)
    assert not Shell.objects.filter(ended_at=None).exists()
    assert running.story().filter(event="detach").count() == 3


@pytest.mark.usefixtures("valkey")
def test_a_side_that_passes_nothing_on_is_told_no_more_than_a_window(monkeypatch):
    chunk = bytes(16 * 1024)

    async def fill():
        shell = uuid7()
        node, buyer = (telemetry.shell_exchange(shell, node=each) for each in (True, False))
        await node.open()
        await buyer.open()
        hearing = asyncio.create_task(node.hear())
        heard = 0
        for _ in range(200):  # more than a window, passed on as it is said
            await node.say(chunk)
            heard += len(await buyer.hear() or b"")
        assert heard == 200 * len(chunk)
        monkeypatch.setattr(telemetry, "_PATIENCE_S", 0.1)
        for _ in range(200):
            await node.say(chunk)
        hearing.cancel()

    with pytest.raises(telemetry.CutOff, match="too slow"):
        asyncio.run(fill())


@pytest.mark.usefixtures("valkey")
def test_both_sides_hear_that_a_shell_is_over():
    async def heard():
        sides = [telemetry.shell_exchange(shell, node=each) for each in (True, False)]
        for side in sides:
            await side.open()
        await sync_to_async(telemetry.shell_over)(shell)
        return [await side.hear() for side in sides]

    shell = uuid7()
    assert asyncio.run(heard()) == [None, None]
