"""A card's owner wants the money back: what the wallet has goes, and the rest is owed."""

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import transaction

from marketplace.core.money import MICRO
from marketplace.ledger import services as ledger
from marketplace.ledger.services import (
    CASH,
    DISPUTES,
    PROCESSOR_FEES,
    Move,
    escrow,
    receivable,
    wallet,
)
from marketplace.models import Org
from marketplace.payments import services
from tests.payments.doorbell import deliver, event, signed
from tests.stripe_stand_in.process import Receiver, StandIn

DISPUTED = "4000000000000259"
COSTS = 3_200_000 + 15_000_000  # of the card: 2.9 % of 100 and 0.30; of the dispute


def pay(org: Org, by: User, stand: StandIn, now: datetime, *, units: int, card: str) -> None:
    url = services.start_top_up(
        org, amount=units * MICRO, by=by, success_url="http://site/", cancel_url="http://site/",
        now=now,
    )  # fmt: skip
    assert stand.pay(url, card).status == 303


@pytest.fixture
def disputed(
    stand: StandIn, webhooks: Receiver, buyer: Org, ada: User, now: datetime, client: Any
) -> str:
    """100 are topped up and credited; then they are disputed, which nobody has told us yet."""
    pay(buyer, ada, stand, now, units=100, card=DISPUTED)
    told = webhooks.wait_for("charge.dispute.funds_withdrawn")
    for payload, header in webhooks.taken:
        if b'"charge.dispute.' not in payload:
            assert deliver(client, payload, header).status_code == 200
    assert ledger.balance(wallet(buyer.pk)) == 100 * MICRO
    return str(told["data"]["object"]["id"])


def ring(client: Any, webhooks: Receiver, kind: str) -> str:
    """Delivers the webhook of that type; returns the outcome."""
    webhooks.wait_for(kind)
    payload, header = next(each for each in webhooks.taken if f'"{kind}"'.encode() in each[0])
    answer = deliver(client, payload, header)
    assert answer.status_code == 200
    return str(answer.content.decode())


def move(org: Org, now: datetime, *, units: int) -> None:
    """Some of the org's money goes into a job."""
    with transaction.atomic():
        job = uuid4()
        ledger.post([Move("escrow", wallet(org.pk), escrow(job), units * MICRO, job)], now=now)


def holds(org: Org, **expected: int) -> None:
    refs = {
        "wallet": wallet(org.pk), "owed": receivable(org.pk), "disputes": DISPUTES, "cash": CASH,
        "costs": PROCESSOR_FEES,
    }  # fmt: skip
    assert {name: ledger.balance(refs[name]) for name in expected} == expected
    assert ledger.imbalance() == 0
    assert ledger.audit() == {}


def test_a_dispute_takes_the_money_out_of_the_wallet(
    disputed: str, webhooks: Receiver, client: Any, buyer: Org
) -> None:
    assert ring(client, webhooks, "charge.dispute.created") == "dispute needs_response"
    holds(buyer, wallet=0, owed=0, disputes=100 * MICRO, costs=-COSTS)
    ring(client, webhooks, "charge.dispute.funds_withdrawn")
    holds(buyer, wallet=0, owed=0, disputes=100 * MICRO, costs=-COSTS)


def test_what_the_wallet_no_longer_has_is_owed(
    disputed: str, webhooks: Receiver, client: Any, buyer: Org, now: datetime
) -> None:
    move(buyer, now, units=70)
    ring(client, webhooks, "charge.dispute.created")
    holds(buyer, wallet=0, owed=-70 * MICRO, disputes=100 * MICRO)
    # Again, when the wallet has other money: the split of the first time stands.
    with transaction.atomic():
        ledger.post([Move("gift", ledger.FEES, wallet(buyer.pk), MICRO, uuid4())], now=now)
    ring(client, webhooks, "charge.dispute.funds_withdrawn")
    holds(buyer, wallet=MICRO, owed=-70 * MICRO, disputes=100 * MICRO)


