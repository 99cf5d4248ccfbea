"""The meter: honest nodes are paid to the second, lying ones gain at most one TTL."""

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.conf import settings
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings

from agent import protocol
from marketplace.core.errors import Invalid
from marketplace.core.money import MICRO, accrued
from marketplace.core.policy import Policy
from marketplace.ledger import services as ledger
from scheduler import assignments, escrow, metering
from scheduler.models import Assignment, UsageSlice
from tests import world

pytestmark = pytest.mark.django_db


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


@pytest.fixture
def node(now):
    world.listening(now)
    return world.agent(world.org("Supplier", now=now), now=now)


@pytest.fixture
def share(buyer, node, now):
    lease = world.lease(world.job(buyer, now=now), node, now=now, price=36 * MICRO)
    node.says(world.status(lease.assignments.get(), "running"), now=now)
    return lease.assignments.select_related("lease").get()


def run(node, share, now, *, since, until, rate=1.0, step=10):
    """Heartbeats from `since` to `until`, at which the node says `rate` times the time passed."""
    for second in range(since + step, until + 1, step):
        said = world.status(share, "running", running_ms=int(second * rate * 1000), step=second)
        node.says(said, now=now + seconds(second))


def test_an_honest_hour_is_3600_seconds(node, share, now):
    run(node, share, now, since=0, until=3600)
    share.refresh_from_db()
    assert share.accrued_ms == 3_600_000


def test_a_node_that_claims_more_time_than_passed_gets_what_passed(node, share, now):
    run(node, share, now, since=0, until=600, rate=3)
    share.refresh_from_db()
    assert share.accrued_ms == 600_000


def test_a_node_that_claims_less_gets_what_it_claims(node, share, now):
    run(node, share, now, since=0, until=600, rate=0.5)
    share.refresh_from_db()
    assert share.accrued_ms == 300_000


def test_a_gap_longer_than_the_ttl_is_not_billed(node, share, now):
    run(node, share, now, since=0, until=100)
    node.says(world.status(share, "running", running_ms=140_000), now=now + seconds(140))
    share.refresh_from_db()
    assert share.accrued_ms == 100_000


def test_a_gap_of_the_markets_own_is_billed_if_there_was_progress(node, share, now):
    run(node, share, now, since=0, until=100)
    at = now + seconds(300)
    world.listening(at, for_s=5)
    node.says(world.status(share, "running", running_ms=300_000, step=300), now=at)
    share.refresh_from_db()
    assert share.accrued_ms == 300_000


def test_nothing_is_billed_that_the_node_has_not_signed_for(node, share, now):
    run(node, share, now, since=0, until=100)
    metering.settle(now=now + seconds(100))
    assert not UsageSlice.objects.exists()
    metering.claim(node.node, node.claim(share, 60_000), now=now)
    metering.settle(now=now + seconds(101))
    assert UsageSlice.objects.get().until_s == 60


def test_settling_twice_bills_once(node, share, now):
    run(node, share, now, since=0, until=100)
    metering.claim(node.node, node.claim(share, 100_000), now=now)
    metering.settle(now=now + seconds(100))
    metering.settle(now=now + seconds(100))
    assert UsageSlice.objects.get().charge_micros == 1 * MICRO


def test_a_receipt_is_signed_by_the_market_and_a_repeat_gets_one_too(node, share, now):
    run(node, share, now, since=0, until=60)
    usage = node.claim(share, 60_000)
    first = metering.claim(node.node, usage, now=now)
    again = metering.claim(node.node, usage, now=now)
    assert first == again
    key = Ed25519PublicKey.from_public_bytes(_market_key())
    key.verify(first.signature, protocol.receipt_bytes(node.node.pk, first.body))
    body = protocol.decode(first.body, protocol.ReceiptBody)
    assert (body.claimed_ms, body.accepted_ms, body.reason) == (60_000, 60_000, "")


def test_a_claim_that_somebody_else_signed_is_refused(node, share, now):
    other = world.agent(world.org(now=now), now=now)
    with pytest.raises(Invalid, match="not signed by"):
        metering.claim(node.node, other.claim(share, 60_000), now=now)
    share.refresh_from_db()
    assert share.claimed_ms == 0


