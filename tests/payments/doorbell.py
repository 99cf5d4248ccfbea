"""Ringing the site's door, as the processor does, or as somebody who only says so."""

import json
import time
from typing import Any

import stripe

from tests.stripe_stand_in.process import WEBHOOK_SECRET


def deliver(client: Any, payload: bytes, header: str) -> Any:
    """Posts a webhook as it was sent."""
    return client.post(
        "/stripe/webhook", payload, content_type="application/json",
        headers={"Stripe-Signature": header},
    )  # fmt: skip


def signed(
    event: dict[str, Any], *, secret: str = WEBHOOK_SECRET, age_s: int = 0
) -> tuple[bytes, str]:
    """(payload, header) as the processor would sign that event `age_s` ago."""
    text = json.dumps(event)
    made = int(time.time()) - age_s
    header = stripe.WebhookSignature.generate_signature_header(text, secret, made)
    return text.encode(), header


def event(kind: str, about: dict[str, Any], pk: str = "evt_1") -> dict[str, Any]:
    """An event as far as we read one."""
    return {"id": pk, "object": "event", "type": kind, "data": {"object": about}}
