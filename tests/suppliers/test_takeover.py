"""One key, one socket: takeovers, agents that share a key, and bearers that end with a socket."""

from datetime import datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from django.conf import settings as django_settings
from django.utils import timezone

from agent import protocol
from marketplace.core.errors import Unauthenticated
from suppliers import sessions
from suppliers.models import Node
from tests.suppliers.agents import dial, fresh, session_is, until
from tests.suppliers.machine import heartbeat

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def now() -> datetime:
    """These tests share a clock with a running server."""
    return timezone.now()


async def test_a_second_socket_closes_the_first(host, ready):
    node, machine = ready
    async with dial(host, machine) as first, dial(host, machine) as second:
        await first.greet()
        await second.greet()
        refused = await first.refusal()
        assert (refused.code, refused.final) == ("taken_over", False)
        await second.acked(0)
        now = await fresh(node)
        assert now.session is not None
        assert len(now.swaps) == 1
        assert now.state == "ready"


async def test_two_agents_that_take_turns_with_one_key_are_quarantined(host, ready):
    node, machine = ready

    async def quarantined() -> bool:
        return (await fresh(node)).state == "quarantined"

    async with dial(host, machine) as a, dial(host, machine) as b:
        await a.greet()
        await b.greet()
        assert (await a.refusal()).code == "taken_over"
        async with dial(host, machine) as a2, dial(host, machine) as b2:
            await a2.greet()
            assert (await b.refusal()).code == "taken_over"
            await b2.greet()
            assert (await a2.refusal()).code == "taken_over"
            await until(quarantined, what="three swaps quarantine")
            story = [change async for change in node.story()]
            assert "take turns" in story[-1].reason
            await b2.acked(0)


async def test_an_agent_that_comes_back_after_its_socket_broke_is_no_swap(host, ready):
    node, machine = ready
    for _ in range(4):
        async with dial(host, machine) as peer:
            await peer.greet()
            await peer.acked(0)
            peer.wire.transport.abort()
        await until(lambda: session_is(node, None), what="the broken socket is noticed")
    assert (await fresh(node)).swaps == []


async def test_a_socket_long_silent_is_taken_over_without_a_mark(host, ready, settings):
    settings.POLICY = django_settings.POLICY.overridden({"heartbeat_s": "0"})
    node, machine = ready
    async with dial(host, machine) as first, dial(host, machine) as second:
        await first.greet()
        await second.greet()
        assert (await first.refusal()).code == "taken_over"
    assert (await fresh(node)).swaps == []


async def test_a_takeover_whose_doorbell_was_lost_is_found_at_the_next_flush(host, ready):
    node, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        await Node.objects.filter(pk=node.pk).aupdate(session=uuid4())
        await peer.say(heartbeat(0))
        assert (await peer.refusal()).code == "taken_over"


async def test_a_node_given_up_must_say_hello_again(host, ready):
    node, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        await Node.objects.filter(pk=node.pk).aupdate(lost_at=timezone.now())
        await peer.say(heartbeat(0))
        assert (await peer.refusal()).code == "lost"
    async with dial(host, machine) as peer:
        await peer.greet()
    assert (await fresh(node)).lost_at is None


async def test_a_bearer_ends_with_its_socket(host, ready):
    node, machine = ready
    async with (
        dial(host, machine) as peer,
        httpx.AsyncClient(base_url=f"http://{host}/agent/v1") as http,
    ):
        await peer.greet()
        shown = {"Authorization": f"Bearer {peer.bearer}"}
        path = f"/assignments/{uuid4()}/spec"
        assert (await http.get(path, headers=shown)).status_code == 404
        await peer.wire.close()
        await until(lambda: session_is(node, None), what="the session ends with its socket")
        answer = await http.get(path, headers=shown)
        assert answer.status_code == 401
        assert protocol.decode(answer.content, protocol.Problem).code == "unauthenticated"


async def test_a_fresh_bearer_comes_before_the_old_one_ends(host, ready, settings):
    settings.POLICY = django_settings.POLICY.overridden({"bearer_s": "0"})
    _, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        answer = await peer.beat(0)
        assert answer.bearer


def test_a_bearer_that_is_forged_or_old_is_refused(ready, now, settings):
    node, _ = ready
    sessions.take_session(node, now=now)
    bearer = sessions.make_bearer(node.pk, node.session)
    assert sessions.node_of_bearer(bearer) == node
    with pytest.raises(Unauthenticated, match="one of ours"):
        sessions.node_of_bearer(bearer[:-1] + ("A" if bearer[-1] != "A" else "B"))
    settings.POLICY = django_settings.POLICY.overridden({"bearer_s": "-1"})
    with pytest.raises(Unauthenticated, match="run out"):
        sessions.node_of_bearer(bearer)


def test_swaps_long_ago_are_forgotten(node, now):
    for hours in (3, 2, 1):
        assert not sessions.note_swap(node.pk, now=now - timedelta(hours=hours))
    assert len(Node.objects.get(pk=node.pk).swaps) == 1
