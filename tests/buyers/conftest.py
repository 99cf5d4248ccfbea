"""A buyer with money and a job in every state of being looked at, and a stranger."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import pytest
import uvicorn
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.test import Client
from django.utils import timezone

from buyers import secrets
from buyers.hub_models import Fetch
from buyers.models import Artifact, Checkpoint, Dataset, Job, MetricPoint, Quote
from buyers.own_models import Secret
from marketplace import accounts
from marketplace.core.ids import uuid7
from marketplace.core.money import MICRO
from marketplace.models import Org, Scope
from scheduler.models import Lease
from tests import world
from tests.world import Agent


@pytest.fixture
def today() -> datetime:
    """The wall clock's now, for what views compare with their own."""
    return timezone.now()


@pytest.fixture
@transaction.atomic
def buyer(db: None, today: datetime) -> Org:
    return world.org("Acme Models", now=today, wallet=100 * MICRO)


@pytest.fixture
@transaction.atomic
def stranger(db: None, today: datetime) -> Org:
    return world.org("Elsewhere", now=today, wallet=100 * MICRO)


@pytest.fixture
def node(db: None, today: datetime) -> Agent:
    """A machine on offer at $2 an hour, net."""
    return world.agent(world.org("Lab", now=today), now=today, ask=2 * MICRO)


def client_of(org: Org) -> Client:
    """The browser of the org's member."""
    client = Client()
    client.force_login(org.members.get())
    return client


def key_of(org: Org, *scopes: str) -> str:
    """An API key's secret."""
    by = org.members.get()
    scopes = scopes or (Scope.BUY, Scope.MONEY)
    return accounts.create_key(org, name="k", scopes=scopes, by=by, now=timezone.now())[1]


@pytest.fixture
def member(buyer: Org) -> Client:
    return client_of(buyer)


@pytest.fixture
def api(buyer: Org) -> Client:
    """A program of the buyer's."""
    return Client(headers={"Authorization": f"Bearer {key_of(buyer)}"})


def folder(**facts: object) -> dict[str, object]:
    """The columns of a committed folder."""
    files = [{"path": "model.safetensors", "bytes": 10, "sha256": "0" * 64}]
    now = timezone.now()
    return {
        "id": uuid7(), "manifest": files, "sha256": "0" * 64, "bytes": 10, "prefix": "x/",
        "created_at": now, "committed_at": now, **facts,
    }  # fmt: skip


@dataclass
class Ran:
    """A job that is running, with one of everything that a job leaves behind."""

    job: Job
    lease: Lease
    checkpoint: Checkpoint
    artifact: Artifact
    dataset: Dataset
    quote: Quote
    secret: Secret
    fetch: Fetch


@pytest.fixture
@transaction.atomic
def ran(buyer: Org, node: Agent, today: datetime) -> Ran:
    dataset = Dataset.objects.create(
        **folder(
            org=buyer,
            name="pairs",
            version=1,
            rows=3,
            created_by="me",
            state="ready",
            kinds=["answers"],
            parts={"train": 3},
            preview={"train": [{"prompt": "2+2?", "completion": "It is 4."}]},
        )
    )
    job = world.job(buyer, now=today, name="Our model", dataset=dataset, total_steps=4, step=2)
    lease = world.lease(job, node, now=today)
    share = lease.assignments.get()
    node.says(world.status(share, "running", running_ms=1000, step=2), now=today)
    for step, values in enumerate(
        ({"heldout_loss": 4.5}, {"loss": 3.5}, {"loss": 2.5, "tokens_per_s": 310.0})
    ):
        MetricPoint.objects.create(job=job, epoch=lease.epoch, step=step, values=values, at=today)
    job.refresh_from_db()
    lease.refresh_from_db()
    return Ran(
        job=job,
        lease=lease,
        checkpoint=Checkpoint.objects.create(**folder(job=job, epoch=lease.epoch, step=2)),
        artifact=Artifact.objects.create(
            **folder(org=buyer, job=job, name="Our model", epoch=lease.epoch)
        ),
        dataset=dataset,
        fetch=Fetch.objects.create(
            org=buyer,
            hub="huggingface",
            repo="makers/tiny",
            revision="main",
            created_by="me",
            created_at=today,
            state="asked",
            state_since=today,
        ),
        quote=Quote.objects.create(
            org=buyer, request=asked(), options=[], created_at=today, expires_at=today
        ),
        secret=secrets.keep(
            buyer, name="HF_TOKEN", value="hf_of_the_buyer", by=buyer.members.first(), now=today
        ),
    )


def asked(**more: object) -> dict[str, object]:
    """A job's request, as it is kept with a quote."""
    from marketplace.core import specs

    return specs.parse({"recipe": "script", "budget": "5", **more}).as_json()


@pytest.fixture
def code(buyer: Org) -> Dataset:
    """A project of one file."""
    files = [{"path": "main.py", "bytes": 1, "sha256": "0" * 64}]
    return Dataset.objects.create(
        **folder(org=buyer, name="code", version=1, created_by="me", manifest=files)
    )


@pytest.fixture
def wanted(code: Dataset) -> dict[str, object]:
    """A job that fits any node."""
    return {
        "recipe": "script", "script": "code", "parameters": {"entry": "main.py"}, "budget": "5",
        "memory_gib": 2, "hours": 0.5, "limit": "3",
    }  # fmt: skip


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The web process on a free port; yields its address."""
    from marketplace.asgi import application

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def site(transactional_db: None, valkey: object) -> Iterator[str]:
    """The web process as it really runs, at its address."""
    with serving() as address:
        yield address
    # The thread in which a test's own asynchronous queries ran.
    asyncio.run(sync_to_async(connections.close_all)())
