"""Tokens and keys: who may let a machine in, how often, and what the machine must show."""

import threading
from datetime import timedelta

import msgspec
import pytest
from django.db import connection

from agent.protocol import VERSION, fingerprint
from marketplace.core.errors import (
    Conflict,
    Expired,
    Forbidden,
    Invalid,
    InvalidTransition,
    Unauthenticated,
)
from marketplace.models import digest
from suppliers import enrolment, services, verification
from suppliers.inventory import apply_inventory
from suppliers.models import Benchmark, EnrolmentToken, Gpu, Node
from tests.suppliers.conftest import make_ready, prove
from tests.suppliers.machine import Machine, gpu_device, inventory


def test_a_token_lets_one_machine_in_to_wait_for_its_owner(site, token, now):
    machine = Machine(inventory=inventory(gpu_device("GPU-1"), gpu_device("GPU-2", 1)))
    reply = enrolment.enrol(machine.enrol_request(token), now=now)
    node = Node.objects.get(pk=reply.node)
    assert (node.site, node.state, node.name) == (site, "pending", "rack-1")
    assert reply.fingerprint == node.fingerprint == fingerprint(machine.public_key)
    assert reply.server == services.server_name()
    assert len(reply.market_key) == 32
    assert [gpu.gpu_class for gpu in node.gpus.order_by("index")] == ["h100-sxm", "h100-sxm"]


def test_only_the_digest_of_a_token_is_kept(token):
    row = EnrolmentToken.objects.get()
    assert bytes(row.digest) == digest(token)
    assert token not in str(row.__dict__)


def test_a_machine_without_a_gpu_is_listed_as_the_processor_that_it_is(enrol):
    node, _ = enrol()
    assert node.gpus.get().gpu_class == "cpu-epyc-9654"
    assert node.gpus.get().watts > 0


def test_a_wrong_token_is_refused_with_a_word_on_what_to_do(site, now):
    with pytest.raises(Unauthenticated, match="no such enrolment token"):
        enrolment.enrol(Machine().enrol_request("gle_wrong"), now=now)


def test_an_expired_token_is_refused_and_says_so(token, now):
    later = now + timedelta(minutes=15)
    with pytest.raises(Expired, match="has expired"):
        enrolment.enrol(Machine().enrol_request(token), now=later)


def test_a_used_token_is_refused_and_says_so(token, now):
    enrolment.enrol(Machine().enrol_request(token), now=now)
    with pytest.raises(Expired, match="used up"):
        enrolment.enrol(Machine().enrol_request(token, name="rack-2"), now=now)


def test_a_token_for_a_cluster_counts_its_machines(site, owner, now):
    _, secret = enrolment.make_token(site, nodes=2, by=owner, now=now, lifetime=timedelta(days=3))
    later = now + timedelta(days=2)
    for name in ("rack-1", "rack-2"):
        enrolment.enrol(Machine().enrol_request(secret, name=name), now=later)
    with pytest.raises(Expired, match="used up"):
        enrolment.enrol(Machine().enrol_request(secret, name="rack-3"), now=later)


@pytest.mark.parametrize("nodes", [0, -1, 1001])
def test_a_token_is_for_a_sane_number_of_machines(site, owner, now, nodes):
    with pytest.raises(Invalid, match="1 to 1000"):
        enrolment.make_token(site, nodes=nodes, by=owner, now=now)


def test_a_token_does_not_live_for_ever(site, owner, now):
    with pytest.raises(Invalid, match="30 days"):
        enrolment.make_token(site, nodes=1, by=owner, now=now, lifetime=timedelta(days=31))


@pytest.mark.django_db(transaction=True)
def test_of_machines_racing_for_one_token_one_gets_in(token, now):
    start = threading.Barrier(4)
    outcomes: list[str] = []

    def race(number: int) -> None:
        request = Machine().enrol_request(token, name=f"rack-{number}")
        start.wait()
        try:
            enrolment.enrol(request, now=now)
            outcomes.append("in")
        except Expired:
            outcomes.append("out")
        finally:
            connection.close()

    racers = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(outcomes) == ["in", "out", "out", "out"]
    assert Node.objects.count() == 1


def test_a_key_that_the_caller_does_not_hold_is_refused(token, now):
    stolen, thief = Machine(), Machine()
    request = msgspec.structs.replace(thief.enrol_request(token), public_key=stolen.public_key)
    with pytest.raises(Unauthenticated, match="isn't signed"):
        enrolment.enrol(request, now=now)


def test_a_proof_of_possession_for_another_token_is_refused(token, now):
    request = msgspec.structs.replace(Machine().enrol_request("gle_other"), token=token)
    with pytest.raises(Unauthenticated, match="isn't signed"):
        enrolment.enrol(request, now=now)


def test_a_refused_machine_does_not_use_the_token_up(token, enrol, now):
    _, known = enrol("rack-0")
    with pytest.raises(Conflict):
        enrolment.enrol(known.enrol_request(token), now=now)
    enrolment.enrol(Machine().enrol_request(token), now=now)


def test_a_key_enrols_once(token, enrol, now):
    _, machine = enrol("rack-0")
    machine.inventory = inventory()
    with pytest.raises(Conflict, match="enrolled already"):
        enrolment.enrol(machine.enrol_request(token), now=now)


