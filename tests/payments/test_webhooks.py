"""Forged, replayed, late, repeated, shuffled: whatever rings, the ledger ends the same."""

import json
import random
import threading
from datetime import datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client

from marketplace.core.money import MICRO
from marketplace.ledger import services as ledger
from marketplace.ledger.models import Account, Transfer
from marketplace.ledger.services import CASH, wallet
from marketplace.models import Org
from marketplace.payments import services
from marketplace.payments.models import TopUp, WebhookEvent
from tests.payments.doorbell import deliver, event, signed
from tests.stripe_stand_in.process import WEBHOOK_SECRET, Receiver, StandIn, stand_in

Webhooks = list[tuple[bytes, str]]


def start(org: Org, by: User, now: datetime) -> str:
    return services.start_top_up(
        org,
        amount=25 * MICRO,
        by=by,
        success_url="http://site/",
        cancel_url="http://site/",
        now=now,
    )


@pytest.fixture
def paid(stand: StandIn, webhooks: Receiver, buyer: Org, ada: User, now: datetime) -> Webhooks:
    """The webhooks of a payment that nobody has delivered yet."""
    stand.pay(start(buyer, ada, now))
    webhooks.wait_for("charge.updated")
    return list(webhooks.taken)


def books() -> dict[str, Any]:
    """All that the ledger and the top-ups say."""
    assert ledger.imbalance() == 0
    assert ledger.audit() == {}
    return {
        "accounts": sorted(Account.objects.values_list("kind", "owner", "balance"), key=str),
        "transfers": sorted(Transfer.objects.values_list("id", "amount")),
        "top_ups": sorted(TopUp.objects.values_list("pk", "state", "cost")),
    }


def completed(paid: Webhooks) -> tuple[bytes, str]:
    return next(each for each in paid if b'"checkout.session.completed"' in each[0])


def test_the_same_webhook_a_hundred_times_credits_once(
    paid: Webhooks, client: Any, buyer: Org
) -> None:
    for _ in range(100):
        for payload, header in paid:
            assert deliver(client, payload, header).status_code == 200
    assert ledger.balance(wallet(buyer.pk)) == 25 * MICRO
    assert WebhookEvent.objects.count() == len(paid)


def test_in_any_order_and_number_the_books_end_the_same(
    paid: Webhooks, client: Any, buyer: Org
) -> None:
    ends = []
    for seed in range(15):
        dice = random.Random(seed)
        rung = paid + dice.choices(paid, k=2 * len(paid))
        dice.shuffle(rung)
        with transaction.atomic():
            for payload, header in rung:
                assert deliver(client, payload, header).status_code == 200
            ends.append(books())
            transaction.set_rollback(True)
    assert all(end == ends[0] for end in ends)
    assert ("wallet", buyer.pk, 25 * MICRO) in ends[0]["accounts"]


@pytest.mark.parametrize(
    ("payload", "header", "why"),
    [
        (None, "", "No Stripe-Signature"),
        (None, "t=1,v1=abc", "No signatures found"),
        (None, "t=1,v0=abc", "expected scheme"),
        (None, "nonsense", "Unable to extract"),
        (None, "t=é,v1=é", "Unable to extract"),
        (b"\xff\xfe", "t=1,v1=abc", "decode"),
    ],
)
def test_what_the_processor_did_not_sign_is_refused(
    paid: Webhooks, client: Any, payload: bytes | None, header: str, why: str
) -> None:
    answer = deliver(client, payload or completed(paid)[0], header)
    assert answer.status_code == 400
    assert why in answer.json()["message"]
    assert not WebhookEvent.objects.exists()
    assert ledger.balance(CASH) == 0


def test_another_secret_an_altered_body_or_an_old_signature_is_refused(
    paid: Webhooks, client: Any, buyer: Org
) -> None:
    payload, header = completed(paid)
    told = json.loads(payload)
    assert deliver(client, *signed(told, secret="whsec_wrong")).status_code == 400
    assert deliver(client, payload.replace(b"2500", b"9900"), header).status_code == 400
    late = deliver(client, *signed(told, age_s=301))
    assert late.status_code == 400
    assert "outside the tolerance" in late.json()["message"]
    assert deliver(client, *signed(told, age_s=290)).status_code == 200
    assert ledger.balance(wallet(buyer.pk)) == 25 * MICRO


@pytest.mark.parametrize(
    "told", [{}, [], "evt", {"id": "evt_1"}, {"id": "e", "type": "t", "data": {"object": 5}}]
)
def test_a_signed_body_that_is_no_event_is_refused(
    stand: StandIn, db: None, client: Any, told: Any
) -> None:
    assert deliver(client, *signed(told)).status_code == 400


def test_a_webhook_is_not_believed_but_asked_about(
    stand: StandIn, buyer: Org, ada: User, now: datetime, client: Any
) -> None:
    """Even with the secret stolen: the processor says that nothing was paid."""
    start(buyer, ada, now)
    lie = {"id": TopUp.objects.get().checkout_session_id, "payment_status": "paid"}
    answer = deliver(client, *signed(event("checkout.session.completed", lie)))
    assert (answer.status_code, answer.content) == (200, b"not paid yet")
    assert ledger.balance(CASH) == 0


