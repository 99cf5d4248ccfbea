"""Shells: asked for in a running job, fetched once by its own node, and told in its story."""

from datetime import timedelta

import pytest

from buyers.shells import typed_in
from marketplace.core.errors import Conflict, Missing
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
    for _ in range(2):
        shells.end(shell, typed="ls\nexit\0", now=now + timedelta(seconds=7))
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


def test_what_was_typed_is_told_from_the_windows_size():
    assert typed_in(b"d\0\3ls\nw\0\4\0\1\0\2d\0\1x") == "ls\nx"
    assert typed_in(b"d") == ""
