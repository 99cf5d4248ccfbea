"""Payment intents: one wish to be paid, through as many cards as it takes."""

from typing import Final

from marketplace.devstack.stripe_stand_in.calls import (
    CURRENCIES,
    LISTING,
    Call,
    Route,
    listing,
    retrieve,
    route,
)
from marketplace.devstack.stripe_stand_in.cards import method_of_token
from marketplace.devstack.stripe_stand_in.charges import charge
from marketplace.devstack.stripe_stand_in.errors import StripeError, missing_parameter
from marketplace.devstack.stripe_stand_in.events import emit
from marketplace.devstack.stripe_stand_in.store import Doc, new_id

_CANCELLABLE: Final = {"requires_payment_method", "requires_confirmation"}


def new_intent(call: Call, amount: int, currency: str, **said: object) -> Doc:
    """An intent that still needs its payment method; `said` overrides what it would be."""
    pk = new_id("pi")
    doc: Doc = {
        "id": pk,
        "object": "payment_intent",
        **dict.fromkeys(_UNUSED),
        "amount": amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": 0,
        "capture_method": "automatic_async",
        "client_secret": f"{pk}_secret_{new_id('', 25)[1:]}",
        "confirmation_method": "automatic",
        "created": call.now,
        "currency": currency,
        "livemode": False,
        "metadata": {},
        "payment_method_options": {"card": _CARD_OPTIONS},
        "payment_method_types": ["card"],
        "status": "requires_payment_method",
        **said,
    }
    call.put(doc)
    emit(call, "payment_intent.created", doc)
    return doc


def pay(call: Call, intent: Doc, method: Doc) -> Doc:
    """Charges the method. Raises StripeError, with its traces kept, if the bank refuses."""
    charged, refused = charge(call, intent, method)
    intent["latest_charge"] = charged["id"]
    if refused is not None:
        error = refused.body["error"]
        intent |= {
            "status": "requires_payment_method",
            "payment_method": None,
            "last_payment_error": {**error, "payment_method": method},
        }
        call.put(intent)
        emit(call, "payment_intent.payment_failed", intent)
        error["payment_intent"] = intent
        raise refused
    intent |= {
        "status": "succeeded",
        "payment_method": method["id"],
        "amount_received": intent["amount"],
        "last_payment_error": None,
    }
    call.put(intent)
    emit(call, "payment_intent.succeeded", intent)
    return intent


# Fields that Stripe has and a plain card payment leaves null.
_UNUSED: Final = (
    "application", "application_fee_amount", "automatic_payment_methods", "canceled_at",
    "cancellation_reason", "customer", "customer_account", "description",
    "excluded_payment_method_types", "last_payment_error", "latest_charge", "next_action",
    "on_behalf_of", "payment_method", "payment_method_configuration_details", "processing",
    "receipt_email", "review", "setup_future_usage", "shipping", "source", "statement_descriptor",
    "statement_descriptor_suffix", "transfer_data", "transfer_group",
)  # fmt: skip
_CARD_OPTIONS: Final[Doc] = {
    "installments": None, "mandate_options": None, "network": None,
    "request_three_d_secure": "automatic",
}  # fmt: skip


def currency_of(text: str) -> str:
    """Raises StripeError for one that the stand-in doesn't know."""
    if text.lower() not in CURRENCIES:
        raise StripeError(f"Invalid currency: {text}", param="currency")
    return text.lower()


def _create(call: Call) -> Doc:
    params = call.params
    amount = params.integer("amount", least=50)
    currency = currency_of(params.required("currency"))
    customer = params.optional("customer")
    if customer:
        call.find("customer", customer)
    said: Doc = {
        "customer": customer,
        "description": params.optional("description"),
        "metadata": params.metadata(),
        "receipt_email": params.optional("receipt_email"),
        "transfer_group": params.optional("transfer_group"),
    }
    if params.within("automatic_payment_methods").boolean("enabled"):
        said["automatic_payment_methods"] = {"allow_redirects": "always", "enabled": True}
    doc = new_intent(call, amount, currency, **said)
    token = params.optional("payment_method")
    if token:
        doc |= {
            "payment_method": method_of_token(call, token)["id"],
            "status": "requires_confirmation",
        }
        call.put(doc)
    return _confirmed(call, doc) if params.boolean("confirm") else doc


def _confirm(call: Call) -> Doc:
    doc = call.find("payment_intent", call.args[0])
    _require_state(doc, "confirm")
    token = call.params.optional("payment_method")
    if token:
        doc["payment_method"] = method_of_token(call, token)["id"]
    return _confirmed(call, doc)


def _confirmed(call: Call, doc: Doc) -> Doc:
    if doc["payment_method"] is None:
        raise missing_parameter("payment_method")
    return pay(call, doc, call.find("payment_method", doc["payment_method"]))


def _update(call: Call) -> Doc:
    doc = call.find("payment_intent", call.args[0])
    for name in ("description", "receipt_email", "transfer_group"):
        if name in call.params:
            doc[name] = call.params.optional(name)
    if "amount" in call.params:
        _require_state(doc, "update")
        doc["amount"] = call.params.integer("amount", least=50)
    doc["metadata"] = call.params.metadata(doc["metadata"])
    return call.put(doc)


def _cancel(call: Call) -> Doc:
    doc = call.find("payment_intent", call.args[0])
    _require_state(doc, "cancel")
    doc |= {
        "status": "canceled",
        "canceled_at": call.now,
        "cancellation_reason": call.params.optional("cancellation_reason"),
    }
    call.put(doc)
    emit(call, "payment_intent.canceled", doc)
    return doc


def _require_state(doc: Doc, verb: str) -> None:
    if doc["status"] not in _CANCELLABLE:
        raise StripeError(
            f"You cannot {verb} this PaymentIntent because it has a status of {doc['status']}.",
            code="payment_intent_unexpected_state",
            payment_intent=doc,
        )


_SAID: Final = "amount description metadata receipt_email transfer_group"
ROUTES: Final[tuple[Route, ...]] = (
    route(
        "POST", "/v1/payment_intents", _create,
        f"{_SAID} currency customer payment_method confirm off_session return_url"
        " automatic_payment_methods",
    ),
    route(
        "GET", "/v1/payment_intents",
        listing("payment_intent", "/v1/payment_intents", "customer"), f"{LISTING} customer",
    ),
    route("GET", "/v1/payment_intents/{}", retrieve("payment_intent")),
    route("POST", "/v1/payment_intents/{}", _update, _SAID),
    route(
        "POST", "/v1/payment_intents/{}/confirm", _confirm,
        "payment_method off_session return_url",
    ),
    route("POST", "/v1/payment_intents/{}/cancel", _cancel, "cancellation_reason"),
)  # fmt: skip
