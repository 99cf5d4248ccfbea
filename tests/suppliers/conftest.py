"""Two orgs: one with a site, and a stranger who must see none of it."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connections

from marketplace import accounts
from marketplace.models import Org
from suppliers import enrolment, proof, services, verification
from suppliers.models import Node, Site
from suppliers.services import SiteFacts
from tests.suppliers.agents import serving
from tests.suppliers.machine import Machine, Prover


@pytest.fixture
def owner(db: None) -> User:
    return User.objects.create_user("owner", "owner@example.org", "a-long-password")


@pytest.fixture
def org(owner: User, now: datetime) -> Org:
    return accounts.create_org("Lab", owner=owner, now=now)


@pytest.fixture
def stranger(db: None, now: datetime) -> User:
    user = User.objects.create_user("stranger", "stranger@example.org", "a-long-password")
    accounts.create_org("Elsewhere", owner=user, now=now)
    return user


@pytest.fixture
def site(org: Org, now: datetime) -> Site:
    return services.create_site(org, SiteFacts(name="Cellar", region="eu-west"), now=now)


@pytest.fixture
def token(site: Site, owner: User, now: datetime) -> str:
    """The secret of a token for one node."""
    return enrolment.make_token(site, nodes=1, by=owner, now=now)[1]


Enrol = Callable[..., tuple[Node, Machine]]


@pytest.fixture
def enrol(site: Site, owner: User, now: datetime) -> Enrol:
    """Enrols a machine: enrol(name="rack-2", machine=…, now=…)."""

    def made(
        name: str = "rack-1", machine: Machine | None = None, now: datetime = now
    ) -> tuple[Node, Machine]:
        machine = machine or Machine()
        secret = enrolment.make_token(site, nodes=1, by=owner, now=now)[1]
        reply = enrolment.enrol(machine.enrol_request(secret, name=name), now=now)
        machine.node, machine.fingerprint = reply.node, reply.fingerprint
        return Node.objects.select_related("site").get(pk=reply.node), machine

    return made


@pytest.fixture
def node(enrol: Enrol) -> Node:
    return enrol()[0]


@pytest.fixture
def ready(enrol: Enrol, owner: User, now: datetime) -> tuple[Node, Machine]:
    """A node that may be let, and its machine."""
    node, machine = enrol()
    return make_ready(node, machine, by=owner, now=now), machine


@pytest.fixture
def host(transactional_db: None, valkey: object) -> Iterator[str]:
    """The agents' process, at host:port."""
    with serving() as address:
        yield address
    # The thread in which a test's own asynchronous queries ran.
    asyncio.run(sync_to_async(connections.close_all)())


@pytest.fixture(autouse=True)
def small_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proofs that take a millisecond; their mathematics is the same at any size."""
    monkeypatch.setattr(proof, "FOR_CPU", proof.Size(n=64, links=2, segments=3))
    monkeypatch.setattr(proof, "FOR_GPU", proof.Size(n=128, links=2, segments=3))


def prove(node: Node, *, now: datetime, spoil: Callable[[Prover], None] | None = None) -> str:
    """Goes through a proof as an agent would, a second later; returns what was wrong with it."""
    now += timedelta(seconds=1)
    prover = Prover(verification.ask_proof(node, now=now))
    if spoil is not None:
        spoil(prover)
    cells = verification.commit_proof(node, prover.task.id, prover.commit(), now=now).cells
    return verification.open_proof(node, prover.task.id, prover.open(cells), now=now)


def make_ready(node: Node, machine: Machine, *, by: User, now: datetime) -> Node:
    """Confirms and proves."""
    verification.confirm_fingerprint(node, machine.fingerprint, by=by, now=now)
    assert prove(node, now=now) == ""
    node.refresh_from_db()
    assert node.state == "ready"
    return node
