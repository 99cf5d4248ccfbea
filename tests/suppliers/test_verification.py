"""The way into the market: an owner who vouches for the key, hardware that proves itself."""

import threading
from datetime import timedelta

import msgspec
import pytest
from django.db import connection

from marketplace.core.errors import Conflict, Expired, Invalid, InvalidTransition, Missing
from suppliers import services, verification
from suppliers.models import Benchmark, Node
from tests.suppliers.conftest import make_ready, prove
from tests.suppliers.machine import Machine, Prover, gpu_device, inventory

SECOND = timedelta(seconds=1)


def spoil(prover: Prover) -> None:
    for state in prover.states[1:]:
        state[:] = -state


def test_confirmation_and_proof_make_a_node_ready_in_either_order(enrol, owner, now):
    first, machine = enrol("rack-1")
    verification.confirm_fingerprint(first, machine.fingerprint, by=owner, now=now)
    assert first.state == "pending"
    assert prove(first, now=now) == ""
    second, machine = enrol("rack-2")
    assert prove(second, now=now) == ""
    second.refresh_from_db()
    assert second.state == "pending"
    verification.confirm_fingerprint(second, machine.fingerprint, by=owner, now=now + SECOND)
    assert second.state == "ready"
    assert set(Node.objects.values_list("state", flat=True)) == {"ready"}
    assert [change.event for change in second.story()] == ["verify"]


@pytest.mark.django_db(transaction=True)
def test_confirmation_and_proof_at_the_same_moment_miss_each_other_never(enrol, owner, now):
    for number in range(5):
        node, machine = enrol(f"rack-{number}")
        prover = Prover(verification.ask_proof(node, now=now + SECOND))
        cells = verification.commit_proof(
            node, prover.task.id, prover.commit(), now=now + SECOND
        ).cells
        start = threading.Barrier(2)

        def confirm(node=node, machine=machine, start=start):
            start.wait()
            verification.confirm_fingerprint(node, machine.fingerprint, by=owner, now=now)
            connection.close()

        other = threading.Thread(target=confirm)
        other.start()
        start.wait()
        verification.open_proof(
            Node.objects.get(pk=node.pk), prover.task.id, prover.open(cells), now=now + SECOND
        )
        other.join()
        assert Node.objects.get(pk=node.pk).state == "ready"


def test_a_fingerprint_may_be_typed_as_people_type(enrol, owner, now):
    node, machine = enrol()
    typed = f"  {machine.fingerprint.upper().replace(':', ' ')} "
    assert verification.confirm_fingerprint(node, typed, by=owner, now=now).confirmed_at == now


def test_another_machines_fingerprint_is_refused_with_what_it_may_mean(enrol, owner, now):
    node, _ = enrol("rack-1")
    _, other = enrol("rack-2")
    with pytest.raises(Invalid, match="somebody else has used your token"):
        verification.confirm_fingerprint(node, other.fingerprint, by=owner, now=now)
    node.refresh_from_db()
    assert node.confirmed_at is None


def test_a_retired_node_is_not_confirmed_back_to_life(enrol, owner, now):
    node, machine = enrol()
    services.retire(node, reason="", by=owner, now=now)
    with pytest.raises(InvalidTransition):
        verification.confirm_fingerprint(node, machine.fingerprint, by=owner, now=now)


def test_an_unanswered_proof_is_asked_again_as_it_was(node, now):
    first = verification.ask_proof(node, now=now + SECOND)
    assert verification.ask_proof(node, now=now + 2 * SECOND) == first
    later = now + SECOND + verification.PROOF_LIFE
    assert verification.ask_proof(node, now=later).seed != first.seed
    node.refresh_from_db()
    assert node.state == "pending"


def test_a_proof_is_due_only_of_those_who_must_prove_something(enrol, owner, now):
    node, machine = enrol()
    make_ready(node, machine, by=owner, now=now)
    with pytest.raises(Missing, match="no proof is due"):
        verification.ask_proof(node, now=now + 5 * SECOND)


def test_a_gpu_is_asked_for_more_than_a_processor(enrol, now):
    processor, _ = enrol("rack-1")
    gpu, _ = enrol("rack-2", Machine(inventory=inventory(gpu_device("GPU-1"))))
    small = verification.ask_proof(processor, now=now + SECOND)
    large = verification.ask_proof(gpu, now=now + SECOND)
    assert large.n > small.n


def test_which_rows_to_open_is_told_only_after_the_commit_and_never_again_differently(node, now):
    now += SECOND
    prover = Prover(verification.ask_proof(node, now=now))
    assert Benchmark.objects.get().cells == []
    commit = prover.commit()
    first = verification.commit_proof(node, prover.task.id, commit, now=now)
    assert verification.commit_proof(node, prover.task.id, commit, now=now) == first
    other = msgspec.structs.replace(commit, roots=commit.roots[::-1])
    with pytest.raises(Conflict, match="can't be changed"):
        verification.commit_proof(node, prover.task.id, other, now=now)


def test_a_failed_proof_quarantines_with_the_reason_in_the_story(node, now):
    assert "segment" in prove(node, now=now, spoil=spoil)
    node.refresh_from_db()
    assert node.state == "quarantined"
    assert "proof of hardware failed: row" in node.story().get().reason
    assert Benchmark.objects.get().passed is False


