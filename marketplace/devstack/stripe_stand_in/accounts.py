"""Connected accounts: made by the platform, filled in by their owner on the hosted page."""

from typing import Final

from marketplace.devstack.stripe_stand_in.calls import (
    LISTING,
    Call,
    Route,
    list_of,
    listing,
    route,
)
from marketplace.devstack.stripe_stand_in.errors import StripeError, missing
from marketplace.devstack.stripe_stand_in.events import emit
from marketplace.devstack.stripe_stand_in.params import Params
from marketplace.devstack.stripe_stand_in.store import Doc, new_id

_LINK_S: Final = 300
_CAPABILITIES: Final = {"transfers", "card_payments"}
# What the hosted page asks for.
_DUE: Final = ["business_profile.url", "external_account", "tos_acceptance.date"]
# Stripe's own test numbers: the first takes payouts, the others bounce them.
BANK_NUMBERS: Final = {
    "000123456789": "",
    "000111111116": "no_account",
    "000111111113": "account_closed",
}


def onboard(call: Call, pk: str, *, name: str, number: str) -> Doc:
    """What the button on the hosted page does: bank account, terms, and transfers switched on."""
    account = call.store.find("account", pk)
    if number not in BANK_NUMBERS:
        raise StripeError(
            "This is a test stand-in: use the bank account 000123456789, or 000111111116 whose"
            " payouts bounce.",
            code="account_number_invalid",
            param="account_number",
        )
    mine = call.within(pk)
    bank = _new_bank_account(mine, account, name, number)
    mine.put(bank, private={"failure": BANK_NUMBERS[number]})
    before = {"details_submitted": False, "payouts_enabled": False}
    account |= {
        "details_submitted": True,
        "payouts_enabled": True,
        "charges_enabled": "card_payments" in account["capabilities"],
        "capabilities": dict.fromkeys(account["capabilities"], "active"),
        "requirements": _requirements([]),
        "tos_acceptance": {"date": call.now},
    }
    account["business_profile"]["name"] = name
    account["external_accounts"]["data"] = [bank]
    call.put(account)
    emit(mine, "account.external_account.created", bank)
    emit(mine, "account.updated", account, before=before)
    return account


def active_account(call: Call, pk: str) -> Doc:
    """Raises StripeError unless the account may be sent money."""
    account = call.store.find("account", pk)
    if account["capabilities"].get("transfers") != "active":
        raise StripeError(
            "Your destination account needs to have at least one of the following capabilities"
            " enabled: transfers, crypto_transfers, legacy_payments",
            code="insufficient_capabilities_for_transfer",
        )
    return account


def _new_bank_account(call: Call, account: Doc, name: str, number: str) -> Doc:
    return {
        "id": new_id("ba"),
        "object": "bank_account",
        "account": account["id"],
        "account_holder_name": name,
        "account_holder_type": "individual",
        "account_type": None,
        "available_payout_methods": ["standard"],
        "bank_name": "STAND-IN BANK",
        "country": account["country"],
        "currency": account["default_currency"],
        "default_for_currency": True,
        "fingerprint": new_id("", 16)[1:],
        "future_requirements": None,
        "last4": number[-4:],
        "metadata": {},
        "requirements": None,
        "routing_number": "110000000",
        "status": "new",
    }


def _create(call: Call) -> Doc:
    params = call.params
    kind = params.text("type", "none")
    if kind not in {"express", "custom", "standard", "none"}:
        raise StripeError(f"Invalid type: {kind}", param="type")
    asked = params.within("capabilities")
    asked.only(_CAPABILITIES)
    country = params.text("country", "US").upper()
    pk = new_id("acct", 16)
    doc = _new_account(call, pk, kind, country)
    doc |= {
        "capabilities": dict.fromkeys(asked.tree, "inactive"),
        "email": params.optional("email"),
        "metadata": params.metadata(),
        "business_type": params.optional("business_type"),
    }
    _write_profile(doc, params)
    return call.put(doc)


def _new_account(call: Call, pk: str, kind: str, country: str) -> Doc:
    return {
        "id": pk,
        "object": "account",
        "business_profile": dict.fromkeys(_PROFILE),
        "charges_enabled": False,
        "controller": {
            "fees": {"payer": "application"},
            "is_controller": True,
            "losses": {"payments": "application"},
            "requirement_collection": "stripe",
            "stripe_dashboard": {"type": "express"},
            "type": "application",
        },
        "country": country,
        "created": call.now,
        "default_currency": "usd" if country == "US" else "eur",
        "details_submitted": False,
        "external_accounts": list_of(f"/v1/accounts/{pk}/external_accounts", []),
        "future_requirements": _requirements([]),
        "payouts_enabled": False,
        "requirements": _requirements(_DUE),
        "settings": _SETTINGS,
        "tos_acceptance": {"date": None},
        "type": kind,
    }


