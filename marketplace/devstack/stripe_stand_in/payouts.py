"""Transfers from the platform to connected accounts, their reversals, and payouts to banks."""

from typing import Final

from marketplace.devstack.stripe_stand_in.accounts import active_account
from marketplace.devstack.stripe_stand_in.balance import record, require_available
from marketplace.devstack.stripe_stand_in.calls import (
    LISTING,
    Call,
    Route,
    answer_list,
    list_of,
    listing,
    retrieve,
    route,
)
from marketplace.devstack.stripe_stand_in.errors import StripeError
from marketplace.devstack.stripe_stand_in.events import emit
from marketplace.devstack.stripe_stand_in.intents import currency_of
from marketplace.devstack.stripe_stand_in.store import Doc, new_id

_FAILURES: Final = {
    "no_account": "We couldn't find the bank account.",
    "account_closed": "The bank account has been closed.",
}


def _create_transfer(call: Call) -> Doc:
    params = call.params
    if call.account:
        raise StripeError("Only the platform makes transfers.")
    amount = params.integer("amount", least=1)
    currency = currency_of(params.required("currency"))
    destination = active_account(call, params.required("destination"))
    source = params.optional("source_transaction")
    available_on = 0
    if source:
        available_on = _require_source(call, source, amount)
    else:
        require_available(call, amount, currency)
    pk = new_id("tr")
    doc: Doc = {
        "id": pk,
        "object": "transfer",
        "amount": amount,
        "amount_reversed": 0,
        "balance_transaction": None,
        "created": call.now,
        "currency": currency,
        "description": params.optional("description"),
        "destination": destination["id"],
        "destination_payment": new_id("py"),
        "livemode": False,
        "metadata": params.metadata(),
        "reversals": list_of(f"/v1/transfers/{pk}/reversals", []),
        "reversed": False,
        "source_transaction": source,
        "source_type": "card",
        "transfer_group": params.optional("transfer_group"),
    }
    doc["balance_transaction"] = record(call, "transfer", doc, -amount, available_on=available_on)
    call.put(doc)
    # The other side of it, on the account's own books.
    payment = {"id": doc["destination_payment"], "currency": currency, "description": None}
    record(call.within(destination["id"]), "payment", payment, amount, available_on=available_on)
    emit(call, "transfer.created", doc)
    return doc


def _require_source(call: Call, charge: str, amount: int) -> int:
    """When the charge's money becomes available: the transfer's waits for it."""
    charged = call.find("charge", charge)
    if charged["balance_transaction"] is None or amount > charged["amount"]:
        raise StripeError(
            "The transfer is larger than what its source_transaction has brought in.",
            code="balance_insufficient",
            param="source_transaction",
        )
    found = call.find("balance_transaction", charged["balance_transaction"])
    return int(found["available_on"])


def _reverse(call: Call) -> Doc:
    transfer = call.find("transfer", call.args[0])
    left = transfer["amount"] - transfer["amount_reversed"]
    amount = call.params.integer("amount", least=1) if "amount" in call.params else left
    if amount > left or not left:
        raise StripeError(
            f"Reversal amount ({amount}) is greater than unreversed amount ({left})",
            code="transfer_already_reversed" if not left else "amount_too_large",
            param="amount",
        )
    theirs = call.within(transfer["destination"])
    require_available(theirs, amount, transfer["currency"])
    doc: Doc = {
        "id": new_id("trr"),
        "object": "transfer_reversal",
        "amount": amount,
        "balance_transaction": None,
        "created": call.now,
        "currency": transfer["currency"],
        "destination_payment_refund": new_id("pyr"),
        "metadata": call.params.metadata(),
        "source_refund": None,
        "transfer": transfer["id"],
    }
    doc["balance_transaction"] = record(call, "transfer_refund", doc, amount)
    refund = {
        "id": doc["destination_payment_refund"],
        "currency": doc["currency"],
        "description": None,
    }
    record(theirs, "payment_refund", refund, -amount)
    call.put(doc)
    transfer["amount_reversed"] += amount
    transfer["reversed"] = transfer["amount_reversed"] == transfer["amount"]
    transfer["reversals"]["data"].insert(0, doc)
    call.put(transfer)
    emit(call, "transfer.reversed", transfer)
    return doc


