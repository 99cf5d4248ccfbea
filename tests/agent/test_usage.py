"""What the node is owed is signed, on the disk, and asked for until it is answered."""

import asyncio
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent import protocol
from agent.protocol import Claim, Receipt, ReceiptBody, Usage
from agent.usage import BadReceipt, Meter, Spool

NODE, JOB = UUID(int=1), UUID(int=2)
KEY, MARKET = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return _spool(tmp_path)


def _spool(root: Path) -> Spool:
    return Spool(root, NODE, KEY, MARKET.public_key().public_bytes_raw())


def _claim(spool: Spool, running_ms: int = 1000, assignment: UUID = JOB) -> Claim:
    claim = Claim(
        assignment=assignment, epoch=3, n=spool.next_number(assignment), boot_id="boot",
        running_ms=running_ms, step=1, checkpoint=None, millijoules=5, measured=False, final=False,
    )  # fmt: skip
    spool.add(claim)
    return claim


def _answer(usage: Usage, *, by: Ed25519PrivateKey = MARKET, node: UUID = NODE) -> Receipt:
    claim = protocol.decode(usage.claim, Claim)
    body = protocol.encode(
        ReceiptBody(
            assignment=claim.assignment, epoch=claim.epoch, n=claim.n,
            claim=protocol.sha256_hex(usage.claim), claimed_ms=claim.running_ms,
            accepted_ms=claim.running_ms,
        )
    )  # fmt: skip
    return Receipt(body=body, signature=by.sign(protocol.receipt_bytes(node, body)))


def test_a_claim_is_signed_and_waits_for_its_receipt(spool: Spool):
    claim = _claim(spool)
    usage = spool.waiting()[JOB]
    KEY.public_key().verify(usage.signature, protocol.claim_bytes(NODE, usage.claim))
    assert protocol.decode(usage.claim, Claim) == claim == spool.last(JOB)
    assert spool.take(_answer(usage)).accepted_ms == 1000
    assert spool.waiting() == {}
    kept = spool.receipt(JOB)
    assert kept is not None
    assert kept.n == 1


def test_numbers_rise_over_restarts_and_receipts(tmp_path: Path):
    assert [_claim(_spool(tmp_path)).n for _ in range(3)] == [1, 2, 3]
    spool = _spool(tmp_path)
    spool.take(_answer(spool.waiting()[JOB]))
    assert _claim(_spool(tmp_path)).n == 4


def test_the_newest_claim_says_all(spool: Spool):
    _claim(spool, 1000)
    old = spool.waiting()[JOB]
    _claim(spool, 2000)
    assert list(spool.waiting()) == [JOB]
    spool.take(_answer(old))  # late: the newer one still waits
    assert protocol.decode(spool.waiting()[JOB].claim, Claim).running_ms == 2000


def test_an_older_receipt_does_not_replace_a_newer_one(spool: Spool):
    _claim(spool, 1000)
    old = _answer(spool.waiting()[JOB])
    _claim(spool, 2000)
    spool.take(_answer(spool.waiting()[JOB]))
    spool.take(old)
    kept = spool.receipt(JOB)
    assert kept is not None
    assert kept.n == 2


@pytest.mark.parametrize("forged", ["key", "node", "body"])
def test_a_receipt_that_the_market_did_not_sign_is_not_kept(spool: Spool, forged: str):
    _claim(spool)
    usage = spool.waiting()[JOB]
    receipt = _answer(usage)
    if forged == "key":
        receipt = _answer(usage, by=KEY)
    elif forged == "node":
        receipt = _answer(usage, node=uuid4())
    else:
        body = receipt.body.replace(b'"accepted_ms":1000', b'"accepted_ms":9999')
        receipt = msgspec.structs.replace(receipt, body=body)
    with pytest.raises(BadReceipt):
        spool.take(receipt)
    assert spool.receipt(JOB) is None
    assert JOB in spool.waiting()


def test_a_receipt_for_nothing_is_refused(spool: Spool, tmp_path: Path):
    other = _spool_at(tmp_path / "other")
    _claim(other)
    with pytest.raises(BadReceipt, match="nothing was claimed"):
        spool.take(_answer(other.waiting()[JOB]))


def _spool_at(root: Path) -> Spool:
    root.mkdir()
    return _spool(root)


async def test_a_job_waits_for_the_answer_to_its_last_claim(spool: Spool):
    await asyncio.wait_for(spool.answered(JOB), 5)  # nothing was claimed
    _claim(spool)
    waiting = asyncio.create_task(spool.answered(JOB))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    spool.take(_answer(spool.waiting()[JOB]))
    await asyncio.wait_for(waiting, 5)


def test_a_file_that_the_disk_has_lost_is_passed_over(spool: Spool, tmp_path: Path):
    _claim(spool)
    (tmp_path / "spool" / f"{JOB}.json").write_bytes(b"")
    assert spool.waiting() == {}
    assert spool.next_number(JOB) == 1


def test_energy_is_power_over_running_time():
    meter = Meter()
    meter.add(1000, 10.0, measured=True)
    meter.add(1000, 99.0, measured=True)  # no time has passed
    meter.add(500, 99.0, measured=True)  # nor does it go back
    assert meter.millijoules == 10_000
    assert meter.measured
    meter.add(3000, 5.0, measured=False)
    assert (meter.running_ms, meter.millijoules, meter.measured) == (3000, 20_000, False)