def _requirements(due: list[str]) -> Doc:
    return {
        "alternatives": [],
        "current_deadline": None,
        "currently_due": due,
        "disabled_reason": "requirements.past_due" if due else None,
        "errors": [],
        "eventually_due": due,
        "past_due": due,
        "pending_verification": [],
    }


_PROFILE: Final = (
    "annual_revenue", "estimated_worker_count", "mcc", "monthly_estimated_revenue", "name",
    "product_description", "support_address", "support_email", "support_phone", "support_url",
    "url",
)  # fmt: skip
_SETTINGS: Final[Doc] = {
    "branding": {"icon": None, "logo": None, "primary_color": None, "secondary_color": None},
    "card_payments": {
        "decline_on": {"avs_failure": False, "cvc_failure": False},
        "statement_descriptor_prefix": None,
        "statement_descriptor_prefix_kana": None,
        "statement_descriptor_prefix_kanji": None,
    },
    "dashboard": {"display_name": None, "timezone": "Etc/UTC"},
    "payments": {
        "statement_descriptor": None,
        "statement_descriptor_kana": None,
        "statement_descriptor_kanji": None,
    },
    "payouts": {
        "debit_negative_balances": False,
        "schedule": {"delay_days": 2, "interval": "manual"},
        "statement_descriptor": None,
    },
}


def _retrieve(call: Call) -> Doc:
    """By the platform, or by the account itself."""
    return call.store.find("account", call.args[0])


def _update(call: Call) -> Doc:
    account = call.store.find("account", call.args[0])
    account["metadata"] = call.params.metadata(account["metadata"])
    if "email" in call.params:
        account["email"] = call.params.optional("email")
    _write_profile(account, call.params)
    return call.put(account)


def _write_profile(account: Doc, params: Params) -> None:
    profile = params.within("business_profile")
    profile.only(_PROFILE)
    account["business_profile"] |= {name: profile.optional(name) for name in profile.tree}


def _create_link(call: Call) -> Doc:
    params = call.params
    account = call.store.find("account", params.required("account"))
    if params.required("type") not in {"account_onboarding", "account_update"}:
        raise StripeError(f"Invalid type: {params.text('type')}", param="type")
    token = new_id("link", 40)
    call.put(
        {"id": token, "object": "link"},
        private={
            "account": account["id"],
            "refresh_url": params.required("refresh_url"),
            "return_url": params.required("return_url"),
            "expires_at": call.now + _LINK_S,
        },
    )
    return {
        "object": "account_link",
        "created": call.now,
        "expires_at": call.now + _LINK_S,
        "url": f"{call.base_url}/setup/{token}",
    }


def _list_external(call: Call) -> Doc:
    account = call.store.find("account", call.args[0])
    found: Doc = account["external_accounts"]
    return found


def _delete(call: Call) -> Doc:
    account = call.store.find("account", call.args[0])
    if account["details_submitted"]:
        raise StripeError("An account that has been set up can't be deleted here.")
    call.store.connection.execute("DELETE FROM objects WHERE id = ?", [account["id"]])
    return {"id": account["id"], "object": "account", "deleted": True}


def link_of(call: Call, token: str) -> Doc:
    """What an account link remembers; raises StripeError for an unknown one."""
    link = call.store.private(token)
    if "return_url" not in link:
        raise missing("account_link", token)
    return link


_SAID: Final = "email metadata business_profile business_type"
ROUTES: Final[tuple[Route, ...]] = (
    route("POST", "/v1/accounts", _create, f"{_SAID} type country capabilities"),
    route("GET", "/v1/accounts", listing("account", "/v1/accounts"), LISTING),
    route("GET", "/v1/accounts/{}", _retrieve),
    route("POST", "/v1/accounts/{}", _update, _SAID),
    route("DELETE", "/v1/accounts/{}", _delete),
    route("GET", "/v1/accounts/{}/external_accounts", _list_external, "object limit"),
    route("POST", "/v1/account_links", _create_link, "account type refresh_url return_url"),
)
