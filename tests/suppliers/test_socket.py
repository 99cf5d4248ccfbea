"""The agents' socket, over real TCP: who may speak, what is refused, and what a refusal harms."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from uuid import uuid4

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.db import connection
from django.utils import timezone
from websockets.exceptions import ConnectionClosed

from agent import protocol
from agent.protocol import VERSION, Challenge, Desired, Usage, Welcome
from marketplace import telemetry
from suppliers import services
from suppliers.models import Pulse
from tests.suppliers.agents import dial, fresh, session_is, until
from tests.suppliers.machine import BOOT, Machine, cpu_device, heartbeat, inventory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def now() -> datetime:
    """These tests share a clock with a running server."""
    return timezone.now()


async def test_a_node_is_challenged_welcomed_and_told_what_to_run(host, ready):
    node, machine = ready
    async with dial(host, machine) as peer:
        challenge = await peer.hear()
        assert isinstance(challenge, Challenge)
        assert (challenge.version, challenge.server) == (VERSION, services.server_name())
        await peer.say(machine.hello(challenge.nonce, server=challenge.server))
        welcome = await peer.hear()
        assert isinstance(welcome, Welcome)
        assert welcome.interval_s == django_settings.POLICY.heartbeat_s
        assert await peer.hear() == Desired(assignments=[])
        now = await fresh(node)
        assert now.session is not None
        assert now.boot_id == BOOT
        await peer.acked(0)
        await peer.acked(1)
    await until(lambda: session_is(node, None), what="the session ends with its socket")


async def test_heartbeats_are_written_together_and_the_process_has_a_pulse(host, ready):
    node, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        at = (await fresh(node)).last_seen_at
        await peer.acked(0)

        async def seen() -> bool:
            return (await fresh(node)).last_seen_at > at

        await until(seen, what="last-seen is flushed")
    pulse = await Pulse.objects.aget()
    assert pulse.gapless_since <= pulse.at
    first = pulse.at

    async def beats() -> bool:
        return (await Pulse.objects.aget()).at > first

    await until(beats, what="the pulse goes on without any node")
    assert (await Pulse.objects.aget()).gapless_since == pulse.gapless_since


@pytest.mark.parametrize(
    ("bend", "code", "final"),
    [
        (lambda m, n, s: m.hello(n, server=s, version=VERSION + 1), "version", True),
        (lambda m, n, s: m.hello("0" * 64, server=s), "replayed", False),
        (lambda m, n, s: m.hello(n, server="evil.example"), "wrong_server", True),
        (lambda m, n, s: _signed_by_another(m, n, s), "unauthenticated", True),
        (lambda m, n, s: _of_another_node(m, n, s), "unauthenticated", True),
        (lambda m, n, s: _signed_for_another_boot(m, n, s), "unauthenticated", True),
        (lambda m, n, s: heartbeat(0), "out_of_order", True),
    ],
)
async def test_a_hello_that_is_not_the_nodes_own_is_refused(host, ready, bend, code, final):
    node, machine = ready
    async with dial(host, machine) as peer:
        challenge = await peer.hear()
        await peer.say(bend(machine, challenge.nonce, challenge.server))
        refused = await peer.refusal()
        assert (refused.code, refused.final) == (code, final)
        assert refused.message
    assert (await fresh(node)).session is None


def _signed_by_another(machine: Machine, nonce: str, server: str) -> protocol.Hello:
    return Machine(node=machine.node, inventory=machine.inventory).hello(nonce, server=server)


def _of_another_node(machine: Machine, nonce: str, server: str) -> protocol.Hello:
    return Machine(key=machine.key, node=uuid4(), inventory=machine.inventory).hello(
        nonce, server=server
    )


def _signed_for_another_boot(machine: Machine, nonce: str, server: str) -> protocol.Hello:
    hello = machine.hello(nonce, server=server)
    other = machine.hello(nonce, server=server, boot_id="another")
    return protocol.Hello(
        **{name: getattr(hello, name) for name in hello.__struct_fields__}
        | {"signature": other.signature}
    )


async def test_a_hello_overheard_on_one_socket_opens_no_other(host, ready):
    _, machine = ready
    async with dial(host, machine) as peer:
        challenge = await peer.hear()
        overheard = machine.hello(challenge.nonce, server=challenge.server)
        await peer.say(overheard)
        assert isinstance(await peer.hear(), Welcome)
    async with dial(host, machine) as thief:
        await thief.hear()
        await thief.say(overheard)
        assert (await thief.refusal()).code == "replayed"


async def test_hello_is_said_once(host, ready):
    _, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        await peer.say(machine.hello("0" * 64, server=services.server_name()))
        assert (await peer.refusal()).code == "out_of_order"


BROKEN: dict[str, Callable[[], str | bytes]] = {
    "not JSON": lambda: "{",
    "nothing": lambda: "",
    "another language": lambda: b"\xff\xfe\x00",
    "an unknown type": lambda: '{"type": "shutdown"}',
    "the market's own word": lambda: '{"type": "ack", "seq": 1}',
    "an unknown field": lambda: json.dumps(
        {**json.loads(protocol.encode(heartbeat(0))), "root": True}
    ),
    "a missing field": lambda: '{"type": "heartbeat", "seq": 0}',
    "a negative number": lambda: protocol.encode(heartbeat(0)).replace(b'"seq":0', b'"seq":-1'),
    "a number past 64 bits": lambda: protocol.encode(heartbeat(0)).replace(
        b'"seq":0', b'"seq":99999999999999999999'
    ),
    "U+0000, which PostgreSQL can't keep": lambda: protocol.encode(
        heartbeat(0, owner_busy=True, owner_why="a\0b")
    ),
    "more than 64 KiB": lambda: protocol.encode(heartbeat(0)) + b" " * 70_000,
    "brackets without end": lambda: "[" * 60_000,
}


@pytest.mark.parametrize("made", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_message_closes_its_socket_and_harms_nothing(host, ready, made):
    node, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        before = await fresh(node)
        await peer.wire.send(made())
        refused = await peer.refusal()
        assert refused.code == "malformed"
        assert "protocol" in refused.message
    after = await fresh(node)
    assert (after.state, after.boot_id, after.swaps) == (before.state, before.boot_id, [])
    async with dial(host, machine) as peer:
        await peer.greet()
        await peer.acked(0)


async def test_what_the_database_cannot_keep_is_refused_and_not_waited_for(
    host, ready, monkeypatch
):
    _, machine = ready

    def too_large(*_: object, **__: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 99999999999::int")

    monkeypatch.setattr("suppliers.dialogue.note_owner", too_large)
    async with dial(host, machine) as peer:
        await peer.greet()
        await peer.say(heartbeat(0, owner_busy=True, owner_why="a game"))
        assert (await peer.refusal()).code == "malformed"


@pytest.mark.parametrize("field", ["code", "signal"])
async def test_a_process_ends_with_a_code_that_processes_have(field):
    with pytest.raises(protocol.Malformed):
        protocol.decode(
            json.dumps({"code": 0, "signal": None, "why": "exited", field: 256}).encode(),
            protocol.Exit,
        )


async def test_an_escaped_backslash_before_u0000_is_an_ordinary_text(host, ready):
    _, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        await peer.acked(0, owner_busy=True, owner_why=r"prints \u0000 in a log")


async def test_heartbeats_rise_or_are_refused(host, ready):
    _, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        await peer.acked(5)
        await peer.say(heartbeat(5))
        assert (await peer.refusal()).code == "replayed"


async def test_a_boot_clock_that_runs_backwards_is_refused(host, ready):
    _, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        await peer.acked(0, up_ms=5000)
        await peer.say(heartbeat(1, up_ms=4000))
        assert (await peer.refusal()).code == "replayed"


async def test_another_boot_than_in_hello_must_say_hello(host, ready):
    _, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        await peer.say(heartbeat(0, boot_id="another"))
        assert (await peer.refusal()).code == "rebooted"


async def test_a_forged_usage_claim_is_refused(host, ready):
    _, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        await peer.say(Usage(claim=b"{}", signature=b"\0" * 64))
        assert (await peer.refusal()).code == "invalid"


async def test_a_retired_node_is_sent_away_at_once_and_for_good(host, ready, owner, now):
    node, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        await sync_to_async(services.retire)(node, reason="", by=owner, now=now)
        await sync_to_async(telemetry.node_changed)(node.pk)
        refused = await peer.refusal()
        assert (refused.code, refused.final) == ("retired", True)
    async with dial(host, machine) as peer:
        challenge = await peer.hear()
        await peer.say(machine.hello(challenge.nonce, server=challenge.server))
        assert (await peer.refusal()).code == "retired"


async def test_a_quarantined_node_may_connect_and_gets_nothing(host, ready, now):
    node, machine = ready
    await sync_to_async(services.quarantine)(node, reason="a test", now=now)
    async with dial(host, machine) as peer:
        assert await peer.greet() == Desired(assignments=[])
        await peer.acked(0)
        async with httpx.AsyncClient(base_url=f"http://{host}/agent/v1") as http:
            answer = await http.get(
                f"/assignments/{uuid4()}/spec", headers={"Authorization": f"Bearer {peer.bearer}"}
            )
        assert answer.status_code == 403


async def test_an_inventory_with_another_nodes_device_quarantines_in_hello(host, enrol, ready, now):
    node, machine = ready
    _, other = await sync_to_async(enrol)("rack-2")
    device = other.inventory.devices[0].uuid
    machine.inventory = inventory(cpu_device(device))
    async with dial(host, machine) as peer:
        assert await peer.greet() == Desired(assignments=[])
    assert (await fresh(node)).state == "quarantined"


async def test_the_owners_need_is_known_at_once(host, ready):
    node, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        await peer.acked(0, owner_busy=True, owner_why="somebody is at the keyboard")
        busy = await fresh(node)
        assert (busy.owner_busy, busy.owner_why) == (True, "somebody is at the keyboard")
        await peer.acked(1)
        assert not (await fresh(node)).owner_busy


async def test_a_flood_is_slowed_down_and_every_message_still_answered(host, ready, monkeypatch):
    monkeypatch.setattr("suppliers.consumers._MESSAGES", (200.0, 20.0))
    _, machine = ready
    async with dial(host, machine) as peer:
        await peer.greet()
        loop = asyncio.get_running_loop()
        began = loop.time()
        for seq in range(120):
            await peer.say(heartbeat(seq))
        for seq in range(120):
            assert (await peer.hear()).seq == seq
        # 120 messages less the burst of 20, at 200 a second: half a second at the very least.
        assert loop.time() - began >= 0.49


async def test_a_socket_that_says_nothing_is_closed(host, ready, monkeypatch):
    monkeypatch.setattr("suppliers.consumers._HELLO_S", 0.05)
    _, machine = ready
    async with dial(host, machine) as peer:
        assert (await peer.refusal()).code == "silent"


async def test_an_address_that_is_none_is_refused(host, ready):
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus

    with pytest.raises((InvalidStatus, ConnectionClosed)):
        async with connect(f"ws://{host}/agent/v1/other") as wire:
            await wire.recv()
