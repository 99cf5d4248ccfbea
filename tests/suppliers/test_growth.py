"""A node is trusted for what it proved: less may come back, more must prove itself anew."""

import msgspec
import pytest

from suppliers import inventory as inventories
from suppliers import services, verification
from suppliers.models import Gpu, Node
from tests.suppliers.conftest import make_ready, prove
from tests.suppliers.machine import GIB, Machine, Prover, cpu_device, gpu_device, inventory

TWO = (gpu_device("GPU-1"), gpu_device("GPU-2", 1))
SLOW = msgspec.structs.replace(gpu_device("GPU-1"), name="Tesla T4", memory_bytes=16 * GIB)


def larger(device, factor):
    return msgspec.structs.replace(device, memory_bytes=int(device.memory_bytes * factor))


@pytest.mark.parametrize(
    ("proved", "claimed", "words"),
    [
        (inventory(TWO[0]), inventory(*TWO), "GPU-2 is new"),
        (inventory(cpu_device()), inventory(TWO[0]), "GPU-1 is new"),
        (inventory(SLOW), inventory(larger(TWO[0], 0.2)), "GPU-1 was a t4"),
        (inventory(SLOW), inventory(larger(SLOW, 1.01)), "less memory"),
        (inventory(cpu_device()), inventory(larger(cpu_device(), 1.1)), "less memory"),
        (inventory(*TWO), inventory(*TWO, nvlink=True), "no NVLink"),
    ],
)
def test_growth_costs_a_node_its_place_until_a_fresh_proof(
    enrol, owner, now, proved, claimed, words
):
    node, machine = enrol(machine=Machine(inventory=proved))
    make_ready(node, machine, by=owner, now=now)
    now += verification.PROOF_LIFE
    assert not inventories.apply_inventory(node, claimed, now=now)
    node.refresh_from_db()
    assert node.state == "quarantined"
    reason = node.story().last().reason
    assert "its hardware changed; a fresh proof is asked for" in reason
    assert words in reason
    # The key is the same: nobody need confirm it again.
    assert prove(node, now=now) == ""
    node.refresh_from_db()
    assert node.state == "ready"
    assert inventories.apply_inventory(node, claimed, now=now)


@pytest.mark.parametrize(
    "left",
    [
        inventory(TWO[1], nvlink=True),
        inventory(*TWO),
        inventory(larger(TWO[0], 0.5), TWO[1], nvlink=True),
        inventory(*TWO, nvlink=True, agent_version="0.2.0", disk_bytes=1),
    ],
)
def test_a_node_that_shrinks_stays_as_it_is(enrol, owner, now, left):
    node, machine = enrol(machine=Machine(inventory=inventory(*TWO, nvlink=True)))
    make_ready(node, machine, by=owner, now=now)
    assert inventories.apply_inventory(node, left, now=now)
    node.refresh_from_db()
    assert node.state == "ready"


def test_jitter_of_a_computers_memory_is_tolerated_and_does_not_add_up(enrol, owner, now):
    node, machine = enrol(machine=Machine(inventory=inventory(cpu_device())))
    make_ready(node, machine, by=owner, now=now)
    had = node.gpus.get().memory_bytes
    assert inventories.apply_inventory(node, inventory(larger(cpu_device(), 1.04)), now=now)
    assert node.gpus.get().memory_bytes == had
    assert not inventories.apply_inventory(node, inventory(larger(cpu_device(), 1.08)), now=now)


def test_a_drained_node_with_new_hardware_does_not_come_back_by_itself(enrol, owner, now):
    node, machine = enrol(machine=Machine(inventory=inventory(TWO[0])))
    make_ready(node, machine, by=owner, now=now)
    services.drain(node, by=owner, now=now)
    assert not inventories.apply_inventory(node, inventory(*TWO), now=now)
    node.refresh_from_db()
    assert (node.state, node.confirmed_at) == ("quarantined", None)


def test_growth_with_a_sandbox_lost_leaves_nothing_confirmed(enrol, owner, now):
    node, machine = enrol(machine=Machine(inventory=inventory(TWO[0])))
    make_ready(node, machine, by=owner, now=now)
    assert not inventories.apply_inventory(node, inventory(*TWO, rung="none"), now=now)
    node.refresh_from_db()
    assert node.confirmed_at is None


def test_a_proof_passed_before_the_owner_confirmed_is_worth_nothing_after_growth(enrol, owner, now):
    node, machine = enrol(machine=Machine(inventory=inventory(cpu_device())))
    assert prove(node, now=now) == ""
    assert not inventories.apply_inventory(
        node, inventory(TWO[0]), now=now + verification.PROOF_LIFE
    )
    verification.confirm_fingerprint(node, machine.fingerprint, by=owner, now=now)
    assert Node.objects.get().state == "quarantined"


@pytest.mark.parametrize(("committed", "judged"), [(False, None), (True, False)])
def test_a_proof_asked_of_a_processor_is_not_answered_by_a_gpu(node, now, committed, judged):
    prover = Prover(verification.ask_proof(node, now=now))
    if committed:
        verification.commit_proof(node, prover.task.id, prover.commit(), now=now)
    assert inventories.apply_inventory(node, inventory(TWO[0]), now=now)
    asked = node.benchmarks.get()
    assert (asked.passed, asked.finished_at) == (judged, now)
    assert "hardware changed" in asked.verdict
    fresh = verification.ask_proof(node, now=now)
    assert fresh.n > prover.task.n
    assert Gpu.objects.get(present=True).uuid == "GPU-1"
