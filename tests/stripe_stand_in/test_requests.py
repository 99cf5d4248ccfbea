"""The manners of the API: keys, idempotency, lists, expansion, errors, restarts."""

import threading
from pathlib import Path
from typing import Any

import pytest
import stripe

from tests.stripe_stand_in.process import StandIn, client_of, stand_in, visit

PAY = {"amount": 700, "currency": "usd", "confirm": True, "payment_method": "pm_card_visa"}


def test_a_wrong_key_is_refused(stand: StandIn) -> None:
    with pytest.raises(stripe.AuthenticationError, match="Invalid API Key"):
        client_of(stand.url, "sk_test_wrong").balance.retrieve()


def test_the_same_idempotency_key_pays_once_and_answers_twice(client: Any) -> None:
    once = {"idempotency_key": "top-up-1"}
    first = client.payment_intents.create(PAY, options=once)
    again = client.payment_intents.create(PAY, options=once)
    assert again.id == first.id
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert len(client.charges.list().data) == 1


def test_an_idempotency_key_with_other_parameters_is_an_error(client: Any) -> None:
    once = {"idempotency_key": "top-up-1"}
    client.payment_intents.create(PAY, options=once)
    with pytest.raises(stripe.IdempotencyError, match="same parameters"):
        client.payment_intents.create({**PAY, "amount": 800}, options=once)
    assert len(client.charges.list().data) == 1


def test_a_declined_card_is_declined_again_on_replay(client: Any) -> None:
    once = {"idempotency_key": "top-up-1"}
    for _ in range(2):
        with pytest.raises(stripe.CardError) as caught:
            client.payment_intents.create(
                {**PAY, "payment_method": "pm_card_visa_chargeDeclined"}, options=once
            )
        assert caught.value.code == "card_declined"
    assert [charge.status for charge in client.charges.list().data] == ["failed"]


def test_a_request_that_was_wrong_in_itself_may_reuse_its_key(client: Any) -> None:
    once = {"idempotency_key": "top-up-1"}
    with pytest.raises(stripe.InvalidRequestError):
        client.payment_intents.create({**PAY, "customer": "cus_nobody"}, options=once)
    assert client.payment_intents.create(PAY, options=once).status == "succeeded"


def test_many_requests_at_once_with_one_key_pay_once(client: Any) -> None:
    ids: list[str] = []

    def pay() -> None:
        made = client.payment_intents.create(PAY, options={"idempotency_key": "one"})
        ids.append(made.id)

    threads = [threading.Thread(target=pay) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 16
    assert len(set(ids)) == 1


def test_a_list_pages_through_everything_once_newest_first(client: Any) -> None:
    made = [client.customers.create({"name": f"Customer {n}"}).id for n in range(25)]
    pages = client.customers.list({"limit": 10}).auto_paging_iter()
    assert [customer.id for customer in pages] == made[::-1]
    backwards = client.customers.list({"limit": 3, "ending_before": made[10]})
    assert [customer.id for customer in backwards.data] == [made[13], made[12], made[11]]


def test_a_list_is_filtered(client: Any) -> None:
    client.customers.create({"email": "ada@example.org"})
    bob = client.customers.create({"email": "bob@example.org"})
    found = client.customers.list({"email": "bob@example.org", "created": {"gte": 1}})
    assert [customer.id for customer in found.data] == [bob.id]
    assert client.customers.list({"created": {"lt": 1}}).data == []


def test_ids_are_expanded_down_to_the_balance_transaction(client: Any) -> None:
    made = client.payment_intents.create(PAY)
    client.refunds.create({"payment_intent": made.id, "amount": 1})
    deep = {"expand": ["latest_charge.balance_transaction", "payment_method"]}
    found = client.payment_intents.retrieve(made.id, deep)
    assert found.latest_charge.balance_transaction.fee == 50  # 2.9 % of 7.00 and 0.30
    assert found.payment_method.card.last4 == "4242"
    listed = client.payment_intents.list({"expand": ["data.latest_charge"]})
    assert listed.data[0].latest_charge.id == found.latest_charge.id


@pytest.mark.parametrize("path", ["colour", "amount.colour", "latest_charge.amount"])
def test_what_is_no_object_is_not_expanded(client: Any, path: str) -> None:
    made = client.payment_intents.create(PAY)
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        client.payment_intents.retrieve(made.id, {"expand": [path]})


@pytest.mark.parametrize(
    ("changed", "code", "param"),
    [
        ({"colour": "red"}, "parameter_unknown", "colour"),
        ({"amount": "many"}, "parameter_invalid_integer", "amount"),
        ({"amount": -1}, "parameter_invalid_integer", "amount"),
        ({"amount": 100_000_000}, "amount_too_large", "amount"),
        ({"amount": ""}, "parameter_missing", "amount"),
        ({"currency": "xyz"}, None, "currency"),
        ({"customer": "cus_nobody"}, "resource_missing", "id"),
        ({"payment_method": "pm_card_nobody"}, "resource_missing", "id"),
    ],
)
def test_a_wrong_parameter_is_named(
    client: Any, changed: dict[str, Any], code: str | None, param: str
) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.payment_intents.create({**PAY, **changed})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert client.charges.list().data == []


def test_what_is_not_there_is_missing(client: Any, stand: StandIn) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="No such payment intent: 'pi_1'"):
        client.payment_intents.retrieve("pi_1")
    with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL"):
        client.subscriptions.list()
    assert visit(f"{stand.url}/nowhere").status == 404
    assert visit(f"{stand.url}/healthz").text == "ok"


def test_what_was_paid_survives_a_restart(tmp_path: Path) -> None:
    with stand_in(tmp_path) as first:
        made = first.client.payment_intents.create(PAY)
    with stand_in(tmp_path) as second:
        assert second.client.payment_intents.retrieve(made.id).status == "succeeded"
        # The timer that settles the charge survived as well.
        second.client.refunds.create({"payment_intent": made.id})
        balance = second.client.balance.retrieve()
        assert balance.available[0].amount + balance.pending[0].amount == -50
