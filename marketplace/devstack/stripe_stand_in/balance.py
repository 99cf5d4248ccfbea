"""Every movement of money is a balance transaction, so a balance is only ever their sum."""

from collections import defaultdict
from typing import Final

from marketplace.devstack.stripe_stand_in.calls import (
    LISTING,
    Call,
    Route,
    listing,
    retrieve,
    route,
)
from marketplace.devstack.stripe_stand_in.errors import StripeError
from marketplace.devstack.stripe_stand_in.store import Doc, new_id

_REPORTED_AS: Final = {
    "charge": "charge",
    "payment": "charge",
    "refund": "refund",
    "payment_refund": "refund",
    "adjustment": "dispute",
    "transfer": "transfer",
    "transfer_refund": "transfer_reversal",
    "payout": "payout",
    "payout_cancel": "payout_reversal",
    "payout_failure": "payout_reversal",
}


def record(
    call: Call, kind: str, source: Doc, amount: int, *, fee: int = 0, available_on: int = 0
) -> str:
    """Writes one balance transaction of `amount` less `fee` (minor units); returns its id."""
    available_on = available_on or call.now
    doc: Doc = {
        "id": new_id("txn"),
        "object": "balance_transaction",
        "amount": amount,
        "available_on": available_on,
        "balance_type": "payments",
        "created": call.now,
        "currency": source["currency"],
        "description": source.get("description"),
        "exchange_rate": None,
        "fee": fee,
        "fee_details": _fee_details(source["currency"], fee),
        "net": amount - fee,
        "reporting_category": _REPORTED_AS[kind],
        "source": source["id"],
        "status": "available" if available_on <= call.now else "pending",
        "type": kind,
    }
    call.put(doc)
    return str(doc["id"])


def available(call: Call, currency: str) -> int:
    """What may be transferred or paid out now, minor units."""
    return _sums(call)[currency]["available"]


def require_available(call: Call, amount: int, currency: str) -> None:
    """Raises Stripe's `balance_insufficient`."""
    if available(call, currency) < amount:
        raise StripeError(
            "You have insufficient available funds in your Stripe account. In test mode, the card"
            " 4000000000000077 adds funds that are available at once.",
            code="balance_insufficient",
        )


def card_fee(amount: int) -> int:
    """2.9 % and 30 cents, to the nearest cent."""
    return (amount * 29 + 500) // 1000 + 30


def _fee_details(currency: str, fee: int) -> list[Doc]:
    detail = {
        "amount": fee,
        "application": None,
        "currency": currency,
        "description": "Stripe processing fees",
        "type": "stripe_fee",
    }
    return [detail] if fee else []


def _sums(call: Call) -> dict[str, dict[str, int]]:
    rows = call.store.connection.execute(
        "SELECT json_extract(doc, '$.currency'), json_extract(doc, '$.available_on') <= ?,"
        " sum(json_extract(doc, '$.net')) FROM objects"
        " WHERE kind = 'balance_transaction' AND account = ? GROUP BY 1, 2",
        [call.now, call.account],
    )
    sums: dict[str, dict[str, int]] = defaultdict(lambda: {"available": 0, "pending": 0})
    for currency, is_available, net in rows:
        sums[currency]["available" if is_available else "pending"] += net
    return sums


def _retrieve_balance(call: Call) -> Doc:
    sums = _sums(call) or {"usd": {"available": 0, "pending": 0}}
    return {
        "object": "balance",
        "livemode": False,
        **{
            part: [
                {"amount": held[part], "currency": currency, "source_types": {"card": held[part]}}
                for currency, held in sums.items()
            ]
            for part in ("available", "pending")
        },
    }


def _retrieve_transaction(call: Call) -> Doc:
    return _aged(retrieve("balance_transaction")(call), call.now)


def _list_transactions(call: Call) -> Doc:
    listed = listing(
        "balance_transaction", "/v1/balance_transactions", "type", "source", "currency"
    )(call)
    listed["data"] = [_aged(doc, call.now) for doc in listed["data"]]
    return listed


def _aged(doc: Doc, now: int) -> Doc:
    """Pending ones become available by themselves."""
    return {**doc, "status": "available" if doc["available_on"] <= now else "pending"}


ROUTES: Final[tuple[Route, ...]] = (
    route("GET", "/v1/balance", _retrieve_balance),
    route("GET", "/v1/balance_transactions", _list_transactions, f"{LISTING} type source currency"),
    route("GET", "/v1/balance_transactions/{}", _retrieve_transaction),
)