def test_what_the_processor_does_not_know_is_left_alone(
    stand: StandIn, db: None, client: Any
) -> None:
    nobody = {"id": "cs_test_nobody"}
    answer = deliver(client, *signed(event("checkout.session.completed", nobody)))
    assert answer.status_code == 200
    assert "knows no such thing" in WebhookEvent.objects.get().outcome


def test_a_session_that_is_not_of_our_making_credits_nobody(
    stand: StandIn, webhooks: Receiver, buyer: Org, client: Any
) -> None:
    stand.pay(_session(stand, {}))
    webhooks.wait_for("charge.updated")
    for taken in webhooks.taken:
        assert deliver(client, *taken).status_code == 200
    assert ledger.balance(CASH) == 0


@pytest.mark.parametrize("change", [{"unit_amount": 2_501}, {"currency": "eur"}])
def test_another_amount_or_currency_than_asked_for_waits_for_a_person(
    stand: StandIn, webhooks: Receiver, buyer: Org, ada: User, now: datetime, client: Any,
    change: dict[str, Any],
) -> None:  # fmt: skip
    top_up = TopUp.objects.create(
        org=buyer, amount=25 * MICRO, created_by=ada, created_at=now, state="open", state_since=now
    )
    stand.pay(_session(stand, {"top_up": str(top_up.pk)}, **change))
    webhooks.wait_for("charge.updated")
    for taken in webhooks.taken:
        deliver(client, *taken)
    outcome = WebhookEvent.objects.get(type="checkout.session.completed").outcome
    assert outcome == "paid with another amount or currency"
    assert ledger.balance(CASH) == 0


def test_a_payment_that_is_quicker_than_our_own_note_of_it_is_credited(
    stand: StandIn, webhooks: Receiver, buyer: Org, ada: User, now: datetime, client: Any
) -> None:
    top_up = TopUp.objects.create(
        org=buyer, amount=25 * MICRO, created_by=ada, created_at=now, state="open", state_since=now
    )
    stand.pay(_session(stand, {"top_up": str(top_up.pk)}))
    webhooks.wait_for("charge.updated")
    for taken in webhooks.taken:
        deliver(client, *taken)
    assert ledger.balance(wallet(buyer.pk)) == 25 * MICRO


def test_only_posts_are_heard_and_they_need_no_csrf_token(paid: Webhooks, settings: Any) -> None:
    strict = Client(enforce_csrf_checks=True)
    assert strict.get("/stripe/webhook").status_code == 405
    assert deliver(strict, *completed(paid)).status_code == 200


def test_a_webhook_says_when_it_wants_to_be_rung_again(
    paid: Webhooks, client: Any, settings: Any, buyer: Org
) -> None:
    payload, header = completed(paid)
    base, settings.STRIPE_API_BASE = settings.STRIPE_API_BASE, "http://127.0.0.1:9"
    assert deliver(client, payload, header).status_code == 503
    assert WebhookEvent.objects.get().applied_at is None
    settings.STRIPE_API_BASE = base
    assert deliver(client, payload, header).status_code == 200
    assert WebhookEvent.objects.get().outcome == "credited"


@pytest.mark.django_db(transaction=True)
def test_many_deliveries_at_once_credit_once(
    stand: StandIn, webhooks: Receiver, buyer: Org, ada: User, now: datetime
) -> None:
    stand.pay(start(buyer, ada, now))
    webhooks.wait_for("charge.updated")
    statuses: list[int] = []
    barrier = threading.Barrier(8)

    def ring(seed: int) -> None:
        rung = list(webhooks.taken) * 3
        random.Random(seed).shuffle(rung)
        barrier.wait()
        statuses.extend(deliver(Client(), *taken).status_code for taken in rung)
        services.settle_pending(now=now)
        connection.close()

    threads = [threading.Thread(target=ring, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    assert ledger.balance(wallet(buyer.pk)) == 25 * MICRO
    books()


@pytest.mark.django_db(transaction=True)
def test_the_processor_itself_rings_until_the_money_is_in_the_wallet(
    live_server: Any, tmp_path: Any, settings: Any, buyer: Org, ada: User, now: datetime
) -> None:
    """Nobody in between: the stand-in's webhook reaches the site, which asks it back."""
    settings.STRIPE_SECRET_KEY = "sk_test_of_the_stand_in"
    settings.STRIPE_WEBHOOK_SECRET = WEBHOOK_SECRET
    with stand_in(tmp_path, f"{live_server.url}/stripe/webhook") as stand:
        settings.STRIPE_API_BASE = stand.url
        stand.pay(start(buyer, ada, now))
        heard = stand.wait_until_heard("charge.updated")
    assert heard
    assert ledger.balance(wallet(buyer.pk)) == 25 * MICRO
    assert TopUp.objects.get().cost == 1_030_000


def _session(stand: StandIn, metadata: dict[str, str], **price: Any) -> str:
    made = stand.client.checkout.sessions.create(
        {
            "mode": "payment", "success_url": "http://site/", "metadata": metadata,
            "line_items": [
                {
                    "price_data": {
                        "currency": "usd", "unit_amount": 2_500,
                        "product_data": {"name": "Credit"}, **price,
                    },
                    "quantity": 1,
                }
            ],
        }
    )  # fmt: skip
    return str(made.url)
