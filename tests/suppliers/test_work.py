"""A node with work: it is told at once, reports, samples, claims, and is paid receipts."""

import asyncio
import hashlib
from collections.abc import Iterator
from datetime import datetime

import httpx
import pytest
from asgiref.sync import sync_to_async
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.db import connection, transaction
from django.utils import timezone

from agent import protocol
from agent.protocol import (
    Ack,
    Desired,
    Device,
    LogChunk,
    Metric,
    Receipt,
    ReceiptBody,
    Samples,
)
from buyers.models import MetricPoint
from marketplace import telemetry
from scheduler.models import Assignment
from suppliers import services
from suppliers.enrolment import market_public_key
from suppliers.models import Pulse
from tests import world
from tests.suppliers.agents import Peer, dial, fresh, until
from tests.suppliers.machine import Machine, heartbeat, inventory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def now() -> datetime:
    """These tests share a clock with a running server."""
    return timezone.now()


@pytest.fixture
def worker(org, site, now) -> world.Agent:
    """A ready node with one GPU on offer."""
    return world.agent(org, now=now, site=site)


@pytest.fixture
def machine(worker) -> Machine:
    """The same node, as its machine."""
    devices = [
        Device(
            uuid=gpu.uuid, kind="gpu", index=gpu.index, name=gpu.name,
            memory_bytes=gpu.memory_bytes, watts=gpu.watts,
        )
        for gpu in worker.node.gpus.all()
    ]  # fmt: skip
    return Machine(key=worker.key, node=worker.node.pk, inventory=inventory(*devices))


@sync_to_async
@transaction.atomic
def place(worker: world.Agent) -> Assignment:
    """A job of somebody's on all of the node."""
    now = timezone.now()
    job = world.job(world.org(now=now, wallet=1_000_000_000), now=now)
    return world.lease(job, worker, now=now).assignments.select_related("lease").get()


async def told(peer: Peer) -> Desired:
    """The next `desired`; acks in between are passed over."""
    while not isinstance(message := await peer.hear(), Desired):
        assert isinstance(message, Ack), message
    return message


async def test_what_is_desired_is_pushed_at_once(host, worker, machine):
    async with dial(host, machine) as peer:
        assert (await peer.greet()).assignments == []
        share = await place(worker)
        wanted = (await told(peer)).assignments
        assert [(each.id, each.epoch) for each in wanted] == [(share.pk, share.lease.epoch)]
        async with httpx.AsyncClient(base_url=f"http://{host}/agent/v1") as http:
            shown = {"Authorization": f"Bearer {peer.bearer}"}
            spec = await http.get(f"/assignments/{share.pk}/spec", headers=shown)
        assert hashlib.sha256(spec.content).hexdigest() == wanted[0].spec


async def test_a_doorbell_that_was_lost_is_made_up_for(host, worker, machine, monkeypatch):
    monkeypatch.setattr("suppliers.listening._LOOK_EVERY", 1)
    monkeypatch.setattr(telemetry, "publish", lambda group, message: None)
    async with dial(host, machine) as peer:
        await peer.greet()
        share = await place(worker)
        assert [each.id for each in (await told(peer)).assignments] == [share.pk]


async def test_a_job_is_followed_from_its_start_to_its_end(host, worker, machine):
    async with dial(host, machine) as peer:
        await peer.greet()
        share = await place(worker)
        await told(peer)
        running = world.status(share, "running", running_ms=500, step=1)
        await peer.say(heartbeat(0, assignments=[running]))
        assert isinstance(await peer.hear(), Ack)
        now = await Assignment.objects.aget(pk=share.pk)
        assert (now.state, now.step, now.boot_id) == ("running", 1, "0f2b6a3e-boot")
        gone = world.status(
            share, "gone", running_ms=900, step=2, exit=world.exited(1), settled=True
        )
        await peer.say(heartbeat(1, assignments=[gone]))
        assert (await told(peer)).assignments == []
        assert isinstance(await peer.hear(), Ack)
        now = await Assignment.objects.aget(pk=share.pk)
        assert (now.state, now.exit_code) == ("gone", 1)


async def test_work_in_hello_goes_on_after_a_reconnect(host, worker, machine):
    share = await place(worker)
    running = world.status(share, "running", running_ms=500)
    async with dial(host, machine) as peer:
        desired = await peer.greet(assignments=(running,))
        assert [each.id for each in desired.assignments] == [share.pk]
    assert (await Assignment.objects.aget(pk=share.pk)).state == "running"


async def test_a_claim_is_answered_with_a_receipt_signed_by_the_market(host, worker, machine):
    async with dial(host, machine) as peer:
        await peer.greet()
        share = await place(worker)
        await told(peer)
        usage = await sync_to_async(worker.claim)(share, 60_000)
        await peer.say(usage)
        receipt = await peer.hear()
        assert isinstance(receipt, Receipt)
        Ed25519PublicKey.from_public_bytes(market_public_key()).verify(
            receipt.signature, protocol.receipt_bytes(machine.node, receipt.body)
        )
        body = protocol.decode(receipt.body, ReceiptBody)
        assert (body.assignment, body.claimed_ms) == (share.pk, 60_000)