def test_a_dispute_that_is_lost_is_gone(
    disputed: str, webhooks: Receiver, stand: StandIn, client: Any, buyer: Org, now: datetime
) -> None:
    move(buyer, now, units=70)
    ring(client, webhooks, "charge.dispute.created")
    stand.client.disputes.close(disputed)
    assert ring(client, webhooks, "charge.dispute.closed") == "dispute lost"
    holds(buyer, wallet=0, owed=-70 * MICRO, disputes=0, cash=COSTS)


def test_a_dispute_that_is_won_gives_everything_back(
    disputed: str, webhooks: Receiver, stand: StandIn, client: Any, buyer: Org, now: datetime
) -> None:
    move(buyer, now, units=70)
    ring(client, webhooks, "charge.dispute.created")
    _win(stand, disputed)
    ring(client, webhooks, "charge.dispute.funds_reinstated")
    ring(client, webhooks, "charge.dispute.closed")
    holds(buyer, wallet=30 * MICRO, owed=0, disputes=0, cash=-100 * MICRO + COSTS)


def test_the_whole_of_a_dispute_may_be_told_at_its_end(
    disputed: str, webhooks: Receiver, stand: StandIn, client: Any, buyer: Org
) -> None:
    _win(stand, disputed)
    assert ring(client, webhooks, "charge.dispute.closed") == "dispute won"
    ring(client, webhooks, "charge.dispute.created")
    holds(buyer, wallet=100 * MICRO, owed=0, disputes=0, costs=-COSTS)


def test_a_debt_is_paid_back_by_the_next_top_up(
    disputed: str, webhooks: Receiver, stand: StandIn, client: Any, buyer: Org, ada: User,
    now: datetime,
) -> None:  # fmt: skip
    move(buyer, now, units=70)
    ring(client, webhooks, "charge.dispute.created")
    pay(buyer, ada, stand, now, units=40, card="4242424242424242")
    services.settle_pending(now=now + timedelta(minutes=5))
    holds(buyer, wallet=0, owed=-30 * MICRO)
    pay(buyer, ada, stand, now, units=50, card="4242424242424242")
    services.settle_pending(now=now + timedelta(minutes=5))
    holds(buyer, wallet=20 * MICRO, owed=0)
    # And what was paid back comes back as money when the dispute is won after all.
    _win(stand, disputed)
    ring(client, webhooks, "charge.dispute.closed")
    holds(buyer, wallet=120 * MICRO, owed=0, disputes=0)


def test_a_dispute_that_is_told_before_its_payment_credits_first(
    stand: StandIn, webhooks: Receiver, buyer: Org, ada: User, now: datetime, client: Any
) -> None:
    pay(buyer, ada, stand, now, units=100, card=DISPUTED)
    webhooks.wait_for("charge.dispute.funds_withdrawn")
    ring(client, webhooks, "charge.dispute.created")
    holds(buyer, wallet=0, owed=0, disputes=100 * MICRO, costs=-COSTS)
    ring(client, webhooks, "checkout.session.completed")
    holds(buyer, wallet=0, owed=0, disputes=100 * MICRO, costs=-COSTS)


def test_a_dispute_that_the_processor_does_not_know_moves_nothing(
    disputed: str, client: Any, buyer: Org
) -> None:
    forged = event("charge.dispute.created", {"id": "du_nobody", "amount": 10_000})
    assert deliver(client, *signed(forged)).status_code == 200
    holds(buyer, wallet=100 * MICRO, disputes=0)


def test_a_dispute_of_a_payment_that_is_not_ours_moves_nothing(
    stand: StandIn, webhooks: Receiver, buyer: Org, client: Any
) -> None:
    stand.client.payment_intents.create(
        {
            "amount": 5_000, "currency": "usd", "confirm": True,
            "payment_method": "pm_card_createDispute",
        }
    )  # fmt: skip
    assert ring(client, webhooks, "charge.dispute.created") == "not about a top-up of ours"
    holds(buyer, disputes=0, cash=0)


def _win(stand: StandIn, dispute: str) -> None:
    won = stand.client.disputes.update(
        dispute, {"evidence": {"uncategorized_text": "winning_evidence"}}
    )
    assert won.status == "won"
