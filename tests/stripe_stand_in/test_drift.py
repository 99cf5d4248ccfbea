"""The stand-in's JSON is what the SDK of today says Stripe's is: fields, types, literals.

Walks the annotations of the installed `stripe` package over one of everything, and the same
package's parameter types over the parameters that the stand-in understands. So a new SDK that
moves away from the stand-in fails here, and not in somebody's wallet.
"""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Literal, Union

import pytest
import stripe
from stripe._object_classes import get_object_class

from marketplace.devstack.stripe_stand_in.api import ROUTES
from tests.stripe_stand_in.process import Receiver, StandIn


def test_every_object_has_the_fields_and_types_that_the_sdk_declares(
    stand: StandIn, webhooks: Receiver
) -> None:
    seen: set[str] = set()
    drifted: set[str] = set()
    for doc in _one_of_everything(stand, webhooks):
        seen.add(doc["object"])
        drifted |= set(_differences(doc, _class_of(doc), doc["object"]))
    assert sorted(drifted) == []
    assert seen == {
        "account", "account_link", "balance", "balance_transaction", "bank_account", "charge",
        "checkout.session", "customer", "dispute", "event", "item", "list", "payment_intent",
        "payment_method", "payout", "refund", "transfer", "transfer_reversal",
    }  # fmt: skip


def test_the_walk_notices_a_field_too_many_too_few_or_of_another_type(client: Any) -> None:
    doc = client.customers.create().to_dict()
    wrong = {**doc, "created": "yesterday", "colour": "red", "tax_exempt": 3}
    del wrong["livemode"]
    assert sorted(_differences(wrong, stripe.Customer, "customer")) == [
        "customer.colour: unknown to the SDK",
        "customer.created: 'yesterday' is no int",
        "customer.livemode: missing",
        "customer.tax_exempt: 3 fits none of its types",
    ]


def test_every_route_and_parameter_understood_is_one_that_the_sdk_knows() -> None:
    known = _sdk_parameters()
    drifted = {
        (route.method, path): route.allowed - known.get((route.method, path), set()) - {"expand"}
        for route in ROUTES
        for path in [route.path.replace("([A-Za-z0-9_]+)", "{}")]
    }
    assert drifted.keys() <= known.keys()
    assert {path: names for path, names in drifted.items() if names} == {}


def _one_of_everything(stand: StandIn, webhooks: Receiver) -> Iterator[dict[str, Any]]:
    client = stand.client
    yield from _checkout(stand, webhooks)
    yield from _declined_intent(client)
    yield from _dispute(client, webhooks)
    webhooks.wait(lambda events: sum(e["type"] == "charge.updated" for e in events) >= 3)
    yield from _connect(stand, webhooks)
    yield client.charges.list().to_dict()
    yield from client.charges.list().to_dict()["data"]
    yield client.balance.retrieve().to_dict()
    yield from client.balance_transactions.list().to_dict()["data"]
    for event in webhooks.events:
        yield event
        yield event["data"]["object"]


def _checkout(stand: StandIn, webhooks: Receiver) -> Iterator[dict[str, Any]]:
    client = stand.client
    customer = client.customers.create({"email": "ada@example.org", "metadata": {"a": "b"}})
    yield customer.to_dict()
    line = {
        "price_data": {
            "currency": "usd", "unit_amount": 5000, "product_data": {"name": "Top-up"},
        },
        "quantity": 1,
    }  # fmt: skip
    session = client.checkout.sessions.create(
        {
            "mode": "payment", "line_items": [line], "success_url": "http://x/",
            "customer": customer.id, "expand": ["line_items"],
        }
    )  # fmt: skip
    yield session.to_dict()
    yield from session.line_items.to_dict()["data"]
    stand.pay(session.url)
    paid = client.checkout.sessions.retrieve(session.id)
    yield paid.to_dict()
    yield client.payment_intents.retrieve(paid.payment_intent).to_dict()
    webhooks.wait_for("charge.updated")
    yield client.refunds.create({"payment_intent": paid.payment_intent, "amount": 5}).to_dict()


def _dispute(client: Any, webhooks: Receiver) -> Iterator[dict[str, Any]]:
    for amount, card in ((700, "pm_card_createDispute"), (90_000, "pm_card_bypassPending")):
        client.payment_intents.create(
            {"amount": amount, "currency": "usd", "confirm": True, "payment_method": card}
        )
    dispute = webhooks.wait_for("charge.dispute.created")["data"]["object"]
    yield dispute
    yield client.disputes.close(dispute["id"]).to_dict()


def _declined_intent(client: Any) -> Iterator[dict[str, Any]]:
    with pytest.raises(stripe.CardError) as caught:
        client.payment_intents.create(
            {
                "amount": 700, "currency": "usd", "confirm": True,
                "payment_method": "pm_card_visa_chargeDeclined",
            }
        )  # fmt: skip
    body: Any = caught.value.json_body
    yield body["error"]["payment_intent"]
    intent = client.payment_intents.create(
        {"amount": 700, "currency": "usd", "payment_method": "pm_card_visa"}
    )
    yield intent.to_dict()
    yield client.payment_methods.retrieve(intent.payment_method).to_dict()
    yield client.payment_intents.cancel(intent.id).to_dict()


