"""From an HTTP request to an answer: the key, the route, the replay, the expansion."""

import json
import time
from dataclasses import dataclass
from typing import Final, NamedTuple

from marketplace.devstack.stripe_stand_in import (
    accounts,
    balance,
    cards,
    charges,
    checkout,
    disputes,
    events,
    intents,
    payouts,
)
from marketplace.devstack.stripe_stand_in.calls import API_VERSION, Call, Config, Route
from marketplace.devstack.stripe_stand_in.errors import StripeError
from marketplace.devstack.stripe_stand_in.params import Params, decode
from marketplace.devstack.stripe_stand_in.store import Doc, Store

ROUTES: Final[tuple[Route, ...]] = (
    *cards.ROUTES, *intents.ROUTES, *charges.ROUTES, *checkout.ROUTES, *disputes.ROUTES,
    *balance.ROUTES, *accounts.ROUTES, *payouts.ROUTES, *events.ROUTES,
)  # fmt: skip
TIMERS: Final = {**charges.TIMERS, **checkout.TIMERS, **disputes.TIMERS, **payouts.TIMERS}
_DEEPEST: Final = 4


@dataclass(frozen=True)
class Request:
    """What matters of an API request. `key` is the secret that came with it."""

    method: str
    path: str
    text: str
    """The form: the body, or for a GET the query."""
    key: str = ""
    account: str = ""
    idempotency_key: str = ""


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


def answer(store: Store, config: Config, base_url: str, request: Request) -> Answer:
    """Handles one API request, whole or not at all."""
    try:
        _require_key(request.key, config)
        route, args = _route(request)
        call = Call(
            store, config, int(time.time()), base_url, request.account, decode(request.text), args
        )
        call.params.only(route.allowed)
        with store.transaction():
            if request.account:
                store.find("account", request.account)
            return _once(call, route, request)
    except StripeError as error:
        return _said(error.status, error.body)


def ring_due(store: Store, config: Config, base_url: str, now: float) -> bool:
    """Does what the next due timer asks for; False when none is due."""
    with store.transaction():
        due = store.take_due(now)
        if due is None:
            return False
        action, subject = due
        if store.get(subject) is not None:
            call = Call(store, config, int(now), base_url, store.account_of(subject))
            TIMERS[action](call, subject)
    return True


def _require_key(key: str, config: Config) -> None:
    if key != config.secret_key:
        hidden = f"{key[:8]}{'*' * 8}" if key else ""
        raise StripeError(f"Invalid API Key provided: {hidden}", status=401)


def _route(request: Request) -> tuple[Route, tuple[str, ...]]:
    for route in ROUTES:
        args = route.match(request.method, request.path)
        if args is not None:
            return route, args
    raise StripeError(
        f"Unrecognized request URL ({request.method}: {request.path}). This stand-in knows only"
        " part of Stripe.",
        status=404,
    )


def _once(call: Call, route: Route, request: Request) -> Answer:
    """The first answer to an idempotency key, for ever after."""
    if not request.idempotency_key or request.method == "GET":
        return _handled(call, route)
    asked = f"{request.method} {request.path} {request.text}"
    row = call.store.connection.execute(
        "SELECT request, status, body FROM replays WHERE account = ? AND key = ?",
        [request.account, request.idempotency_key],
    ).fetchone()
    if row is None:
        first = _handled(call, route)
        call.store.connection.execute(
            "INSERT INTO replays VALUES (?, ?, ?, ?, ?)",
            [
                request.account, request.idempotency_key, asked, first.status,
                first.body.decode(),
            ],
        )  # fmt: skip
        return first
    if row[0] != asked:
        raise StripeError(
            "Keys for idempotent requests can only be used with the same parameters they were"
            f" first used with. Try using a key other than '{request.idempotency_key}' if you"
            " meant to execute a different request.",
            kind="idempotency_error",
        )
    return Answer(row[1], row[2].encode(), {**_HEADERS, "Idempotent-Replayed": "true"})


def _handled(call: Call, route: Route) -> Answer:
    try:
        doc = route.handler(call)
        for path in call.params.texts("expand") if "expand" in call.params else []:
            _expand(call, doc, path.split("."), path)
    except StripeError as error:
        if not error.kept:
            raise
        return _said(error.status, error.body)
    return _said(200, doc)


def _expand(call: Call, doc: Doc, path: list[str], whole: str) -> None:
    """Puts objects in the place of their ids along `path`."""
    if len(path) > _DEEPEST:
        raise StripeError(f"You cannot expand more than 4 levels of a property ({whole}).")
    name, rest = path[0], path[1:]
    if name == "line_items" and doc["object"] == "checkout.session":
        doc["line_items"] = checkout.lines_of(call, doc)
    if name not in doc:
        raise StripeError(f"This property cannot be expanded ({whole}).", param="expand")
    value = doc[name]
    if isinstance(value, str):
        value = call.store.get(value)
        doc[name] = value or doc[name]
    if not isinstance(value, dict | list) and doc[name] is not None:
        raise StripeError(f"This property cannot be expanded ({whole}).", param="expand")
    for below in value if isinstance(value, list) else [value]:
        if rest and isinstance(below, dict):
            _expand(call, below, rest, whole)


def _said(status: int, body: Doc) -> Answer:
    return Answer(status, json.dumps(body, indent=2).encode(), dict(_HEADERS))


_HEADERS: Final = {"Content-Type": "application/json", "Stripe-Version": API_VERSION}


def page_call(store: Store, config: Config, base_url: str, text: str = "") -> Call:
    """A call on behalf of a person on a hosted page; `text` is the form they sent."""
    params = decode(text) if text else Params({})
    return Call(store, config, int(time.time()), base_url, params=params)