def test_a_claim_for_another_nodes_assignment_bills_nothing(node, share, now):
    other = world.agent(world.org(now=now), now=now)
    answer = metering.claim(other.node, other.claim(share, 60_000), now=now)
    assert "no such assignment" in protocol.decode(answer.body, protocol.ReceiptBody).reason
    share.refresh_from_db()
    assert share.claimed_ms == 0


def test_an_older_claim_never_takes_back_a_newer_one(node, share, now):
    old, new = node.claim(share, 30_000), node.claim(share, 60_000)
    metering.claim(node.node, new, now=now)
    metering.claim(node.node, old, now=now)
    share.refresh_from_db()
    assert share.claimed_ms == 60_000


def test_the_escrow_is_topped_up_as_it_is_used(node, share, now):
    before = assignments.desired(node.node).assignments[0].paid_through_ms
    run(node, share, now, since=0, until=600)
    metering.claim(node.node, node.claim(share, 600_000), now=now)
    metering.settle(now=now + seconds(600))
    after = assignments.desired(node.node).assignments[0].paid_through_ms
    assert after == pytest.approx(before + 600_000, abs=1000)


def test_a_job_never_costs_a_micro_more_than_its_budget(buyer, now):
    world.listening(now)
    node = world.agent(world.org(now=now), now=now)
    job = world.job(buyer, now=now, budget_micros=3 * MICRO + 7)
    lease = world.lease(job, node, now=now, price=36 * MICRO)
    share = lease.assignments.select_related("lease").get()
    node.says(world.status(share, "running"), now=now)
    for second in range(10, 1000, 10):
        at = now + seconds(second)
        node.says(world.status(share, "running", running_ms=second * 1000), now=at)
        metering.claim(node.node, node.claim(share, second * 1000), now=at)
        metering.settle(now=at)
    job.refresh_from_db()
    assert job.spent_micros <= job.budget_micros
    assert job.spent_micros == accrued(36 * MICRO, 1, 300)
    assert ledger.balance(ledger.escrow(job.pk)) == job.budget_micros - job.spent_micros


def test_an_empty_wallet_stops_the_money_and_not_the_meter(now):
    poor = world.org(now=now, wallet=2 * MICRO)
    world.listening(now)
    node = world.agent(world.org(now=now), now=now)
    lease = world.lease(world.job(poor, now=now), node, now=now, price=36 * MICRO)
    share = lease.assignments.select_related("lease").get()
    assert share.paid_through_s == 199  # 2 / 36 h, less the micro that a part may round up
    node.says(world.status(share, "running"), now=now)
    run(node, share, now, since=0, until=190)
    metering.claim(node.node, node.claim(share, 190_000), now=now)
    metering.settle(now=now + seconds(190))
    assert ledger.balance(ledger.wallet(poor.pk)) == 0
    at = now + seconds(195)
    node.says(
        world.status(share, "gone", running_ms=195_000, exit=world.exited(75, "unpaid"),
                     settled=True),
        now=at,
    )  # fmt: skip
    share.lease.refresh_from_db()
    share.lease.job.refresh_from_db()
    assert share.lease.end_reason == "unpaid"
    assert share.lease.job.state == "stopped"
    assert ledger.imbalance() == 0


@given(
    rate=strategies.integers(1, 10**10),
    parts=strategies.integers(1, 64),
    held=strategies.integers(0, 10**10),
    left=strategies.integers(0, 10**10),
    wallet=strategies.integers(0, 10**10),
    save=strategies.integers(0, 600),
)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_an_escrow_pays_for_is_never_more_than_it_holds(rate, parts, held, left, wallet, save):
    funding = escrow.plan(
        rate=rate, parts=parts, held=held, budget_left=left, wallet=wallet, save_s=save,
        policy=Policy(),
    )  # fmt: skip
    assert 0 <= funding.amount <= wallet
    assert held + funding.amount <= max(held, left)
    assert accrued(rate, 1, funding.seconds) + parts <= max(held + funding.amount, parts)


def _market_key() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    seed = settings.MARKET_SIGNING_KEY
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def test_the_meter_marks_of_one_node_are_no_business_of_another(node, share, now):
    other = world.agent(world.org(now=now), now=now)
    other.says(world.status(share, "running", running_ms=50_000), now=now + seconds(50))
    assert Assignment.objects.get(pk=share.pk).accrued_ms == 0
