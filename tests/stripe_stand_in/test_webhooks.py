"""Webhooks: signed, repeated until taken, and the same to be read from the API."""

import json
from pathlib import Path
from typing import Any

import pytest
import stripe

from tests.stripe_stand_in.process import (
    WEBHOOK_SECRET,
    Receiver,
    StandIn,
    receiver,
    stand_in,
)


def test_a_webhook_is_signed_with_the_secret(client: Any, webhooks: Receiver) -> None:
    client.customers.create()
    webhooks.wait_for("customer.created")
    payload, header = webhooks.taken[0]
    assert stripe.Webhook.construct_event(payload, header, WEBHOOK_SECRET)
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(payload, header, "whsec_another")
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(payload + b" ", header, WEBHOOK_SECRET)


def test_a_webhook_that_is_not_taken_comes_again(client: Any, webhooks: Receiver) -> None:
    webhooks.status = 500
    made = client.customers.create()
    webhooks.wait(lambda events: len(events) >= 3)
    webhooks.status = 200
    repeated = webhooks.wait(lambda events: len(events) >= 4)
    assert {event["data"]["object"]["id"] for event in repeated} == {made.id}
    assert len({event["id"] for event in repeated}) == 1


def test_a_webhook_waits_for_a_receiver_that_was_away(tmp_path: Path) -> None:
    with receiver() as away:
        url = away.url
    with stand_in(tmp_path, url) as first:
        made = first.client.customers.create()
    with receiver() as back, stand_in(tmp_path, back.url):
        assert back.wait_for("customer.created")["data"]["object"]["id"] == made.id


def test_the_events_are_there_to_be_read(stand: StandIn, client: Any, webhooks: Receiver) -> None:
    client.customers.create({"name": "Ada"})
    told = webhooks.wait_for("customer.created")
    read = client.events.retrieve(told["id"])
    assert json.loads(str(read.data.object)) == told["data"]["object"]
    listed = client.events.list({"type": "customer.created"})
    assert [event.id for event in listed.data] == [told["id"]]
    assert client.events.list({"type": "payout.paid"}).data == []
