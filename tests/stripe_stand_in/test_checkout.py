"""A person pays on the hosted page."""

import re
from typing import Any

import pytest
import stripe

from tests.stripe_stand_in.process import Receiver, StandIn, visit


@pytest.fixture
def session(client: Any) -> Any:
    return client.checkout.sessions.create(
        {
            "mode": "payment",
            "line_items": [
                {
                    "price_data": {
                        "currency": "usd", "unit_amount": 2500,
                        "product_data": {"name": "Top-up <b>&</b>"},
                    },
                    "quantity": 1,
                }
            ],
            "success_url": "http://site/done?session={CHECKOUT_SESSION_ID}",
            "cancel_url": "http://site/cancelled",
            "customer_email": "ada@example.org",
            "client_reference_id": "top-up-1",
            "payment_intent_data": {"description": "Top-up", "metadata": {"top_up": "1"}},
        }
    )  # fmt: skip


def test_the_page_shows_what_is_paid_and_that_no_money_is_real(session: Any) -> None:
    page = visit(session.url)
    assert page.status == 200
    assert "Test stand-in, no real money" in page.text
    assert "Pay $25.00" in page.text
    assert "Top-up &lt;b&gt;&amp;&lt;/b&gt;" in page.text
    assert 'value="ada@example.org"' in page.text
    assert 'href="http://site/cancelled"' in page.text
    # Every field has its label, and nothing is fetched from elsewhere.
    assert page.text.count("<label>") == page.text.count("<input")
    assert not re.search(r"<script|<link|@import|url\(", page.text)


def test_a_good_card_pays_and_leads_back(
    session: Any, stand: StandIn, client: Any, webhooks: Receiver
) -> None:
    paid = stand.pay(session.url)
    assert (paid.status, paid.location) == (303, f"http://site/done?session={session.id}")
    done = client.checkout.sessions.retrieve(session.id, {"expand": ["payment_intent"]})
    assert (done.status, done.payment_status, done.url) == ("complete", "paid", None)
    assert (done.payment_intent.status, done.payment_intent.amount_received) == ("succeeded", 2500)
    assert done.payment_intent.metadata.to_dict() == {"top_up": "1"}
    assert done.customer_details.email == "ada@example.org"
    told = webhooks.wait_for("checkout.session.completed")
    assert told["data"]["object"]["id"] == session.id


def test_a_declined_card_may_be_followed_by_a_good_one(
    session: Any, stand: StandIn, client: Any, webhooks: Receiver
) -> None:
    refused = stand.pay(session.url, "4000 0000 0000 0002")
    assert refused.status == 402
    assert "Your card was declined." in refused.text
    tried = client.checkout.sessions.retrieve(session.id)
    assert (tried.status, tried.payment_status) == ("open", "unpaid")
    webhooks.wait_for("payment_intent.payment_failed")
    assert stand.pay(session.url).status == 303
    # One intent, two charges.
    assert client.checkout.sessions.retrieve(session.id).payment_intent == tried.payment_intent
    assert [c.status for c in client.charges.list().data] == ["succeeded", "failed"]


def test_a_real_card_is_not_wanted(session: Any, stand: StandIn, client: Any) -> None:
    refused = stand.pay(session.url, "4111 1111 1111 1111")
    assert refused.status == 402
    assert "test stand-in: use a test card" in refused.text
    assert client.charges.list().data == []


def test_a_session_is_paid_once(session: Any, stand: StandIn, client: Any) -> None:
    stand.pay(session.url)
    again = stand.pay(session.url)
    assert again.status == 400
    assert "complete" in again.text
    assert len(client.charges.list().data) == 1


def test_an_expired_session_is_not_paid(
    session: Any, stand: StandIn, client: Any, webhooks: Receiver
) -> None:
    assert client.checkout.sessions.expire(session.id).status == "expired"
    webhooks.wait_for("checkout.session.expired")
    assert visit(session.url).status == 400
    assert stand.pay(session.url).status == 400
    with pytest.raises(stripe.InvalidRequestError, match="expired"):
        client.checkout.sessions.expire(session.id)


def test_a_session_needs_a_life_between_half_an_hour_and_a_day(client: Any) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="expires_at"):
        client.checkout.sessions.create(
            {
                "mode": "payment", "success_url": "http://site/", "expires_at": 2**33,
                "line_items": [
                    {
                        "price_data": {
                            "currency": "usd", "unit_amount": 1, "product_data": {"name": "x"},
                        },
                        "quantity": 1,
                    }
                ],
            }
        )  # fmt: skip


def test_a_page_that_never_was_is_missing(stand: StandIn) -> None:
    assert visit(f"{stand.url}/c/pay/cs_test_nobody").status == 404
    assert visit(f"{stand.url}/setup/link_nobody").status == 404
