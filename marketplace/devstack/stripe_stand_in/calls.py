"""What a handler is handed, and how a route is declared."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from marketplace.devstack.stripe_stand_in.errors import missing
from marketplace.devstack.stripe_stand_in.params import Params
from marketplace.devstack.stripe_stand_in.store import Doc, Store

API_VERSION: Final = "2026-10-28.endive"
CURRENCIES: Final = frozenset({"usd", "eur", "gbp", "chf"})


@dataclass(frozen=True)
class Config:
    """How this stand-in was started. Times in seconds."""

    secret_key: str
    webhook_secret: str
    webhook_url: str = ""
    settle_s: float = 0.2
    """From a charge to its balance transaction: Stripe's own is as short, and never 0."""
    available_s: int = 2 * 24 * 3600
    """From a charge to the money being available for transfers and payouts."""
    payout_s: float = 1.0
    """From a payout to its arrival, or its return."""
    retry_s: float = 1.0
    """To the first repeat of a webhook; doubles up to an hour, for three days."""


@dataclass
class Call:
    """One request, inside one transaction of the store; also what timers act with."""

    store: Store
    config: Config
    now: int
    base_url: str
    account: str = ""
    """The connected account acted for (`Stripe-Account`); empty for the platform."""
    params: Params = field(default_factory=lambda: Params({}))
    args: tuple[str, ...] = ()

    def find(self, kind: str, pk: str) -> Doc:
        """This account's own object."""
        return self.store.find(kind, pk, account=self.account)

    def put(self, doc: Doc, *, private: Doc | None = None) -> Doc:
        """Keeps an object of this account."""
        return self.store.put(doc, account=self.account, private=private)

    def within(self, account: str) -> "Call":
        """The same moment, acting for another account."""
        return Call(self.store, self.config, self.now, self.base_url, account)


Handler = Callable[[Call], Doc]


@dataclass(frozen=True)
class Route:
    """`allowed` names the parameters understood: any other is refused, as Stripe does."""

    method: str
    path: str
    handler: Handler
    allowed: frozenset[str]

    def match(self, method: str, path: str) -> tuple[str, ...] | None:
        """The path's arguments, or None."""
        found = re.fullmatch(self.path, path) if method == self.method else None
        return found.groups() if found else None


def route(method: str, path: str, handler: Handler, allowed: str = "") -> Route:
    """`path` with `{}` for each id; `allowed` as words."""
    pattern = path.replace("{}", r"([A-Za-z0-9_]+)")
    return Route(method, pattern, handler, frozenset(allowed.split()) | {"expand"})


def retrieve(kind: str) -> Handler:
    """A handler that answers the object whose id is the path's last argument."""
    return lambda call: call.find(kind, call.args[-1])


LISTING: Final = "limit starting_after ending_before created"


def listing(kind: str, path: str, *filters: str) -> Handler:
    """A handler that lists the account's objects, newest first, by equality with `filters`."""

    def handler(call: Call) -> Doc:
        where: dict[str, object] = {
            name: call.params.text(name) for name in filters if name in call.params
        }
        return answer_list(call, kind, path, where)

    return handler


def answer_list(call: Call, kind: str, path: str, where: dict[str, object]) -> Doc:
    """Stripe's list object, paged by the request's parameters."""
    params = call.params
    limit = params.integer("limit", least=1, most=100) if "limit" in params else 10
    created = params.within("created") if "created" in params else Params({})
    for name, sign in (("gt", ">"), ("gte", ">="), ("lt", "<"), ("lte", "<=")):
        if name in created:
            where[f"created {sign}"] = created.integer(name, most=2**40)
    for name in ("starting_after", "ending_before"):
        if name in params and call.store.get(params.text(name)) is None:
            raise missing(kind, params.text(name))
    page = call.store.page(
        kind, account=call.account, where=where, limit=limit,
        after=params.text("starting_after"), before=params.text("ending_before"),
    )  # fmt: skip
    return list_of(path, page.docs, has_more=page.has_more)


def list_of(path: str, docs: list[Doc], *, has_more: bool = False) -> Doc:
    return {"object": "list", "url": path, "has_more": has_more, "data": docs}
