"""The only door to Stripe (and to its stand-in, where STRIPE_API_BASE says so).

Everything here is a call over the network: never inside a transaction. What comes back is a
frozen snapshot of what the processor holds to be true, in its minor units (cents).

Raises Unavailable when the processor doesn't answer or is out of order, Missing for an object
that it doesn't know, and a plain MarketError with its own words for what it refuses.
"""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import stripe
from django.conf import settings
from stripe._base_address import BaseAddresses
from stripe.params.checkout import SessionCreateParams

from marketplace.core.errors import Invalid, MarketError, Missing, Unavailable

TOLERANCE_S: Final = 300
"""A webhook's signature is good for so long: a replay later than this is refused."""
_PATIENCE_S: Final = 10
_RETRIES: Final = 2
_TOP_UP: Final = "top_up"


class Forged(Invalid):
    """A webhook that the processor didn't sign, or signed too long ago."""

    code = "forged"


@dataclass(frozen=True)
class Notice:
    """That something happened to an object: its id is all we take a webhook's word for."""

    id: str
    type: str
    subject: str
    payment_intent: str


@dataclass(frozen=True)
class Checkout:
    """A checkout session. `cost` is what the card cost, None until the processor has settled."""

    id: str
    top_up: UUID | None
    status: str
    is_paid: bool
    has_failed: bool
    cents: int
    currency: str
    payment_intent: str
    cost: int | None


@dataclass(frozen=True)
class Withdrawal:
    """One movement on our balance because of a dispute; below 0 where it took money."""

    id: str
    cents: int
    fee: int


@dataclass(frozen=True)
class Dispute:
    id: str
    status: str
    top_up: UUID | None
    currency: str
    withdrawals: tuple[Withdrawal, ...]


def create_checkout(
    top_up: UUID, *, cents: int, email: str, success_url: str, cancel_url: str, until: datetime
) -> tuple[str, str]:
    """A hosted page to pay `cents` on, open `until` then: (session id, address).

    Asked twice for one top-up it answers the same: the idempotency key is the top-up's id.
    """
    about: dict[str, str] = {_TOP_UP: str(top_up)}
    params: SessionCreateParams = {
        "mode": "payment",
        "line_items": [
            {
                "price_data": {
                    "currency": settings.CURRENCY.lower(),
                    "unit_amount": cents,
                    "product_data": {"name": "Gridloom credit"},
                },
                "quantity": 1,
            }
        ],
        "success_url": success_url,
        "cancel_url": cancel_url,
        "expires_at": int(until.timestamp()),
        "client_reference_id": str(top_up),
        "metadata": about,
        "payment_intent_data": {"metadata": about},
    }
    if email:
        params["customer_email"] = email
    with _translated():
        session = _client().v1.checkout.sessions.create(
            params, {"idempotency_key": f"top-up-{top_up}"}
        )
    if session.url is None:
        raise Unavailable("the card processor gave no page to pay on; try again")
    return session.id, session.url


def retrieve_checkout(session_id: str) -> Checkout:
    """The session as it is now, down to what its card has cost."""
    with _translated():
        session = _client().v1.checkout.sessions.retrieve(
            session_id, {"expand": ["payment_intent.latest_charge.balance_transaction"]}
        )
    intent = (
        session.payment_intent if isinstance(session.payment_intent, stripe.PaymentIntent) else None
    )
    return Checkout(
        id=session.id,
        top_up=_top_up(session.metadata),
        status=session.status or "",
        is_paid=session.payment_status == "paid",
        has_failed=intent is not None and intent.status in {"requires_payment_method", "canceled"},
        cents=session.amount_total or 0,
        currency=(session.currency or "").upper(),
        payment_intent=intent.id if intent else "",
        cost=_cost(intent) if intent else None,
    )


def retrieve_dispute(dispute_id: str) -> Dispute:
    """The dispute as it is now, with all it has moved."""
    with _translated():
        dispute = _client().v1.disputes.retrieve(dispute_id, {"expand": ["payment_intent"]})
    intent = dispute.payment_intent
    return Dispute(
        id=dispute.id,
        status=dispute.status,
        top_up=_top_up(intent.metadata) if isinstance(intent, stripe.PaymentIntent) else None,
        currency=dispute.currency.upper(),
        withdrawals=tuple(
            Withdrawal(each.id, each.amount, each.fee) for each in dispute.balance_transactions
        ),
    )


def verify_webhook(payload: bytes, header: str) -> Notice:
    """Checks the signature over the raw body; raises Forged."""
    try:
        stripe.WebhookSignature.verify_header(
            payload.decode(), header, settings.STRIPE_WEBHOOK_SECRET, TOLERANCE_S
        )
        event = json.loads(payload)
        about = event["data"]["object"]
        intent = about.get("payment_intent")
        return Notice(
            id=str(event["id"]),
            type=str(event["type"]),
            # A balance has no id; nothing that we act on lacks one.
            subject=str(about.get("id", "")),
            payment_intent=intent if isinstance(intent, str) else "",
        )
    except (
        stripe.SignatureVerificationError, ValueError, TypeError, LookupError, AttributeError,
    ) as error:  # fmt: skip
        raise Forged(
            f"this is no webhook of the card processor's: {error}. Check STRIPE_WEBHOOK_SECRET"
        ) from error


@functools.cache
def _client_for(key: str, base: str) -> stripe.StripeClient:
    bases: BaseAddresses = (
        {"api": base, "files": base, "connect": base, "meter_events": base} if base else {}
    )
    return stripe.StripeClient(
        key,
        base_addresses=bases,
        max_network_retries=_RETRIES,
        http_client=stripe.RequestsClient(timeout=_PATIENCE_S),
    )


def _client() -> stripe.StripeClient:
    return _client_for(settings.STRIPE_SECRET_KEY, settings.STRIPE_API_BASE)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except stripe.InvalidRequestError as error:
        if error.http_status == 404:
            raise Missing(f"the card processor knows no such thing: {error}") from error
        raise MarketError(f"the card processor refuses: {error}") from error
    except stripe.AuthenticationError as error:
        raise Unavailable(
            "card payments are not set up: the processor refuses our key (STRIPE_SECRET_KEY)"
        ) from error
    except (stripe.APIConnectionError, stripe.APIError, stripe.RateLimitError) as error:
        raise Unavailable(
            "the card processor doesn't answer; nothing was charged, try again"
        ) from error


def _cost(intent: stripe.PaymentIntent) -> int | None:
    charge = intent.latest_charge
    if not isinstance(charge, stripe.Charge):
        return None
    settled = charge.balance_transaction
    return settled.fee if isinstance(settled, stripe.BalanceTransaction) else None


def _top_up(about: "stripe.StripeObject | None") -> UUID | None:
    """Our own mark in an object's metadata; None in one that is not of our making."""
    try:
        return UUID(about[_TOP_UP]) if about is not None and _TOP_UP in about else None
    except ValueError:
        return None