def test_a_proof_is_judged_once(node, now):
    now += SECOND
    prover = Prover(verification.ask_proof(node, now=now))
    cells = verification.commit_proof(node, prover.task.id, prover.commit(), now=now).cells
    opening = prover.open(cells)
    assert verification.open_proof(node, prover.task.id, opening, now=now) == ""
    with pytest.raises(Conflict, match="judged already"):
        verification.open_proof(node, prover.task.id, opening, now=now)


def test_seeing_the_rows_and_falling_silent_counts_as_failed(node, now):
    now += SECOND
    prover = Prover(verification.ask_proof(node, now=now))
    cells = verification.commit_proof(node, prover.task.id, prover.commit(), now=now).cells
    later = now + verification.PROOF_LIFE
    with pytest.raises(Expired):
        verification.open_proof(node, prover.task.id, prover.open(cells), now=later)
    with pytest.raises(Missing, match="confirmed"):
        verification.ask_proof(node, now=later)
    node.refresh_from_db()
    assert node.state == "quarantined"
    assert "didn't open it" in node.story().get().reason


def test_a_proof_must_be_committed_before_it_is_opened(node, now):
    now += SECOND
    prover = Prover(verification.ask_proof(node, now=now))
    with pytest.raises(Conflict, match="commit"):
        verification.open_proof(node, prover.task.id, prover.open([(0, 0)]), now=now)


def test_a_proof_is_answered_by_its_own_node(enrol, now):
    node, _ = enrol("rack-1")
    other, _ = enrol("rack-2")
    now += SECOND
    prover = Prover(verification.ask_proof(node, now=now))
    with pytest.raises(Missing):
        verification.commit_proof(other, prover.task.id, prover.commit(), now=now)


@pytest.mark.parametrize(
    "changes",
    [
        {"roots": ["0" * 64]},
        {"tflops": float("nan")},
        {"disk_mb_s": -1.0},
        {"memory_gb_s": float("inf")},
        {"details": {"a\x00": 1.0}},
        {"details": {str(n): 0.0 for n in range(33)}},
    ],
)
def test_a_commit_that_makes_no_sense_is_refused(node, now, changes):
    now += SECOND
    prover = Prover(verification.ask_proof(node, now=now))
    bent = msgspec.structs.replace(prover.commit(), **changes)
    with pytest.raises(Invalid):
        verification.commit_proof(node, prover.task.id, bent, now=now)


def test_the_way_out_of_quarantine_is_the_way_in(enrol, owner, now):
    node, machine = enrol()
    make_ready(node, machine, by=owner, now=now)
    now += timedelta(minutes=1)
    assert services.quarantine(node, reason="a device of another node", now=now)
    with pytest.raises(Missing, match="confirmed"):
        verification.ask_proof(node, now=now)
    make_ready(node, machine, by=owner, now=now)
    assert [change.event for change in node.story()] == ["verify", "quarantine", "verify"]


def test_a_forger_runs_out_of_tries_for_the_day(enrol, owner, now):
    node, machine = enrol()
    for _ in range(3):
        assert prove(node, now=now, spoil=spoil)
        now += timedelta(minutes=1)
        verification.confirm_fingerprint(node, machine.fingerprint, by=owner, now=now)
    with pytest.raises(Conflict, match="try tomorrow"):
        verification.ask_proof(node, now=now + SECOND)
    verification.ask_proof(node, now=now + timedelta(days=1))


@pytest.mark.parametrize(("measured", "kept"), [(940.0, 940.0), (0.0, 5.0), (1e8, 100_000.0)])
def test_a_measured_link_to_storage_is_kept_for_planning_if_it_can_be(node, now, measured, kept):
    now += SECOND
    prover = Prover(verification.ask_proof(node, now=now))
    commit = msgspec.structs.replace(prover.commit(), details={"storage_mbps": measured})
    cells = verification.commit_proof(node, prover.task.id, commit, now=now).cells
    verification.open_proof(node, prover.task.id, prover.open(cells), now=now)
    node.refresh_from_db()
    assert node.bandwidth_mbps == kept


def test_a_node_is_believed_no_faster_than_its_class_can_be(enrol, now):
    processor, _ = enrol("rack-1")
    gpu, _ = enrol("rack-2", Machine(inventory=inventory(gpu_device("GPU-1"))))
    for node, claimed, kept in (
        (processor, 0.05, 0.05),
        (processor, 1e6, 0.22),
        (gpu, 1e6, 1087.9),
    ):
        now += timedelta(minutes=1)
        prover = Prover(verification.ask_proof(node, now=now))
        commit = msgspec.structs.replace(prover.commit(), tflops=claimed)
        verification.commit_proof(node, prover.task.id, commit, now=now)
        said = Benchmark.objects.get(pk=prover.task.id)
        assert said.tflops == pytest.approx(kept)
        said.delete()


def test_a_true_proof_that_took_a_processor_to_compute_proves_no_gpu(enrol, now):
    node, _ = enrol("rack-1", Machine(inventory=inventory(gpu_device("GPU-1"))))
    prover = Prover(verification.ask_proof(node, now=now + SECOND))
    later = now + timedelta(minutes=6)
    cells = verification.commit_proof(node, prover.task.id, prover.commit(), now=later).cells
    flaw = verification.open_proof(node, prover.task.id, prover.open(cells), now=later)
    assert "too slow" in flaw
    node.refresh_from_db()
    assert node.state == "quarantined"


def test_an_agent_that_begins_anew_has_all_the_time_again(node, now):
    asked = verification.ask_proof(node, now=now)
    again = verification.ask_proof(node, now=now + timedelta(minutes=4))
    assert again.seed != asked.seed
    assert Benchmark.objects.get(pk=asked.id).passed is None
