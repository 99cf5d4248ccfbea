"""Test cards, payment methods, customers."""

import re
from dataclasses import dataclass
from typing import Final

from marketplace.devstack.stripe_stand_in.calls import (
    LISTING,
    Call,
    Route,
    listing,
    retrieve,
    route,
)
from marketplace.devstack.stripe_stand_in.errors import StripeError, missing
from marketplace.devstack.stripe_stand_in.events import emit
from marketplace.devstack.stripe_stand_in.store import Doc, new_id


@dataclass(frozen=True)
class Card:
    """A test card and what will become of a charge to it (Stripe's own numbers)."""

    number: str
    brand: str = "visa"
    decline: str = ""
    """Stripe's decline code; empty for a card that pays."""
    disputed: bool = False
    """Its owner will dispute the charge as fraudulent."""
    at_once: bool = False
    """The money is available at once."""


_CARDS: Final = {
    "pm_card_visa": Card("4242424242424242"),
    "pm_card_mastercard": Card("5555555555554444", "mastercard"),
    "pm_card_bypassPending": Card("4000000000000077", at_once=True),
    "pm_card_createDispute": Card("4000000000000259", disputed=True),
    "pm_card_visa_chargeDeclined": Card("4000000000000002", decline="generic_decline"),
    "pm_card_visa_chargeDeclinedInsufficientFunds": Card(
        "4000000000009995", decline="insufficient_funds"
    ),
    "pm_card_chargeDeclinedExpiredCard": Card("4000000000000069", decline="expired_card"),
}
_BY_NUMBER: Final = {card.number: card for card in _CARDS.values()}
_REASONS: Final = {
    "generic_decline": "Your card was declined.",
    "insufficient_funds": "Your card has insufficient funds.",
    "expired_card": "Your card has expired.",
}
_ADDRESS: Final[Doc] = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"))


def card_of_number(text: str) -> Card:
    """Raises StripeError for a number that is no test card: this is no place for a real one."""
    number = re.sub(r"[\s-]", "", text)
    if number not in _BY_NUMBER:
        raise StripeError(
            "This is a test stand-in: use a test card such as 4242 4242 4242 4242.",
            code="incorrect_number",
            param="number",
            status=402,
            kind="card_error",
        )
    return _BY_NUMBER[number]


def card_of(call: Call, method: Doc) -> Card:
    """The test card behind a payment method."""
    return _BY_NUMBER[call.store.private(method["id"])["number"]]


def declined(card: Card, charge: str) -> StripeError:
    """The error for a charge that the bank refused."""
    expired = card.decline == "expired_card"
    return StripeError(
        _REASONS[card.decline],
        code=card.decline if expired else "card_declined",
        status=402,
        kind="card_error",
        decline_code=card.decline,
        charge=charge,
    )


def method_of_token(call: Call, token: str) -> Doc:
    """A new payment method from one of Stripe's test tokens, or the one with that id."""
    if token in _CARDS:
        return new_method(call, _CARDS[token])
    if token.startswith("pm_card_"):
        raise missing("PaymentMethod", token)
    return call.find("payment_method", token)


def new_method(call: Call, card: Card, *, name: str | None = None) -> Doc:
    doc: Doc = {
        "id": new_id("pm"),
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": billing(name=name),
        "card": {
            **_face(card, call.now),
            "checks": _CHECKS,
            "display_brand": card.brand,
            "generated_from": None,
            "networks": {"available": [card.brand], "preferred": None},
            "regulated_status": "unregulated",
            "three_d_secure_usage": {"supported": True},
            "wallet": None,
        },
        "created": call.now,
        "customer": None,
        "customer_account": None,
        "livemode": False,
        "metadata": {},
        "type": "card",
    }
    return call.put(doc, private={"number": card.number})


def billing(*, name: str | None = None, email: str | None = None) -> Doc:
    return {"address": _ADDRESS, "email": email, "name": name, "phone": None, "tax_id": None}


def details_of_charge(card: Card, amount: int, now: int) -> Doc:
    """A charge's `payment_method_details`."""
    return {
        "card": {
            **_face(card, now),
            "amount_authorized": None if card.decline else amount,
            "authorization_code": None if card.decline else "123456",
            "checks": _CHECKS,
            "extended_authorization": {"status": "disabled"},
            "incremental_authorization": {"status": "unavailable"},
            "installments": None,
            "mandate": None,
            "multicapture": {"status": "unavailable"},
            "network": card.brand,
            "network_token": {"used": False},
            "network_transaction_id": "100200300400500",
            "overcapture": {"maximum_amount_capturable": amount, "status": "unavailable"},
            "regulated_status": "unregulated",
            "three_d_secure": None,
            "wallet": None,
        },
        "type": "card",
    }


_CHECKS: Final[Doc] = {
    "address_line1_check": None, "address_postal_code_check": None, "cvc_check": "pass",
}  # fmt: skip


def _face(card: Card, now: int) -> Doc:
    return {
        "brand": card.brand,
        "country": "US",
        "exp_month": 12,
        "exp_year": 1970 + now // 31_557_600 + 3,
        "fingerprint": f"standin{card.number[-9:]}",
        "funding": "credit",
        "last4": card.number[-4:],
    }


def _create_customer(call: Call) -> Doc:
    doc: Doc = {
        "id": new_id("cus", 14),
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": call.now,
        "currency": None,
        "customer_account": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "invoice_prefix": new_id("x", 8)[2:].upper(),
        "invoice_settings": {
            "custom_fields": None, "default_payment_method": None, "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }  # fmt: skip
    call.put(_written(call, doc))
    emit(call, "customer.created", doc)
    return doc


def _update_customer(call: Call) -> Doc:
    doc = call.find("customer", call.args[0])
    before = {name: doc[name] for name in (*_SAID, "metadata")}
    call.put(_written(call, doc))
    emit(call, "customer.updated", doc, before=before)
    return doc


_SAID: Final = ("name", "email", "phone", "description")


def _written(call: Call, doc: Doc) -> Doc:
    for name in _SAID:
        if name in call.params:
            doc[name] = call.params.optional(name)
    doc["metadata"] = call.params.metadata(doc["metadata"])
    return doc


_CUSTOMER: Final = f"{' '.join(_SAID)} metadata"
ROUTES: Final[tuple[Route, ...]] = (
    route("POST", "/v1/customers", _create_customer, _CUSTOMER),
    route(
        "GET", "/v1/customers", listing("customer", "/v1/customers", "email"), f"{LISTING} email"
    ),
    route("GET", "/v1/customers/{}", retrieve("customer")),
    route("POST", "/v1/customers/{}", _update_customer, _CUSTOMER),
    route("GET", "/v1/payment_methods/{}", retrieve("payment_method")),
)
