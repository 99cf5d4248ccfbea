"""When the market trusts a node: its owner has confirmed its key, and its hardware has proven
itself. Then `pending` or `quarantined` becomes `ready`; nothing else makes it so.
"""

import math
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
from django.contrib.auth.models import User
from django.db import transaction

from agent.protocol import ProofChallenge, ProofCommit, ProofOpening, ProofTask
from marketplace.core.errors import Conflict, Expired, Invalid, InvalidTransition, Missing
from marketplace.core.estimates import class_tflops
from marketplace.core.hardware import is_cpu
from marketplace.core.ids import uuid7
from suppliers import proof
from suppliers.models import Benchmark, Node
from suppliers.services import quarantine

PROOF_LIFE: Final = timedelta(minutes=15)
"""From asking to opening. An honest node needs seconds; one with a slow disk or link, minutes."""
_ASKED_ANEW: Final = timedelta(minutes=1)
"""A node that asks again this late has begun anew, and its time must begin anew too."""
# From asking to the commit, at the slowest: starting, measuring and hashing, on whatever machine,
# and the proof's arithmetic at this share of its class's speed.
_SLOWEST_START: Final = timedelta(minutes=5)
_SLOWEST_SHARE: Final = 0.02
_BEST_SHARE: Final = 1.1
"""Of a class's data sheet, the most that a node's own word on its speed may say."""
_MOST_LET_CORES: Final = 128
"""Of a processor, as far as its speed is believed to grow with them."""
_FAILURES_A_DAY: Final = 3
_DAY: Final = timedelta(days=1)
_MOST_DETAILS: Final = 32
# Of a node's own figures, the one the engine plans transfers with (Mbit/s to our storage).
_BANDWIDTH: Final = "storage_mbps"
_LEAST_MBPS, _MOST_MBPS = 5.0, 100_000.0


@transaction.atomic
def confirm_fingerprint(node: Node, fingerprint: str, *, by: User, now: datetime) -> Node:
    """The owner has read this fingerprint off the machine's own screen.

    Raises Invalid if it isn't the node's, InvalidTransition for a retired node.
    """
    held = _hold(node.pk)
    if held.state == "retired":
        raise InvalidTransition("a retired node can't come back; enrol the machine anew")
    if _plain(fingerprint) != _plain(held.fingerprint):
        raise Invalid(
            "that isn't the fingerprint of the key that enrolled. Compare it with what `python "
            "-m agent doctor` shows on the machine; if it is right there, somebody else has used "
            "your token: retire this node",
            field="fingerprint",
        )
    held.confirmed_at = now
    held.save(update_fields=["confirmed_at"])
    _verify_if_due(held, now=now, by=by.get_username())
    node.confirmed_at, node.state, node.state_since = now, held.state, held.state_since
    return node


def ask_proof(node: Node, *, now: datetime) -> ProofTask:
    """The proof that the node owes now; the same one until it is answered or runs out.

    Raises Missing if none is due, Conflict if it has failed too often today.
    """
    # In a transaction of its own: what it finds stays, whatever is answered then.
    _end_overdue(node, now=now)
    return _ask(node, now=now)


@transaction.atomic
def commit_proof(
    node: Node, proof_id: UUID, commit: ProofCommit, *, now: datetime
) -> ProofChallenge:
    """Takes the roots, and only then says which rows to open. A repeat gets the same rows.

    Raises Missing, Expired, Conflict (other roots than before) and Invalid.
    """
    held = _hold(node.pk)
    asked = _unfinished(node, proof_id, now=now)
    if asked.committed_at is not None:
        if asked.roots != commit.roots:
            raise Conflict("this proof was committed with other roots; it can't be changed")
        return _challenge(asked)
    task = msgspec.convert(asked.task, ProofTask)
    if len(commit.roots) != task.segments:
        raise Invalid(f"a commit has one root for each of {task.segments} segments", field="roots")
    asked.committed_at, asked.roots = now, commit.roots
    asked.cells = [list(cell) for cell in proof.draw_cells(task)]
    asked.tflops = min(_figure(commit.tflops, "tflops"), _BEST_SHARE * _sheet_tflops(held))
    asked.memory_gb_s = _figure(commit.memory_gb_s, "memory_gb_s")
    asked.disk_mb_s = _figure(commit.disk_mb_s, "disk_mb_s")
    asked.details = _details(commit.details)
    asked.save()
    return _challenge(asked)


def open_proof(node: Node, proof_id: UUID, opening: ProofOpening, *, now: datetime) -> str:
    """Judges the opened rows and ends the proof: "" if it passed, else what is wrong with it.

    A passed proof makes a confirmed node ready; a failed one quarantines it. Takes up to a
    second of computing, outside any transaction. Raises Missing, Expired, Conflict.
    """
    asked = _unfinished(node, proof_id, now=now)
    if asked.committed_at is None:
        raise Conflict("commit to the roots of this proof first")
    task = msgspec.convert(asked.task, ProofTask)
    flaw = _slowness(node, asked, task) or proof.flaw(
        task, asked.roots, [(s, row) for s, row in asked.cells], opening
    )
    with transaction.atomic():
        held = _hold(node.pk)
        if not _finish(asked, passed=not flaw, verdict=flaw or "passed", now=now):
            raise Conflict("this proof has been judged already")
        if flaw:
            quarantine(held, reason=f"its proof of hardware failed: {flaw}", now=now)
            return flaw
        if _BANDWIDTH in asked.details:
            held.bandwidth_mbps = min(max(_LEAST_MBPS, asked.details[_BANDWIDTH]), _MOST_MBPS)
            held.save(update_fields=["bandwidth_mbps"])
        _verify_if_due(held, now=now, by="market")
    return ""


