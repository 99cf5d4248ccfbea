"""POSTs that may safely be sent twice: the answer is kept under the caller's Idempotency-Key.

The key is written in the transaction of the effect, so either both are there or neither, however
the process ends; a repeat that comes meanwhile waits for the first.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import transaction

from buyers.call_models import RepeatableCall
from marketplace import locks
from marketplace.core.errors import Conflict, Invalid
from marketplace.models import Org

_KEPT: Final = timedelta(days=1)


def once(
    org: Org,
    key: str,
    *,
    body_sha256: str,
    now: datetime,
    act: Callable[[], tuple[int, dict[str, Any]]],
) -> tuple[int, dict[str, Any]]:
    """What `act` answers (status, body), done once per key; without a key it is just done.

    Runs `act` in a transaction, so it must not use the network. What raises leaves nothing
    behind, and may be tried again under the same key. Raises Conflict for a key that stood for
    another request, Invalid for what is no key.
    """
    if not key:
        with transaction.atomic():
            return act()
    if len(key) > 100 or not (key.isascii() and key.isprintable()):
        raise Invalid("an Idempotency-Key is 1 to 100 printable ASCII characters, like a UUID")
    with transaction.atomic():
        locks.hold(f"call {org.pk} {key}")
        known = RepeatableCall.objects.filter(org=org, key=key).first()
        if known is not None:
            if known.body_sha256 != body_sha256:
                raise Conflict(
                    "this Idempotency-Key already stands for another request; take a new key"
                )
            return known.status, known.answer
        status, answer = act()
        RepeatableCall.objects.filter(at__lt=now - _KEPT).delete()
        RepeatableCall.objects.create(
            org=org, key=key, body_sha256=body_sha256, status=status, answer=answer, at=now
        )
    return status, answer
