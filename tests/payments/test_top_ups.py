"""A buyer brings money in by card."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User

from marketplace.core.errors import Conflict, Invalid, Unavailable
from marketplace.core.money import MICRO
from marketplace.ledger import services as ledger
from marketplace.ledger.services import CASH, PROCESSOR_FEES, wallet
from marketplace.models import Org
from marketplace.payments import services
from marketplace.payments.models import TopUp, WebhookEvent
from tests.payments.doorbell import deliver
from tests.stripe_stand_in.process import Receiver, StandIn

StartStand = Callable[..., AbstractContextManager[StandIn]]
LATER = timedelta(minutes=10)


def start(org: Org, by: User, now: datetime, amount: int = 25 * MICRO) -> str:
    return services.start_top_up(
        org,
        amount=amount,
        by=by,
        success_url="http://site/done",
        cancel_url="http://site/",
        now=now,
    )


def test_a_card_payment_is_in_the_wallet_once_its_webhook_has_come(
    stand: StandIn, webhooks: Receiver, client: Any, buyer: Org, ada: User, now: datetime
) -> None:
    url = start(buyer, ada, now)
    assert ledger.balance(wallet(buyer.pk)) == 0
    assert stand.pay(url).location == "http://site/done"
    webhooks.wait_for("charge.updated")
    for payload, header in webhooks.taken:
        assert deliver(client, payload, header).status_code == 200
    assert ledger.balance(wallet(buyer.pk)) == 25 * MICRO
    assert ledger.balance(PROCESSOR_FEES) == -1_030_000  # 2.9 % and 0.30
    top_up = TopUp.objects.of(buyer).get()
    assert (top_up.state, top_up.cost) == ("credited", 1_030_000)
    assert [line.event for line in top_up.story()] == ["credit"]
    assert ledger.imbalance() == 0
    assert ledger.audit() == {}


def test_the_page_knows_the_buyer_and_the_amount(
    stand: StandIn, buyer: Org, ada: User, now: datetime
) -> None:
    start(buyer, ada, now, amount=1_234_560_000)
    session = stand.client.checkout.sessions.list({"limit": 1}).data[0]
    top_up = TopUp.objects.get()
    assert (session.amount_total, session.currency) == (123_456, "usd")
    assert session.customer_email == "ada@example.org"
    assert session.metadata.to_dict() == {"top_up": str(top_up.pk)}
    assert session.id == top_up.checkout_session_id


def test_a_declined_card_brings_nothing_and_the_next_one_may(
    stand: StandIn, webhooks: Receiver, client: Any, buyer: Org, ada: User, now: datetime
) -> None:
    url = start(buyer, ada, now)
    stand.pay(url, "4000000000000002")
    webhooks.wait_for("payment_intent.payment_failed")
    for payload, header in list(webhooks.taken):
        deliver(client, payload, header)
    assert ledger.balance(CASH) == 0
    stand.pay(url)
    webhooks.wait_for("charge.updated")
    for payload, header in webhooks.taken:
        deliver(client, payload, header)
    assert ledger.balance(wallet(buyer.pk)) == 25 * MICRO


def test_what_the_card_cost_is_written_down_when_it_is_known(
    start_stand: StartStand, buyer: Org, ada: User, now: datetime
) -> None:
    with start_stand("", "--settle-s", "3600") as slow:
        slow.pay(start(buyer, ada, now))
        assert services.settle_pending(now=now + LATER) == 1
        assert ledger.balance(wallet(buyer.pk)) == 25 * MICRO
        assert ledger.balance(PROCESSOR_FEES) == 0
        # Nothing new: asked again, and in vain.
        assert services.settle_pending(now=now + LATER) == 0
        intent = TopUp.objects.get().payment_intent_id
        slow.client.refunds.create({"payment_intent": intent, "amount": 1})  # settles the charge
        assert services.settle_pending(now=now + LATER) == 1
    assert ledger.balance(PROCESSOR_FEES) == -1_030_000
    assert services.settle_pending(now=now + LATER) == 0


def test_a_webhook_that_was_lost_is_swept_up(
    stand: StandIn, webhooks: Receiver, buyer: Org, ada: User, now: datetime
) -> None:
    stand.pay(start(buyer, ada, now))
    webhooks.wait_for("charge.updated")
    # The webhook is given its minute first.
    assert services.settle_pending(now=now + timedelta(seconds=30)) == 0
    assert services.settle_pending(now=now + LATER) == 1
    assert services.settle_pending(now=now + LATER) == 0
    assert ledger.balance(wallet(buyer.pk)) == 25 * MICRO
    assert WebhookEvent.objects.count() == 0


def test_a_webhook_that_could_not_be_acted_on_is_swept_up(
    start_stand: StartStand, webhooks: Receiver, client: Any, buyer: Org, ada: User, now: datetime
) -> None:
    with start_stand(webhooks.url) as first:
        first.pay(start(buyer, ada, now))
        webhooks.wait_for("charge.updated")
    answers = {deliver(client, *taken).status_code for taken in webhooks.taken}
    assert answers == {200, 503}  # what needs no question was taken
    assert ledger.balance(CASH) == 0
    assert services.settle_pending(now=now + LATER) == 0
    with start_stand():
        assert services.settle_pending(now=now + LATER) >= 1
    assert not WebhookEvent.objects.filter(applied_at=None).exists()
    assert ledger.balance(wallet(buyer.pk)) == 25 * MICRO


def test_a_page_left_unpaid_expires(
    stand: StandIn, webhooks: Receiver, client: Any, buyer: Org, ada: User, now: datetime
) -> None:
    url = start(buyer, ada, now)
    top_up = TopUp.objects.get()
    assert services.settle_pending(now=now + LATER) == 0
    stand.client.checkout.sessions.expire(top_up.checkout_session_id)
    webhooks.wait_for("checkout.session.expired")
    for taken in webhooks.taken:
        deliver(client, *taken)
    top_up.refresh_from_db()
    assert top_up.state == "expired"
    assert stand.pay(url).status == 400
    assert ledger.balance(CASH) == 0


@pytest.mark.parametrize(
    "amount",
    [0, -1, MICRO - 1, 100_000 * MICRO + 10_000, 1_005_000, 2**80, True, 1.5, float("nan"), "25"],
)
def test_an_amount_that_no_card_pays_is_refused(
    stand: StandIn, buyer: Org, ada: User, now: datetime, amount: Any
) -> None:
    with pytest.raises(Invalid) as caught:
        start(buyer, ada, now, amount=amount)
    assert caught.value.field == "amount"
    assert not TopUp.objects.exists()


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "0.99", "100000.01", "1.005", "NaN", "inf", "1e3", "ten", "１e1"]
)
def test_an_amount_that_is_written_wrong_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        services.parse_top_up(text)
    assert caught.value.field == "amount"


@pytest.mark.parametrize(
    ("text", "micros"), [("1", MICRO), ("25.5", 25_500_000), ("100000", 100_000 * MICRO)]
)
def test_an_amount_is_read_exactly(text: str, micros: int) -> None:
    assert services.parse_top_up(text) == micros


def test_without_the_processor_nothing_is_left_waiting(
    buyer: Org, ada: User, now: datetime
) -> None:
    with pytest.raises(Unavailable, match="nothing was charged, try again"):
        start(buyer, ada, now)
    assert TopUp.objects.get().state == "expired"


def test_a_key_that_the_processor_refuses_is_named(
    stand: StandIn, settings: Any, buyer: Org, ada: User, now: datetime
) -> None:
    settings.STRIPE_SECRET_KEY = "sk_test_wrong"
    with pytest.raises(Unavailable, match="STRIPE_SECRET_KEY"):
        start(buyer, ada, now)


def test_a_top_up_that_died_before_its_page_expires_by_itself(
    stand: StandIn, buyer: Org, ada: User, now: datetime
) -> None:
    top_up = TopUp.objects.create(
        org=buyer, amount=MICRO, created_by=ada, created_at=now, state="open", state_since=now
    )
    assert services.settle_pending(now=now + LATER) == 0
    assert services.settle_pending(now=now + timedelta(hours=2)) == 1
    top_up.refresh_from_db()
    assert top_up.state == "expired"


def test_one_payment_that_cannot_be_settled_does_not_hold_up_the_others(
    stand: StandIn, webhooks: Receiver, buyer: Org, ada: User, now: datetime
) -> None:
    TopUp.objects.create(
        org=buyer, amount=MICRO, created_by=ada, created_at=now, state="open", state_since=now,
        checkout_session_id="cs_test_of_another_account",
    )  # fmt: skip
    stand.pay(start(buyer, ada, now))
    webhooks.wait_for("charge.updated")
    assert services.settle_pending(now=now + LATER) == 1
    assert ledger.balance(wallet(buyer.pk)) == 25 * MICRO


def test_an_org_has_only_so_many_top_ups_open(
    stand: StandIn, buyer: Org, ada: User, now: datetime
) -> None:
    for _ in range(10):
        start(buyer, ada, now)
    with pytest.raises(Conflict, match="has 10 top-ups that wait to be paid.*closes after 60"):
        start(buyer, ada, now)
    other = Org.objects.create(name="Elsewhere", slug="elsewhere", created_at=now)
    start(other, ada, now)
    TopUp.objects.of(buyer).earliest("created_at").advance("expire", now=now, reason="left")
    start(buyer, ada, now)


def test_a_sweep_asks_about_each_once_the_oldest_first_whatever_stays_open(
    stand: StandIn, buyer: Org, ada: User, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_SLICE", 2)
    asked: list[str] = []
    really = services.gateway.retrieve_checkout

    def ask(session: str) -> Any:
        asked.append(session)
        return really(session)

    monkeypatch.setattr(services.gateway, "retrieve_checkout", ask)
    # Two are of the same moment, across the end of a slice.
    for age in (5, 4, 4, 2, 1):
        start(buyer, ada, now - timedelta(minutes=age))
    assert services.settle_pending(now=now + LATER) == 0
    known = TopUp.objects.of(buyer).order_by("created_at", "pk")
    assert asked == [top_up.checkout_session_id for top_up in known]
