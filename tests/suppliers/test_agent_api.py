"""What agents ask over HTTPS: every answer a struct of the protocol, every no a Problem."""

from datetime import datetime
from uuid import uuid4

import pytest
from django.test import Client
from django.utils import timezone

from agent import protocol
from agent.protocol import EnrolReply, Problem, ProofChallenge, ProofTask
from suppliers import services, sessions
from suppliers.agent_api import MAX_BODY
from suppliers.models import Node
from tests import world
from tests.suppliers.conftest import make_ready
from tests.suppliers.machine import Machine, Prover

ROOT = "/agent/v1"


@pytest.fixture
def now() -> datetime:
    """Bearers are stamped with the real time."""
    return timezone.now()


def bearer(node: Node, now: datetime) -> dict[str, str]:
    """The header that a connected node shows."""
    sessions.take_session(node, now=now)
    assert node.session
    return {"Authorization": f"Bearer {sessions.make_bearer(node.pk, node.session)}"}


def post(client: Client, path: str, body: object, **more):
    raw = body if isinstance(body, bytes) else protocol.encode(body)
    return client.post(f"{ROOT}{path}", raw, content_type="application/json", **more)


def problem(answer) -> Problem:
    return protocol.decode(answer.content, Problem)


def test_a_machine_enrols_proves_itself_and_is_ready(client, token, owner, now, valkey):
    machine = Machine()
    answer = post(client, "/enrol", machine.enrol_request(token))
    assert answer.status_code == 201
    reply = protocol.decode(answer.content, EnrolReply)
    node = Node.objects.get(pk=reply.node)
    shown = bearer(node, now)
    answer = client.get(f"{ROOT}/proof", headers=shown)
    prover = Prover(protocol.decode(answer.content, ProofTask))
    answer = post(client, f"/proof/{prover.task.id}/commit", prover.commit(), headers=shown)
    cells = protocol.decode(answer.content, ProofChallenge).cells
    answer = post(client, f"/proof/{prover.task.id}/open", prover.open(cells), headers=shown)
    assert (answer.status_code, answer.content) == (204, b"")
    assert problem(client.get(f"{ROOT}/proof", headers=shown)).message == "no proof is due"


def test_a_node_that_owes_no_proof_is_nothing_to_warn_of(client, ready, now, caplog):
    answer = client.get(f"{ROOT}/proof", headers=bearer(ready[0], now))
    assert (answer.status_code, problem(answer).code) == (404, "missing")
    assert "proof" not in caplog.text


def test_a_forged_proof_is_told_so(client, node, now):
    shown = bearer(node, now)
    prover = Prover(protocol.decode(client.get(f"{ROOT}/proof", headers=shown).content, ProofTask))
    for state in prover.states[1:]:
        state[:] = -state
    answer = post(client, f"/proof/{prover.task.id}/commit", prover.commit(), headers=shown)
    cells = protocol.decode(answer.content, ProofChallenge).cells
    answer = post(client, f"/proof/{prover.task.id}/open", prover.open(cells), headers=shown)
    assert (answer.status_code, problem(answer).code) == (409, "proof_failed")
    node.refresh_from_db()
    assert node.state == "quarantined"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid"),
        (b"[]", 400, "invalid"),
        (b'{"version": 1}', 400, "invalid"),
        (b"\xff", 400, "invalid"),
        (b" " * (MAX_BODY + 1), 413, "too_large"),
    ],
)
def test_a_body_that_is_none_is_refused(client, db, body, status, code):
    answer = post(client, "/enrol", body)
    assert (answer.status_code, problem(answer).code) == (status, code)


def test_a_wrong_token_is_a_problem_with_words(client, site):
    answer = post(client, "/enrol", Machine().enrol_request("gle_wrong"))
    assert answer.status_code == 401
    assert "no such enrolment token" in problem(answer).message


def test_another_method_is_refused(client, db):
    answer = client.get(f"{ROOT}/enrol")
    assert (answer.status_code, problem(answer).code) == (405, "method")


NODES_OWN = [
    ("GET", "/proof"),
    ("POST", "/proof/{id}/commit"),
    ("POST", "/proof/{id}/open"),
    ("GET", "/assignments/{id}/spec"),
    ("GET", "/assignments/{id}/inputs"),
    ("POST", "/assignments/{id}/uploads"),
    ("POST", "/assignments/{id}/commits"),
]


@pytest.mark.parametrize(("method", "path"), NODES_OWN)
@pytest.mark.parametrize("shown", ["", "Bearer ", "Bearer nonsense", "Basic abc"])
def test_no_bearer_no_answer(client, db, method, path, shown):
    answer = client.generic(
        method, ROOT + path.format(id=uuid4()), headers={"Authorization": shown}
    )
    assert (answer.status_code, problem(answer).code) == (401, "unauthenticated")


@pytest.mark.parametrize(("method", "path"), NODES_OWN[3:])
def test_a_node_that_is_not_trusted_sees_no_buyers_bytes(client, node, now, method, path):
    answer = client.generic(method, ROOT + path.format(id=uuid4()), headers=bearer(node, now))
    assert (answer.status_code, problem(answer).code) == (403, "forbidden")


UPLOAD = {"epoch": 1, "kind": "checkpoint", "step": 1}
FILE = {"path": "a", "bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "spec", {}),
        ("GET", "inputs", {}),
        ("POST", "uploads", {**UPLOAD, "files": [{**FILE, "parts": [{"bytes": 1, "sha256": "0" * 64}]}]}),
        ("POST", "commits", {**UPLOAD, "files": [FILE]}),
    ],
)  # fmt: skip
def test_another_nodes_assignment_looks_like_none(
    client, enrol, owner, now, valkey, method, path, body
):
    mine, machine = enrol()
    make_ready(mine, machine, by=owner, now=now)
    worker = world.agent(world.org(now=now), now=now)
    buyer = world.org(now=now, wallet=1_000_000_000)
    share = world.lease(world.job(buyer, now=now), worker, now=now).assignments.get()
    answers = [
        client.generic(
            method, f"{ROOT}/assignments/{pk}/{path}", protocol.encode(body),
            headers=bearer(mine, now),
        )
        for pk in (share.pk, uuid4())
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content
    if path == "spec":
        own = client.get(f"{ROOT}/assignments/{share.pk}/spec", headers=bearer(worker.node, now))
        assert own.content == bytes(share.spec)


def test_a_retired_nodes_bearer_opens_nothing(client, node, owner, now):
    shown = bearer(node, now)
    services.retire(node, reason="", by=owner, now=now)
    assert client.get(f"{ROOT}/proof", headers=shown).status_code == 401