def _list_reversals(call: Call) -> Doc:
    path = f"/v1/transfers/{call.args[0]}/reversals"
    return answer_list(call, "transfer_reversal", path, {"transfer": call.args[0]})


def _create_payout(call: Call) -> Doc:
    params = call.params
    amount = params.integer("amount", least=1)
    currency = currency_of(params.required("currency"))
    if not call.account:
        raise StripeError("This stand-in pays out from connected accounts only.")
    account = call.store.find("account", call.account)
    if not account["payouts_enabled"]:
        raise StripeError(
            "Cannot create payouts: this account is not set up yet.", code="payouts_not_allowed"
        )
    require_available(call, amount, currency)
    doc = _new_payout(call, amount, currency, account["external_accounts"]["data"][0]["id"])
    doc["balance_transaction"] = record(call, "payout", doc, -amount)
    call.put(doc)
    call.store.later(call.now + call.config.payout_s, "land_payout", doc["id"])
    emit(call, "payout.created", doc)
    return doc


def _new_payout(call: Call, amount: int, currency: str, bank: str) -> Doc:
    return {
        "id": new_id("po"),
        "object": "payout",
        "amount": amount,
        "application_fee": None,
        "application_fee_amount": None,
        "arrival_date": call.now + int(call.config.payout_s),
        "automatic": False,
        "balance_transaction": None,
        "created": call.now,
        "currency": currency,
        "description": call.params.optional("description"),
        "destination": bank,
        "failure_balance_transaction": None,
        "failure_code": None,
        "failure_message": None,
        "livemode": False,
        "metadata": call.params.metadata(),
        "method": "standard",
        "original_payout": None,
        "payout_method": None,
        "reconciliation_status": "not_applicable",
        "reversed_by": None,
        "source_type": "card",
        "statement_descriptor": call.params.optional("statement_descriptor"),
        "status": "pending",
        "trace_id": None,
        "type": "bank_account",
    }


def _land(call: Call, pk: str) -> None:
    """The bank takes the payout, or sends it back."""
    doc = call.find("payout", pk)
    if doc["status"] != "pending":
        return
    failure = call.store.private(doc["destination"])["failure"]
    if failure:
        doc |= {
            "status": "failed",
            "failure_code": failure,
            "failure_message": _FAILURES[failure],
            "failure_balance_transaction": record(call, "payout_failure", doc, doc["amount"]),
        }
    else:
        doc["status"] = "paid"
    call.put(doc)
    emit(call, "payout.failed" if failure else "payout.paid", doc)


def _cancel_payout(call: Call) -> Doc:
    doc = call.find("payout", call.args[0])
    if doc["status"] != "pending":
        raise StripeError(f"Payouts that are {doc['status']} can't be canceled.")
    doc["status"] = "canceled"
    doc["failure_balance_transaction"] = record(call, "payout_cancel", doc, doc["amount"])
    call.put(doc)
    emit(call, "payout.canceled", doc)
    return doc


TIMERS: Final = {"land_payout": _land}
ROUTES: Final[tuple[Route, ...]] = (
    route(
        "POST", "/v1/transfers", _create_transfer,
        "amount currency destination description metadata source_transaction transfer_group",
    ),
    route(
        "GET", "/v1/transfers",
        listing("transfer", "/v1/transfers", "destination", "transfer_group"),
        f"{LISTING} destination transfer_group",
    ),
    route("GET", "/v1/transfers/{}", retrieve("transfer")),
    route("POST", "/v1/transfers/{}/reversals", _reverse, "amount description metadata"),
    route("GET", "/v1/transfers/{}/reversals", _list_reversals, "limit starting_after ending_before"),
    route(
        "POST", "/v1/payouts", _create_payout,
        "amount currency description metadata statement_descriptor method",
    ),
    route(
        "GET", "/v1/payouts", listing("payout", "/v1/payouts", "status"), f"{LISTING} status"
    ),
    route("GET", "/v1/payouts/{}", retrieve("payout")),
    route("POST", "/v1/payouts/{}/cancel", _cancel_payout),
)  # fmt: skip
