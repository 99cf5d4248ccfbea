"""What happened, told by signed webhooks until somebody answers 2xx."""

import hashlib
import hmac
import http.client
import json
import logging
import urllib.error
import urllib.request
from typing import Final

from marketplace.devstack.stripe_stand_in.calls import (
    API_VERSION,
    LISTING,
    Call,
    Config,
    Route,
    listing,
    retrieve,
    route,
)
from marketplace.devstack.stripe_stand_in.store import Doc, Store, new_id

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 10
_LONGEST_WAIT_S: Final = 3600.0
_GIVE_UP_S: Final = 3 * 24 * 3600


def emit(call: Call, kind: str, doc: Doc, *, before: Doc | None = None) -> None:
    """Records that `kind` happened to `doc` (as it now is), and queues its webhook.

    `before` holds the old values of what changed, for `*.updated`.
    """
    event: Doc = {
        "id": new_id("evt"),
        "object": "event",
        "api_version": API_VERSION,
        "created": call.now,
        "data": {"object": doc},
        "livemode": False,
        "pending_webhooks": 1 if call.config.webhook_url else 0,
        "request": {"id": None, "idempotency_key": None},
        "type": kind,
    }
    if before is not None:
        event["data"]["previous_attributes"] = before
    if call.account:
        event["account"] = call.account
    call.put(event)
    if call.config.webhook_url:
        call.store.connection.execute(
            "INSERT INTO deliveries (event, due, attempts, done) VALUES (?, ?, 0, 0)",
            [event["id"], call.now],
        )


def deliver_next(store: Store, config: Config, now: float) -> bool:
    """Sends the webhook that is longest due; False when none is.

    Not inside a transaction: the receiver will ask us about what it was told.
    """
    with store.transaction():
        row = store.connection.execute(
            "SELECT event, attempts FROM deliveries WHERE NOT done AND due <= ?"
            " ORDER BY due, rowid LIMIT 1",
            [now],
        ).fetchone()
        event = store.get(row[0]) if row else None
    if event is None:
        return False
    attempts = row[1] + 1
    taken = _send(event, config, int(now))
    wait = min(config.retry_s * 2 ** min(attempts - 1, 30), _LONGEST_WAIT_S)
    with store.transaction():
        store.connection.execute(
            "UPDATE deliveries SET done = ?, attempts = ?, due = ? WHERE event = ?",
            [taken or now - event["created"] > _GIVE_UP_S, attempts, now + wait, event["id"]],
        )
        if taken:
            event["pending_webhooks"] = 0
            store.put(event)
    return True


def sign(payload: bytes, secret: str, timestamp: int) -> str:
    """The `Stripe-Signature` header: HMAC-SHA256 over "timestamp.payload"."""
    digest = hmac.new(secret.encode(), b"%d." % timestamp + payload, hashlib.sha256)
    return f"t={timestamp},v1={digest.hexdigest()}"


def _send(event: Doc, config: Config, now: int) -> bool:
    payload = json.dumps(event, indent=2).encode()
    request = urllib.request.Request(
        config.webhook_url,
        payload,
        {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": sign(payload, config.webhook_secret, now),
            "User-Agent": "Stripe/1.0 (stand-in)",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S):
            return True
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        log.warning("webhook %s %s not taken: %s", event["type"], event["id"], error)
        return False


ROUTES: Final[tuple[Route, ...]] = (
    route("GET", "/v1/events", listing("event", "/v1/events", "type"), f"{LISTING} type"),
    route("GET", "/v1/events/{}", retrieve("event")),
)