async def test_curves_and_logs_are_kept_of_ones_own_jobs_only(
    host, worker, machine, org, site, now
):
    other = await sync_to_async(world.agent)(org, now=now, site=site)
    async with dial(host, machine) as peer:
        await peer.greet()
        mine, theirs = await place(worker), await place(other)
        await told(peer)
        await peer.say(
            Samples(
                metrics=[
                    Metric(assignment=each.pk, step=1, running_ms=1, values={"loss": 2.5})
                    for each in (mine, theirs)
                ],
                logs=[
                    LogChunk(assignment=each.pk, stream="stdout", offset=0, text="step 1\n")
                    for each in (mine, theirs)
                ],
            )
        )
        await peer.say(heartbeat(0))
        await peer.hear()
    points = [point async for point in MetricPoint.objects.all()]
    assert [(point.job_id, point.values) for point in points] == [
        (mine.lease.job_id, {"loss": 2.5})
    ]
    tail = sync_to_async(telemetry.log_tail)
    assert await tail(mine.lease.job_id, mine.lease.epoch) == "step 1\n"
    assert await tail(theirs.lease.job_id, theirs.lease.epoch) == ""


async def test_more_lines_than_anybody_reads_are_dropped(host, worker, machine, monkeypatch):
    monkeypatch.setattr("suppliers.consumers._LINES", (0.001, 2.0))
    async with dial(host, machine) as peer:
        await peer.greet()
        share = await place(worker)
        await told(peer)
        for step in range(5):
            metric = Metric(assignment=share.pk, step=step, running_ms=1, values={"loss": 1.0})
            await peer.say(Samples(metrics=[metric]))
        await peer.say(heartbeat(0))
        await peer.hear()
    assert await MetricPoint.objects.acount() == 2


async def test_a_node_quarantined_in_mid_job_is_told_to_run_nothing(host, worker, machine):
    async with dial(host, machine) as peer:
        await peer.greet()
        share = await place(worker)
        assert (await told(peer)).assignments
        node = await fresh(worker.node)
        await sync_to_async(services.quarantine)(node, reason="a test", now=timezone.now())
        await sync_to_async(telemetry.node_changed)(node.pk)
        assert (await told(peer)).assignments == []
        gone = world.status(share, "gone", exit=world.exited(None, "killed"))
        await peer.say(heartbeat(0, assignments=[gone]))
        assert isinstance(await peer.hear(), Ack)
    assert (await Assignment.objects.aget(pk=share.pk)).state == "gone"


async def test_an_owner_who_returns_has_what_runs_reclaimed(host, worker, machine):
    async with dial(host, machine) as peer:
        await peer.greet()
        share = await place(worker)
        await told(peer)
        running = world.status(share, "running", running_ms=500)
        await peer.say(heartbeat(0, assignments=[running], owner_busy=True, owner_why="a game"))
        drained = (await told(peer)).assignments[0].drain
        assert drained is not None
        assert (drained.why, drained.grace_s) == ("reclaimed", 60.0)


async def test_what_the_devices_do_is_there_to_see(host, worker, machine):
    sample = protocol.DeviceSample(
        uuid=machine.inventory.devices[0].uuid, utilisation=97.0, memory_bytes=1, watts=640.0
    )
    async with dial(host, machine) as peer:
        await peer.greet()
        await peer.acked(0, devices=[sample])
        look = sync_to_async(telemetry.samples)

        async def kept() -> bool:
            return bool(await look([machine.node]))

        await until(kept, what="samples are flushed")
        assert (await look([machine.node]))[machine.node][0]["watts"] == 640.0


@pytest.fixture
def reconnects(transactional_db: None) -> Iterator[None]:
    """For a test that cuts this thread's own connection too."""
    yield
    connection.close()


async def test_a_database_that_drops_its_connections_costs_no_socket(
    host, worker, machine, reconnects
):
    async with dial(host, machine) as peer:
        await peer.greet()
        share = await place(worker)
        await told(peer)
        running = world.status(share, "running", running_ms=500)
        await peer.acked(0, assignments=[running])
        await sync_to_async(_drop_connections)()
        # A heartbeat that met a dead connection goes unanswered; a later one is taken in.
        for seq in range(1, 20):
            await peer.say(heartbeat(seq, assignments=[running]))
        assert isinstance(await peer.hear(), Ack)
    pulse = await Pulse.objects.aget()

    async def beats() -> bool:
        return (await Pulse.objects.aget()).at > pulse.at

    await until(beats, what="the pulse goes on")


async def test_doorbells_ring_again_after_valkey_dropped_its_clients(
    host, worker, machine, monkeypatch
):
    monkeypatch.setattr("suppliers.listening._LOOK_EVERY", 10**9)
    async with dial(host, machine) as peer:
        await peer.greet()
        await sync_to_async(telemetry._redis().client_kill_filter)(_type="pubsub")
        share = await place(worker)
        news = asyncio.ensure_future(told(peer))

        async def rung() -> bool:
            await sync_to_async(telemetry.node_changed)(machine.node)
            return news.done()

        await until(rung, what="a doorbell comes through again")
        assert [each.id for each in (await news).assignments] == [share.pk]


def _drop_connections() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
