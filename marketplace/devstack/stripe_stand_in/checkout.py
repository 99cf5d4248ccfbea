"""Checkout sessions: a hosted page to pay on, and the way back."""

from typing import Final

from marketplace.devstack.stripe_stand_in.calls import (
    LISTING,
    Call,
    Route,
    list_of,
    listing,
    route,
)
from marketplace.devstack.stripe_stand_in.cards import card_of_number, new_method
from marketplace.devstack.stripe_stand_in.errors import StripeError, missing_parameter
from marketplace.devstack.stripe_stand_in.events import emit
from marketplace.devstack.stripe_stand_in.intents import currency_of, new_intent, pay
from marketplace.devstack.stripe_stand_in.params import Params
from marketplace.devstack.stripe_stand_in.store import Doc, new_id

_DAY_S: Final = 24 * 3600
_SHORTEST_S: Final = 30 * 60


def pay_session(call: Call, pk: str, *, number: str, name: str, email: str) -> Doc:
    """What the button on the hosted page does. Raises StripeError if the card says no."""
    session = call.find("checkout.session", pk)
    require_open(session)
    said = call.store.private(pk)
    method = new_method(call, card_of_number(number), name=name)
    intent = (
        call.find("payment_intent", session["payment_intent"])
        if session["payment_intent"]
        else new_intent(
            call, session["amount_total"], session["currency"],
            customer=session["customer"], **said["payment_intent_data"],
        )
    )  # fmt: skip
    session["payment_intent"] = intent["id"]
    call.put(session)
    pay(call, intent, method)
    session |= {
        "status": "complete",
        "payment_status": "paid",
        "url": None,
        "customer_details": {
            "address": method["billing_details"]["address"],
            "business_name": None,
            "email": session["customer_email"] or email or None,
            "individual_name": None,
            "name": name or None,
            "phone": None,
            "tax_exempt": "none",
            "tax_ids": [],
        },
    }
    call.put(session)
    emit(call, "checkout.session.completed", session)
    return session


def back_to(session: Doc, url: str) -> str:
    """The address with the placeholder filled in that Stripe fills in."""
    return url.replace("{CHECKOUT_SESSION_ID}", session["id"])


def require_open(session: Doc) -> None:
    """Raises StripeError for a session that is done."""
    if session["status"] != "open":
        raise StripeError(
            f"This Checkout Session is {session['status']}: it can't be paid or expired any more.",
            param="session",
        )


def _create(call: Call) -> Doc:
    params = call.params
    if params.required("mode") != "payment":
        raise StripeError("This stand-in knows only mode=payment", param="mode")
    lines = [_line(each) for each in params.each("line_items")]
    if not lines:
        raise missing_parameter("line_items")
    currencies = {line["currency"] for line in lines}
    if len(currencies) > 1:
        raise StripeError("All line items must have one currency", param="line_items")
    customer = params.optional("customer")
    if customer:
        call.find("customer", customer)
    doc = _new_session(call, sum(line["amount_total"] for line in lines), currencies.pop())
    intent = params.within("payment_intent_data")
    intent.only(("description", "metadata", "receipt_email", "transfer_group"))
    private = {
        "lines": lines,
        "payment_intent_data": {
            **{key: intent.text(key) for key in intent.tree if key != "metadata"},
            "metadata": intent.metadata(),
        },
    }
    call.store.later(doc["expires_at"], "expire_session", doc["id"])
    return call.put(doc, private=private)


def _new_session(call: Call, total: int, currency: str) -> Doc:
    params = call.params
    pk = new_id("cs_test", 58)
    return {
        "id": pk,
        "object": "checkout.session",
        **dict.fromkeys(_UNUSED),
        "adaptive_pricing": {"enabled": False},
        "amount_subtotal": total,
        "amount_total": total,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "cancel_url": params.optional("cancel_url"),
        "client_reference_id": params.optional("client_reference_id"),
        "created": call.now,
        "currency": currency,
        "customer": params.optional("customer"),
        "customer_creation": "if_required",
        "customer_email": params.optional("customer_email"),
        "discounts": [],
        "expires_at": _expires_at(call),
        "livemode": False,
        "metadata": params.metadata(),
        "mode": "payment",
        **_PLAIN,
        "payment_status": "unpaid",
        "status": "open",
        "submit_type": params.optional("submit_type"),
        "success_url": params.required("success_url"),
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": f"{call.base_url}/c/pay/{pk}",
    }  # fmt: skip