@transaction.atomic
def _end_overdue(node: Node, *, now: datetime) -> None:
    """One that saw which rows to open and fell silent may have seen that it would be found out."""
    held = _hold(node.pk)
    asked = held.benchmarks.filter(finished_at=None, asked_at__lte=now - PROOF_LIFE).first()
    if asked is None:
        return
    if asked.committed_at is None:
        _finish(asked, passed=None, verdict="not answered in time", now=now)
        return
    _finish(asked, passed=False, verdict="not opened in time", now=now)
    quarantine(held, reason="it committed to a proof of hardware and didn't open it", now=now)


@transaction.atomic
def _ask(node: Node, *, now: datetime) -> ProofTask:
    held = _hold(node.pk)
    if held.state == "quarantined" and held.confirmed_at is None:
        raise Missing("no proof is due before the owner has confirmed this node's fingerprint")
    if held.state not in ("pending", "quarantined") or _has_passed(held):
        raise Missing("no proof is due")
    current = held.benchmarks.filter(finished_at=None).first()
    if current and (current.committed_at or now - current.asked_at < _ASKED_ANEW):
        return msgspec.convert(current.task, ProofTask)
    if current:
        _finish(current, passed=None, verdict="asked for anew", now=now)
    failures = held.benchmarks.filter(passed=False, finished_at__gt=now - _DAY).count()
    if failures >= _FAILURES_A_DAY:
        raise Conflict(f"this node has failed {failures} proofs within a day; try tomorrow")
    only_cpu = all(is_cpu(gpu.gpu_class) for gpu in held.gpus.filter(present=True))
    task = proof.make_task(uuid7(), proof.FOR_CPU if only_cpu else proof.FOR_GPU)
    Benchmark.objects.create(id=task.id, node=held, asked_at=now, task=msgspec.to_builtins(task))
    return task


def _verify_if_due(held: Node, *, now: datetime, by: str) -> None:
    if held.state in ("pending", "quarantined") and held.confirmed_at and _has_passed(held):
        held.advance("verify", now=now, by=by, reason="its owner confirmed it, its proof passed")


def _has_passed(held: Node) -> bool:
    """Whether a proof that was asked in the node's present state has passed."""
    return held.benchmarks.filter(passed=True, asked_at__gt=held.state_since).exists()


def _finish(asked: Benchmark, *, passed: bool | None, verdict: str, now: datetime) -> bool:
    """Ends a proof once; says whether this call did."""
    return bool(
        Benchmark.objects.filter(pk=asked.pk, finished_at=None).update(
            finished_at=now, passed=passed, verdict=verdict[:200]
        )
    )


def _unfinished(node: Node, proof_id: UUID, *, now: datetime) -> Benchmark:
    asked = node.benchmarks.filter(pk=proof_id).first()
    if asked is None:
        raise Missing("there is no such proof")
    if asked.finished_at is not None:
        raise Conflict("this proof has been judged already")
    if asked.asked_at <= now - PROOF_LIFE:
        raise Expired("this proof has run out; ask for another one")
    return asked


def _challenge(asked: Benchmark) -> ProofChallenge:
    return ProofChallenge(cells=[(segment, row) for segment, row in asked.cells])


def _hold(node: UUID) -> Node:
    """The node, locked: confirmation and proof may arrive at the same moment, and whichever is
    second must see the first."""
    return Node.objects.select_for_update(no_key=True).get(pk=node)


def _slowness(node: Node, asked: Benchmark, task: ProofTask) -> str:
    """Words for a commit that came later than the slowest device of the node's class can be."""
    size = proof.Size(n=task.n, links=task.links, segments=task.segments)
    work_s = size.flops / (_SLOWEST_SHARE * _sheet_tflops(node) * 1e12)
    took = (asked.committed_at or asked.asked_at) - asked.asked_at
    if took <= _SLOWEST_START + timedelta(seconds=work_s):
        return ""
    return f"it took {took.total_seconds():.0f} s, which is too slow for what the node says it is"


def _sheet_tflops(node: Node) -> float:
    """TFLOP/s of its slowest device by the data sheet; of a processor, of the cores that it has."""
    cores = min(max(1, node.cpu_cores), _MOST_LET_CORES)
    speeds = [
        class_tflops(name) * (cores if is_cpu(name) else 1)
        for name in node.gpus.filter(present=True).values_list("gpu_class", flat=True)
    ]
    # A node whose devices are all gone has nothing to let, and so nothing to lie about.
    return min(speeds, default=class_tflops("cpu-"))


def _figure(value: float, field: str) -> float:
    if not math.isfinite(value) or not 0 <= value < 1e9:
        raise Invalid(f"{field} must be a finite number from 0 on, not {value!r}", field=field)
    return value


def _details(details: dict[str, float]) -> dict[str, float]:
    if len(details) > _MOST_DETAILS:
        raise Invalid(f"at most {_MOST_DETAILS} details", field="details")
    for name, value in details.items():
        if not name.isprintable() or len(name) > 60:
            raise Invalid("a detail's name is at most 60 printable characters", field="details")
        _figure(value, name)
    return details


def _plain(fingerprint: str) -> str:
    return "".join(letter for letter in fingerprint.lower() if letter.isalnum())
