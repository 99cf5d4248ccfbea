"""Where money goes: every movement is a balance transaction, and the balance is their sum."""

from typing import Any

import pytest
import stripe

from tests.stripe_stand_in.process import Receiver, StandIn


def pay(client: Any, amount: int, card: str = "pm_card_visa") -> Any:
    return client.payment_intents.create(
        {"amount": amount, "currency": "usd", "confirm": True, "payment_method": card}
    )


def funds(client: Any, **options: str) -> tuple[int, int]:
    """(available, pending) in cents; checked against the transactions."""
    balance = client.balance.retrieve(options=options)
    available, pending = balance.available[0].amount, balance.pending[0].amount
    listed = client.balance_transactions.list({"limit": 100}, options=options)
    assert available + pending == sum(each.net for each in listed.data)
    assert available == sum(each.net for each in listed.data if each.status == "available")
    return available, pending


@pytest.fixture
def supplier(stand: StandIn) -> Any:
    """A connected account that is set up, and its bank account's number decides its luck."""

    def set_up(number: str = "000123456789") -> str:
        account = stand.client.accounts.create(
            {"type": "express", "capabilities": {"transfers": {"requested": True}}}
        )
        link = stand.client.account_links.create(
            {
                "account": account.id, "type": "account_onboarding",
                "refresh_url": "http://site/again", "return_url": "http://site/back",
            }
        )  # fmt: skip
        done = stand.submit(link.url, name="Sam Supplier", number=number)
        assert done.location == "http://site/back"
        return str(account.id)

    return set_up


def test_a_charge_reaches_the_balance_a_moment_later_less_the_fee(
    client: Any, webhooks: Receiver
) -> None:
    made = pay(client, 10_000)
    settled = webhooks.wait_for("charge.updated")
    assert settled["data"]["previous_attributes"] == {"balance_transaction": None}
    charge = client.charges.retrieve(made.latest_charge, {"expand": ["balance_transaction"]})
    assert (charge.balance_transaction.amount, charge.balance_transaction.fee) == (10_000, 320)
    assert funds(client) == (0, 9_680)


def test_a_refund_takes_the_money_back_and_the_fee_stays(client: Any) -> None:
    made = pay(client, 10_000)
    client.refunds.create({"payment_intent": made.id, "amount": 4_000})
    client.refunds.create({"payment_intent": made.id})
    with pytest.raises(stripe.InvalidRequestError, match="already been refunded"):
        client.refunds.create({"payment_intent": made.id})
    assert sum(funds(client)) == -320
    assert client.charges.retrieve(made.latest_charge).refunded


def test_more_than_was_paid_is_not_refunded(client: Any) -> None:
    made = pay(client, 10_000)
    with pytest.raises(stripe.InvalidRequestError, match="greater than unrefunded"):
        client.refunds.create({"payment_intent": made.id, "amount": 10_001})


@pytest.mark.parametrize(
    ("evidence", "status", "back"),
    [("winning_evidence", "won", 11_000), ("losing_evidence", "lost", 0)],
)
def test_a_dispute_takes_the_money_until_it_is_won(
    client: Any, webhooks: Receiver, evidence: str, status: str, back: int
) -> None:
    made = pay(client, 11_000, "pm_card_createDispute")
    dispute = webhooks.wait_for("charge.dispute.created")["data"]["object"]
    assert (dispute["charge"], dispute["amount"]) == (made.latest_charge, 11_000)
    webhooks.wait_for("charge.dispute.funds_withdrawn")
    costs = 349 + 1_500  # of the card, and of the dispute
    assert sum(funds(client)) == -costs
    done = client.disputes.update(dispute["id"], {"evidence": {"uncategorized_text": evidence}})
    assert done.status == status
    webhooks.wait_for("charge.dispute.closed")
    assert sum(funds(client)) == back - costs
    with pytest.raises(stripe.InvalidRequestError, match="already closed"):
        client.disputes.close(dispute["id"])


def test_money_that_is_not_available_yet_is_not_transferred(client: Any, supplier: Any) -> None:
    account = supplier()
    made = pay(client, 10_000)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.transfers.create({"amount": 1, "currency": "usd", "destination": account})
    assert caught.value.code == "balance_insufficient"
    assert made.status == "succeeded"


def test_nobody_is_sent_money_before_they_are_set_up(client: Any, webhooks: Receiver) -> None:
    pay(client, 10_000, "pm_card_bypassPending")
    webhooks.wait_for("charge.updated")
    account = client.accounts.create({"type": "express"})
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.transfers.create({"amount": 1, "currency": "usd", "destination": account.id})
    assert caught.value.code == "insufficient_capabilities_for_transfer"


def test_a_transfer_moves_money_between_two_balances_and_back(
    client: Any, supplier: Any, webhooks: Receiver
) -> None:
    account = supplier()
    pay(client, 10_000, "pm_card_bypassPending")
    webhooks.wait_for("charge.updated")
    made = client.transfers.create({"amount": 5_000, "currency": "usd", "destination": account})
    assert funds(client) == (4_680, 0)
    assert funds(client, stripe_account=account) == (5_000, 0)
    client.transfers.reversals.create(made.id, {"amount": 2_000})
    assert funds(client) == (6_680, 0)
    assert funds(client, stripe_account=account) == (3_000, 0)
    assert len(client.transfers.reversals.list(made.id).data) == 1
    with pytest.raises(stripe.InvalidRequestError, match="greater than unreversed"):
        client.transfers.reversals.create(made.id, {"amount": 3_001})


def test_a_transfer_may_wait_for_the_money_of_its_charge(
    client: Any, supplier: Any, webhooks: Receiver
) -> None:
    account = supplier()
    made = pay(client, 10_000)
    webhooks.wait_for("charge.updated")
    client.transfers.create(
        {
            "amount": 9_000, "currency": "usd", "destination": account,
            "source_transaction": made.latest_charge,
        }
    )  # fmt: skip
    assert funds(client, stripe_account=account) == (0, 9_000)


@pytest.mark.parametrize(
    ("bank", "told", "left"),
    [("000123456789", "payout.paid", 2_000), ("000111111116", "payout.failed", 5_000)],
)
def test_a_payout_arrives_or_comes_back(
    client: Any, supplier: Any, webhooks: Receiver, bank: str, told: str, left: int
) -> None:
    account = supplier(bank)
    pay(client, 10_000, "pm_card_bypassPending")
    webhooks.wait_for("charge.updated")
    client.transfers.create({"amount": 5_000, "currency": "usd", "destination": account})
    theirs = {"stripe_account": account}
    made = client.payouts.create({"amount": 3_000, "currency": "usd"}, options=theirs)
    event = webhooks.wait_for(told)
    assert (event["account"], event["data"]["object"]["id"]) == (account, made.id)
    assert funds(client, stripe_account=account) == (left, 0)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.payouts.create({"amount": 5_001, "currency": "usd"}, options=theirs)
    assert caught.value.code == "balance_insufficient"


def test_a_made_up_bank_account_is_not_wanted(stand: StandIn, client: Any) -> None:
    account = client.accounts.create({"type": "express"})
    link = client.account_links.create(
        {
            "account": account.id, "type": "account_onboarding",
            "refresh_url": "http://site/again", "return_url": "http://site/back",
        }
    )  # fmt: skip
    refused = stand.submit(link.url, name="Sam", number="42")
    assert refused.status == 400
    assert "use the bank account 000123456789" in refused.text
    assert not client.accounts.retrieve(account.id).details_submitted