def test_a_name_is_given_once_in_a_site(token, enrol, now):
    enrol("rack-1")
    with pytest.raises(Conflict, match="another --name"):
        enrolment.enrol(Machine().enrol_request(token, name="rack-1"), now=now)


def test_a_device_is_listed_by_one_node_only(token, enrol, owner, now):
    node, machine = enrol("rack-1", Machine(inventory=inventory(gpu_device("GPU-1"))))
    make_ready(node, machine, by=owner, now=now)
    thief = Machine(inventory=inventory(gpu_device("GPU-9"), gpu_device("GPU-1", 1)))
    with pytest.raises(Conflict, match="GPU-1 is listed by another node"):
        enrolment.enrol(thief.enrol_request(token, name="rack-2"), now=now)
    assert Gpu.objects.get().node.name == "rack-1"


def test_a_node_that_proved_nothing_keeps_no_device_from_its_owner(token, enrol, now):
    squatter, claimed = enrol("rack-1", Machine(inventory=inventory(gpu_device("GPU-1"))))
    machine = Machine(inventory=inventory(gpu_device("GPU-1")))
    mine = enrolment.enrol(machine.enrol_request(token, name="rack-2"), now=now).node
    assert Gpu.objects.get().node_id == mine
    machine.node = mine
    assert prove(Node.objects.get(pk=mine), now=now) == ""
    assert not apply_inventory(squatter, claimed.inventory, now=now)
    assert Gpu.objects.get().node_id == mine


def test_a_new_key_does_not_go_on_with_the_old_ones_proof(enrol, owner, now):
    node, _ = enrol()
    verification.ask_proof(node, now=now)
    _, secret = enrolment.make_rekey_token(node, by=owner, now=now)
    enrolment.enrol(Machine(inventory=inventory()).enrol_request(secret), now=now)
    assert Benchmark.objects.get().verdict == "it has a new key"


def test_a_device_of_a_retired_node_may_enrol_anew(token, enrol, owner, now):
    old, _ = enrol("rack-1", Machine(inventory=inventory(gpu_device("GPU-1"))))
    services.retire(old, reason="", by=owner, now=now)
    machine = Machine(inventory=inventory(gpu_device("GPU-1")))
    reply = enrolment.enrol(machine.enrol_request(token), now=now)
    assert Gpu.objects.get().node_id == reply.node


@pytest.mark.parametrize(
    ("made", "words"),
    [({"rung": "none + rlimits"}, "without a sandbox"), ({"harmful": 2}, "2 of 32 attacks")],
)
def test_a_machine_whose_sandbox_does_not_hold_stays_out(token, now, settings, made, words):
    machine = Machine(inventory=inventory(**made))
    with pytest.raises(Forbidden, match=words):
        enrolment.enrol(machine.enrol_request(token), now=now)
    settings.ALLOW_UNSANDBOXED_NODES = True
    enrolment.enrol(machine.enrol_request(token), now=now)


def test_an_agent_of_another_version_is_told_what_to_install(token, now):
    with pytest.raises(Invalid, match=f"version {VERSION + 1}"):
        enrolment.enrol(Machine().enrol_request(token, version=VERSION + 1), now=now)


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_bytes": 2**60},
        {"cpu_cores": 10**6},
        {"hostname": "a\x00b"},
        {"cpu_model": "a\x1b[31mred"},
        {"devices": [gpu_device("GPU-1"), gpu_device("GPU-1", 1)]},
        {"devices": [gpu_device("G" * 100)]},
        {"devices": [gpu_device("GPU-1", 2**40)]},
    ],
)
def test_an_inventory_that_cannot_be_is_refused(token, now, changes):
    with pytest.raises(Invalid):
        enrolment.enrol(Machine(inventory=inventory(**changes)).enrol_request(token), now=now)


@pytest.mark.parametrize("name", ["\x07", " ", "x" * 61])
def test_a_node_needs_a_name_that_can_be_read(token, now, name):
    with pytest.raises(Invalid, match="name"):
        enrolment.enrol(Machine().enrol_request(token, name=name), now=now)


def test_a_new_key_takes_the_place_of_the_old_one_and_begins_anew(enrol, owner, now):
    node, old = enrol()
    make_ready(node, old, by=owner, now=now)
    now += timedelta(minutes=1)
    _, secret = enrolment.make_rekey_token(node, by=owner, now=now)
    new = Machine(inventory=old.inventory)
    reply = enrolment.enrol(new.enrol_request(secret, name="ignored"), now=now)
    node.refresh_from_db()
    assert reply.node == node.pk
    assert bytes(node.public_key) == new.public_key
    assert (node.state, node.confirmed_at, node.session) == ("quarantined", None, None)
    assert node.name == "rack-1"
    new.node, new.fingerprint = reply.node, reply.fingerprint
    make_ready(node, new, by=owner, now=now)


def test_a_retired_node_gets_no_new_key(enrol, owner, now):
    node, _ = enrol()
    services.retire(node, reason="", by=owner, now=now)
    with pytest.raises(InvalidTransition):
        enrolment.make_rekey_token(node, by=owner, now=now)