def _expires_at(call: Call) -> int:
    if "expires_at" not in call.params:
        return call.now + _DAY_S
    return call.params.integer("expires_at", least=call.now + _SHORTEST_S, most=call.now + _DAY_S)


# Fields that Stripe has and a plain payment on the hosted page leaves null.
_UNUSED: Final = (
    "after_expiration", "allow_promotion_codes", "billing_address_collection", "client_secret",
    "collected_information", "consent", "consent_collection", "currency_conversion",
    "customer_account", "customer_details", "invoice", "invoice_creation", "locale",
    "origin_context", "payment_intent", "payment_link", "payment_method_configuration_details",
    "permissions", "recovered_from", "saved_payment_method_options", "setup_intent",
    "shipping_address_collection", "shipping_cost", "subscription", "wallet_options",
)  # fmt: skip


# And what it leaves as it is.
_PLAIN: Final[Doc] = {
    "custom_fields": [],
    "custom_text": {
        "after_submit": None, "shipping_address": None, "submit": None,
        "terms_of_service_acceptance": None,
    },
    "payment_method_collection": "if_required",
    "payment_method_options": {},
    "payment_method_types": ["card"],
    "phone_number_collection": {"enabled": False},
    "shipping_options": [],
}  # fmt: skip


def _line(line: Params) -> Doc:
    line.only(("price_data", "quantity"))
    price = line.within("price_data")
    price.only(("currency", "unit_amount", "product_data"))
    product = price.within("product_data")
    product.only(("name", "description"))
    amount = price.integer("unit_amount", least=1)
    quantity = line.integer("quantity", least=1, most=999_999)
    currency = currency_of(price.required("currency"))
    return {
        "id": new_id("li"),
        "object": "item",
        "adjustable_quantity": None,
        "amount_discount": 0,
        "amount_subtotal": amount * quantity,
        "amount_tax": 0,
        "amount_total": amount * quantity,
        "currency": currency,
        "description": product.required("name"),
        "metadata": {},
        "price": None,
        "quantity": quantity,
    }


def lines_of(call: Call, session: Doc) -> Doc:
    """What a session sells, as Stripe's list; also what `expand[]=line_items` shows."""
    path = f"/v1/checkout/sessions/{session['id']}/line_items"
    return list_of(path, call.store.private(session["id"])["lines"])


def _expire(call: Call) -> Doc:
    session = call.find("checkout.session", call.args[0])
    require_open(session)
    session |= {"status": "expired", "url": None}
    call.put(session)
    emit(call, "checkout.session.expired", session)
    return session


def _expire_if_open(call: Call, pk: str) -> None:
    session = call.find("checkout.session", pk)
    if session["status"] == "open":
        call.args = (pk,)
        _expire(call)


def _lines(call: Call) -> Doc:
    return lines_of(call, call.find("checkout.session", call.args[0]))


def _retrieve(call: Call) -> Doc:
    return call.find("checkout.session", call.args[0])


_PATH: Final = "/v1/checkout/sessions"
TIMERS: Final = {"expire_session": _expire_if_open}
ROUTES: Final[tuple[Route, ...]] = (
    route(
        "POST", _PATH, _create,
        "mode line_items success_url cancel_url customer customer_email client_reference_id"
        " metadata expires_at payment_intent_data submit_type",
    ),
    route(
        "GET", _PATH, listing("checkout.session", _PATH, "payment_intent", "status", "customer"),
        f"{LISTING} payment_intent status customer",
    ),
    route("GET", _PATH + "/{}", _retrieve),
    route("POST", _PATH + "/{}/expire", _expire),
    route("GET", _PATH + "/{}/line_items", _lines, "limit starting_after ending_before"),
)  # fmt: skip