def _connect(stand: StandIn, webhooks: Receiver) -> Iterator[dict[str, Any]]:
    client = stand.client
    account = client.accounts.create(
        {"type": "express", "capabilities": {"transfers": {"requested": True}}}
    )
    yield account.to_dict()
    link = client.account_links.create(
        {
            "account": account.id, "type": "account_onboarding", "refresh_url": "http://x/r",
            "return_url": "http://x/d",
        }
    )  # fmt: skip
    yield link.to_dict()
    stand.submit(link.url, name="Ada", number="000123456789")
    account = client.accounts.retrieve(account.id).to_dict()
    yield account
    yield from account["external_accounts"]["data"]
    transfer = client.transfers.create(
        {"amount": 3000, "currency": "usd", "destination": account["id"]}
    )
    yield client.transfers.reversals.create(transfer.id, {"amount": 100}).to_dict()
    yield client.transfers.retrieve(transfer.id).to_dict()
    theirs = {"stripe_account": account["id"]}
    yield client.payouts.create({"amount": 1000, "currency": "usd"}, options=theirs).to_dict()
    yield webhooks.wait_for("payout.paid")["data"]["object"]


# The walk over the annotations.


def _class_of(doc: dict[str, Any]) -> type:
    found: type = get_object_class("V1", doc["object"])
    assert found is not stripe.StripeObject, f"the SDK knows no {doc['object']}"
    return found


def _differences(value: Any, kind: Any, path: str) -> Iterator[str]:
    """What in `value` isn't as `kind` says, a line each."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or isinstance(kind, typing.TypeVar):
        return
    if origin in (Union, types.UnionType):
        yield from _union_differences(value, args, path)
    elif origin is Literal:
        if value not in args:
            yield f"{path}: {value!r} is none of {args}"
    elif origin is list:
        if not isinstance(value, list):
            yield f"{path}: {value!r} is no list"
            return
        for place, each in enumerate(value):
            yield from _differences(each, args[0], f"{path}[{place}]")
    elif inspect.isclass(origin or kind) and issubclass(origin or kind, stripe.StripeObject):
        yield from _object_differences(value, origin or kind, args, path)
    elif kind is Decimal:
        if not isinstance(value, str):
            yield f"{path}: {value!r} is no decimal string"
    elif type(value) is not kind and not (kind is float and type(value) is int):
        yield f"{path}: {value!r} is no {getattr(kind, '__name__', kind)}"


def _union_differences(value: Any, args: tuple[Any, ...], path: str) -> Iterator[str]:
    if value is None and type(None) in args:
        return
    tries = [list(_differences(value, each, path)) for each in args if each is not type(None)]
    if any(not each for each in tries):
        return
    # For an object the branch that comes nearest says most.
    if isinstance(value, dict):
        yield from min(tries, key=len)
    else:
        yield f"{path}: {value!r} fits none of its types"


def _object_differences(value: Any, cls: type, args: tuple[Any, ...], path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is no {cls.__name__}"
        return
    if cls.__name__ == "UntypedStripeObject":
        for key, each in value.items():
            yield from _differences(each, args[0] if args else Any, f"{path}.{key}")
        return
    hints = _hints(cls)
    if cls is stripe.ListObject:
        item = args[0] if args else Any
        hints = {**hints, "object": Literal["list"], "data": list[item]}  # type: ignore[valid-type]
    for key in value.keys() - hints.keys():
        yield f"{path}.{key}: unknown to the SDK"
    for key, hint in hints.items():
        if key in value:
            yield from _differences(value[key], hint, f"{path}.{key}")
        elif type(None) not in typing.get_args(hint):
            yield f"{path}.{key}: missing"


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    names = _names(cls.__module__)
    scope: Any = sys.modules[cls.__module__]
    local: dict[str, Any] = {}
    for part in cls.__qualname__.split("."):
        scope = getattr(scope, part)
        local |= {name: each for name, each in vars(scope).items() if inspect.isclass(each)}
    own = {
        name: hint
        for base in reversed(cls.__mro__)
        if base.__module__.startswith("stripe") and base not in _GENERIC
        for name, hint in vars(base).get("__annotations__", {}).items()
        if not name.startswith("_") and name != "OBJECT_NAME"
    }
    holder = type("Holder", (), {"__annotations__": own, "__module__": cls.__module__})
    return typing.get_type_hints(holder, globalns=names, localns=local)


_GENERIC = {stripe.StripeObject, stripe.APIResource}


@functools.cache
def _names(module: str) -> dict[str, Any]:
    """The module's names, with those that it imports for type checkers only."""
    names = dict(vars(sys.modules[module]))
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stripe"):
            source = importlib.import_module(str(node.module))
            for alias in node.names:
                names.setdefault(alias.asname or alias.name, getattr(source, alias.name))
    return names


def _sdk_parameters() -> dict[tuple[str, str], set[str]]:
    """Each method and path of the SDK's v1 services, with the names of its parameters."""
    known: dict[tuple[str, str], set[str]] = {}
    for info in pkgutil.walk_packages(stripe.__path__, "stripe."):
        if not info.name.endswith("_service") or ".v2" in info.name:
            continue
        module = importlib.import_module(info.name)
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef):
                known |= _requests_of(node, info.name)
    return known


def _requests_of(function: ast.FunctionDef, module: str) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    params = [each for each in function.args.args if each.arg == "params"]
    for node in ast.walk(function):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr != "_request":
            continue
        # `_request("get", "/v1/customers/{customer}".format(…), …)`
        method, path = (
            next(str(each.value) for each in ast.walk(argument) if isinstance(each, ast.Constant))
            for argument in node.args[:2]
        )
        found[method.upper(), re.sub(r"{[^}]*}", "{}", path)] = _keys_of(params, module)
    return found


def _keys_of(params: list[ast.arg], module: str) -> set[str]:
    """The keys of the TypedDict that annotates the argument, inherited ones included."""
    names = [
        str(each.value)
        for argument in params
        for each in ast.walk(argument)
        if isinstance(each, ast.Constant) and str(each.value).endswith("Params")
    ]
    return set().union(*(_names(module)[name].__annotations__ for name in names))
