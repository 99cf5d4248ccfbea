"""Charges: made by an intent, settled a moment later, refunded in parts or whole."""

from typing import Final

from marketplace.devstack.stripe_stand_in.balance import card_fee, record
from marketplace.devstack.stripe_stand_in.calls import (
    LISTING,
    Call,
    Route,
    listing,
    retrieve,
    route,
)
from marketplace.devstack.stripe_stand_in.cards import (
    Card,
    billing,
    card_of,
    declined,
    details_of_charge,
)
from marketplace.devstack.stripe_stand_in.errors import StripeError, missing_parameter
from marketplace.devstack.stripe_stand_in.events import emit
from marketplace.devstack.stripe_stand_in.store import Doc, new_id

_REFUND_REASONS: Final = {"duplicate", "fraudulent", "requested_by_customer"}


def charge(call: Call, intent: Doc, method: Doc) -> tuple[Doc, StripeError | None]:
    """Charges the intent's amount to the method; the error is the bank's no.

    A charge that worked has no balance transaction yet: as with Stripe's `automatic_async`
    capture, `charge.updated` announces it a moment later.
    """
    card = card_of(call, method)
    doc = _new_charge(call, intent, method, card)
    call.put(doc)
    if card.decline:
        emit(call, "charge.failed", doc)
        return doc, declined(card, doc["id"])
    emit(call, "charge.succeeded", doc)
    call.store.later(call.now + call.config.settle_s, "settle_charge", doc["id"])
    return doc, None


def settle(call: Call, pk: str) -> Doc:
    """The money of a charge arrives on the balance, less the fee."""
    doc = call.find("charge", pk)
    card = card_of(call, call.find("payment_method", doc["payment_method"]))
    doc["balance_transaction"] = record(
        call, "charge", doc, doc["amount"], fee=card_fee(doc["amount"]),
        available_on=0 if card.at_once else call.now + call.config.available_s,
    )  # fmt: skip
    call.put(doc)
    emit(call, "charge.updated", doc, before={"balance_transaction": None})
    if card.disputed:
        call.store.later(call.now, "dispute_charge", pk)
    return doc


def _new_charge(call: Call, intent: Doc, method: Doc, card: Card) -> Doc:
    paid = not card.decline
    pk = new_id("ch")
    return {
        "id": pk,
        "object": "charge",
        **dict.fromkeys(_UNUSED),
        "amount": intent["amount"],
        "amount_captured": intent["amount"] if paid else 0,
        "amount_refunded": 0,
        "billing_details": method.get("billing_details") or billing(),
        "calculated_statement_descriptor": "STAND-IN",
        "captured": paid,
        "created": call.now,
        "currency": intent["currency"],
        "customer": intent["customer"],
        "description": intent["description"],
        "disputed": False,
        "failure_code": None if paid else "card_declined",
        "failure_message": None if paid else str(declined(card, pk)),
        "fraud_details": {},
        "livemode": False,
        "metadata": intent["metadata"],
        "outcome": _outcome(card),
        "paid": paid,
        "payment_intent": intent["id"],
        "payment_method": method["id"],
        "payment_method_details": details_of_charge(card, intent["amount"], call.now),
        "receipt_email": intent["receipt_email"],
        "refunded": False,
        "status": "succeeded" if paid else "failed",
        "transfer_group": intent["transfer_group"],
    }


# Fields that Stripe has and a plain card payment leaves null.
_UNUSED: Final = (
    "application", "application_fee", "application_fee_amount", "balance_transaction",
    "failure_balance_transaction", "on_behalf_of", "receipt_number", "receipt_url", "review",
    "shipping", "source", "source_transfer", "statement_descriptor",
    "statement_descriptor_suffix", "transfer_data",
)  # fmt: skip


def _outcome(card: Card) -> Doc:
    return {
        "advice_code": None,
        "network_advice_code": None,
        "network_decline_code": "05" if card.decline else None,
        "network_status": "declined_by_network" if card.decline else "approved_by_network",
        "reason": card.decline or None,
        "risk_level": "normal",
        "risk_score": 20,
        "seller_message": "The bank declined." if card.decline else "Payment complete.",
        "type": "issuer_declined" if card.decline else "authorized",
    }


def _create_refund(call: Call) -> Doc:
    params = call.params
    charged = _charge_to_refund(call)
    left = charged["amount"] - charged["amount_refunded"]
    if not charged["paid"] or charged["disputed"] or not left:
        what = "has been disputed" if charged["disputed"] else "has already been refunded"
        raise StripeError(
            f"Charge {charged['id']} {what}.", code="charge_already_refunded", param="charge"
        )
    amount = params.integer("amount", least=1) if "amount" in params else left
    if amount > left:
        raise StripeError(
            f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})",
            code="amount_too_large",
            param="amount",
        )
    reason = params.optional("reason")
    if reason and reason not in _REFUND_REASONS:
        raise StripeError(f"Invalid reason: {reason}", param="reason")
    return _refund(call, charged, amount, reason)


def _charge_to_refund(call: Call) -> Doc:
    if "charge" in call.params:
        return call.find("charge", call.params.required("charge"))
    if "payment_intent" not in call.params:
        raise missing_parameter("payment_intent")
    intent = call.find("payment_intent", call.params.required("payment_intent"))
    if intent["status"] != "succeeded":
        raise StripeError(
            f"This PaymentIntent ({intent['id']}) does not have a successful charge to refund.",
            code="payment_intent_unexpected_state",
            param="payment_intent",
        )
    return call.find("charge", intent["latest_charge"])


def _refund(call: Call, charged: Doc, amount: int, reason: str | None) -> Doc:
    if charged["balance_transaction"] is None:
        charged = settle(call, charged["id"])
    doc: Doc = {
        "id": new_id("re"),
        "object": "refund",
        "amount": amount,
        "balance_transaction": None,
        "charge": charged["id"],
        "created": call.now,
        "currency": charged["currency"],
        "destination_details": {
            "card": {
                "reference_status": "pending", "reference_type": "acquirer_reference_number",
                "type": "refund",
            },
            "type": "card",
        },
        "metadata": call.params.metadata(),
        "payment_intent": charged["payment_intent"],
        "reason": reason,
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": "succeeded",
        "transfer_reversal": None,
    }  # fmt: skip
    doc["balance_transaction"] = record(call, "refund", doc, -amount)
    call.put(doc)
    charged["amount_refunded"] += amount
    charged["refunded"] = charged["amount_refunded"] == charged["amount"]
    call.put(charged)
    emit(call, "refund.created", doc)
    emit(call, "charge.refunded", charged)
    return doc


def _settle_once(call: Call, pk: str) -> None:
    # A refund may have been quicker than the timer.
    if call.find("charge", pk)["balance_transaction"] is None:
        settle(call, pk)


TIMERS: Final = {"settle_charge": _settle_once}
ROUTES: Final[tuple[Route, ...]] = (
    route(
        "GET", "/v1/charges", listing("charge", "/v1/charges", "customer", "payment_intent"),
        f"{LISTING} customer payment_intent",
    ),
    route("GET", "/v1/charges/{}", retrieve("charge")),
    route(
        "POST", "/v1/refunds", _create_refund, "charge payment_intent amount reason metadata"
    ),
    route(
        "GET", "/v1/refunds", listing("refund", "/v1/refunds", "charge", "payment_intent"),
        f"{LISTING} charge payment_intent",
    ),
    route("GET", "/v1/refunds/{}", retrieve("refund")),
)  # fmt: skip
