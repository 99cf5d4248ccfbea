"""Disputes: the card's owner wants the money back, and the bank takes it until it is settled."""

from typing import Final

from marketplace.devstack.stripe_stand_in.balance import record
from marketplace.devstack.stripe_stand_in.calls import (
    LISTING,
    Call,
    Route,
    listing,
    retrieve,
    route,
)
from marketplace.devstack.stripe_stand_in.errors import StripeError
from marketplace.devstack.stripe_stand_in.events import emit
from marketplace.devstack.stripe_stand_in.store import Doc, new_id

_FEE: Final = 1500
_DAYS_TO_ANSWER_S: Final = 9 * 24 * 3600
# Stripe's own test values for `evidence[uncategorized_text]`.
_VERDICTS: Final = {"winning_evidence": "won", "losing_evidence": "lost"}
_EVIDENCE: Final = (
    "access_activity_log", "billing_address", "cancellation_policy",
    "cancellation_policy_disclosure", "cancellation_rebuttal", "customer_communication",
    "customer_email_address", "customer_name", "customer_purchase_ip", "customer_signature",
    "duplicate_charge_documentation", "duplicate_charge_explanation", "duplicate_charge_id",
    "product_description", "receipt", "refund_policy", "refund_policy_disclosure",
    "refund_refusal_explanation", "service_date", "service_documentation", "shipping_address",
    "shipping_carrier", "shipping_date", "shipping_documentation", "shipping_tracking_number",
    "uncategorized_file", "uncategorized_text",
)  # fmt: skip


def open_dispute(call: Call, charge: str) -> None:
    """Disputes the whole charge as fraudulent, and withdraws its amount and the fee."""
    charged = call.find("charge", charge)
    charged["disputed"] = True
    call.put(charged)
    doc = _new_dispute(call, charged)
    transaction = record(call, "adjustment", doc, -charged["amount"], fee=_FEE)
    doc["balance_transactions"] = [call.find("balance_transaction", transaction)]
    call.put(doc)
    emit(call, "charge.dispute.created", doc)
    emit(call, "charge.dispute.funds_withdrawn", doc)


def _new_dispute(call: Call, charged: Doc) -> Doc:
    return {
        "id": new_id("du"),
        "object": "dispute",
        "amount": charged["amount"],
        "balance_transactions": [],
        "charge": charged["id"],
        "created": call.now,
        "currency": charged["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {**dict.fromkeys(_EVIDENCE), "enhanced_evidence": {}},
        "evidence_details": {
            "due_by": call.now + _DAYS_TO_ANSWER_S,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
            "submission_method": "not_submitted",
        },
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": charged["payment_intent"],
        "payment_method_details": {
            "card": {
                "brand": "visa", "case_type": "chargeback", "network": "visa",
                "network_reason_code": "10.4",
            },
            "type": "card",
        },
        "reason": "fraudulent",
        "status": "needs_response",
    }  # fmt: skip


def _update(call: Call) -> Doc:
    doc = _still_open(call)
    evidence = call.params.within("evidence")
    evidence.only(_EVIDENCE)
    doc["evidence"] |= {name: evidence.optional(name) for name in evidence.tree}
    doc["evidence_details"]["has_evidence"] = any(doc["evidence"][name] for name in _EVIDENCE)
    doc["metadata"] = call.params.metadata(doc["metadata"])
    submitted = evidence.tree and call.params.text("submit", "true") == "true"
    if submitted:
        doc["evidence_details"]["submission_count"] += 1
        doc["evidence_details"]["submission_method"] = "manual"
        doc["status"] = "under_review"
    call.put(doc)
    emit(call, "charge.dispute.updated", doc)
    verdict = _VERDICTS.get(doc["evidence"]["uncategorized_text"] or "")
    return _closed(call, doc, verdict) if submitted and verdict else doc


def _close(call: Call) -> Doc:
    return _closed(call, _still_open(call), "lost")


def _closed(call: Call, doc: Doc, verdict: str) -> Doc:
    doc["status"] = verdict
    if verdict == "won":
        back = record(call, "adjustment", doc, doc["amount"])
        doc["balance_transactions"].append(call.find("balance_transaction", back))
    call.put(doc)
    if verdict == "won":
        emit(call, "charge.dispute.funds_reinstated", doc)
    emit(call, "charge.dispute.closed", doc)
    return doc


def _still_open(call: Call) -> Doc:
    doc = call.find("dispute", call.args[0])
    if doc["status"] in _VERDICTS.values():
        raise StripeError("This dispute is already closed.", code="dispute_already_closed")
    return doc


TIMERS: Final = {"dispute_charge": open_dispute}
ROUTES: Final[tuple[Route, ...]] = (
    route(
        "GET", "/v1/disputes", listing("dispute", "/v1/disputes", "charge", "payment_intent"),
        f"{LISTING} charge payment_intent",
    ),
    route("GET", "/v1/disputes/{}", retrieve("dispute")),
    route("POST", "/v1/disputes/{}", _update, "evidence metadata submit"),
    route("POST", "/v1/disputes/{}/close", _close),
)  # fmt: skip
