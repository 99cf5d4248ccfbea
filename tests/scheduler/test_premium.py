"""A protected job pays a premium to its supplier, and never more than its limit."""

from dataclasses import replace
from datetime import timedelta

import pytest

from marketplace.core.money import MICRO, accrued, before_premium, charge, fee, with_premium
from marketplace.ledger import services as ledger
from scheduler import clearing, metering, receipts
from scheduler.models import Assignment, ClearingPrice, Lease, UsageSlice
from suppliers import earnings
from tests import world

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("price", [1, 2, 9, 10, 11, 999_999, 1_234_567])
def test_the_premium_comes_off_as_it_went_on_and_a_limit_is_never_passed(price):
    assert before_premium(with_premium(price, 1000), 1000) == price
    assert with_premium(before_premium(price, 1000), 1000) <= price


@pytest.mark.parametrize(("limit", "placed"), [(1_300_000, 1), (1_190_000, 0)])
def test_the_price_with_the_premium_stays_within_the_limit(buyer, node, now, limit, placed):
    """The ask is 1.00 net, 1.086957 gross, 1.195653 with the premium."""
    world.job(buyer, now=now, premium_bps=1000, limits={"h100-sxm": limit})
    assert clearing.clear_market(now=now) == placed
    for lease in Lease.objects.all():
        published = ClearingPrice.objects.get().price_micros
        assert lease.price_micros == with_premium(published, 1000) <= limit


def test_the_premium_is_the_suppliers_less_the_take(buyer, node, now):
    job = world.job(buyer, now=now, premium_bps=1000)
    lease = world.lease(job, node, now=now, price=2 * MICRO)
    share = lease.assignments.select_related("lease").get()
    assert share.price_micros == 2_200_000
    for seconds in range(0, 3601, 20):
        node.says(
            world.status(share, "running", running_ms=seconds * 1000),
            now=now + timedelta(seconds=seconds),
        )
    metering.claim(node.node, node.claim(share, 3_600_000), now=now)
    Assignment.objects.filter(pk=share.pk).update(paid_through_s=3600)
    metering.settle(now=now + timedelta(seconds=3600))
    piece = UsageSlice.objects.get()
    assert piece.charge_micros == 2_200_000
    assert piece.fee_micros == 176_000
    assert ledger.balance(ledger.payable(share.supplier_id)) == 2_024_000
    assert ledger.imbalance() == 0
    # Its line on the receipt, of the buyer's and of the supplier's.
    (line,) = receipts.receipt(job).lines
    assert line.plain == receipts.Part(2 * MICRO, 2 * MICRO, 160_000)
    assert line.premium == receipts.Part(200_000, 200_000, 16_000)
    (earned,) = earnings.of_node(node.node)
    assert (earned.nets, earned.premium_nets) == (2_024_000, 184_000)
    assert (earned.earned, earned.premium_earned) == (2_024_000, 184_000)
    assert (earned.service, earned.words) == ("protected", "running")


@pytest.mark.parametrize("every", [1, 7, 60])
def test_however_it_is_billed_the_premium_is_what_protection_costs_more(buyer, node, now, every):
    """Of 1.234567 with a tenth on top: what the two prices differ by over the whole time."""
    job = world.job(buyer, now=now, premium_bps=1000)
    share = world.lease(job, node, now=now, price=1_234_567).assignments.get()
    at = [(since, min(since + every, 100)) for since in range(0, 100, every)]
    UsageSlice.objects.bulk_create(
        UsageSlice(
            assignment=share, since_s=since, until_s=until, at=now,
            charge_micros=charge(share.price_micros, 1, since, until),
            fee_micros=fee(share.price_micros, 1, since, until, take_bps=800),
        )
        for since, until in at
    )  # fmt: skip
    (line,) = receipts.receipt(job).lines
    assert line.charge == accrued(1_358_024, 1, 100) == 37_722
    assert line.premium.charge == 37_722 - accrued(1_234_567, 1, 100) == 3_429
    assert line.premium.earnings + line.plain.earnings == line.earnings
    (earned,) = earnings.of_node(node.node)
    assert (earned.earned, earned.premium_earned) == (line.earnings, line.premium.earnings)


def test_the_policy_asks_it_of_protected_jobs_alone(settings):
    policy = replace(settings.POLICY, premium_bps=1000)
    assert policy.premium_of("protected") == 1000
    assert policy.premium_of("interruptible") == 0
