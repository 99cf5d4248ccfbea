"""How often one person may ask the REST API for something that costs us: per minute, by scope.

Quotes read the whole book, writes take locks. The minutes are counted in Valkey, for all
processes together; while it is away nobody is held up. Reading is free, but for what anybody may
read without a key: that is counted by address.
"""

import math
import time
from typing import TYPE_CHECKING, Final

from django.conf import settings
from rest_framework.exceptions import ErrorDetail, Throttled
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from marketplace import telemetry

if TYPE_CHECKING:
    from rest_framework.views import APIView

_MINUTE: Final = 60


class PerMinute(BaseThrottle):
    """A view says `throttle_scope = "quotes"`; all other views' POSTs and the like are writes.

    Counted by person, whichever of their keys they use: a key is made in no time. Who is not
    known yet is refused elsewhere.
    """

    def allow_request(self, request: Request, view: "APIView") -> bool:
        """True, or raises Throttled, whose message says what the limit is."""
        if request.method in SAFE_METHODS or not request.user.is_authenticated:
            return True
        return _count(getattr(view, "throttle_scope", "writes"), str(request.user.pk))


class EachCall(BaseThrottle):
    """For views that cost us even where they only read; they have a `throttle_scope`. By person."""

    def allow_request(self, request: Request, view: "APIView") -> bool:
        """True, or raises Throttled, whose message says what the limit is."""
        return not request.user.is_authenticated or _count(
            view.throttle_scope,  # type: ignore[attr-defined]
            str(request.user.pk),
        )


class PerAddress(BaseThrottle):
    """For public views with a `throttle_scope`: counted by the address that asks."""

    def allow_request(self, request: Request, view: "APIView") -> bool:
        """True, or raises Throttled, whose message says what the limit is."""
        return _count(view.throttle_scope, request.META.get("REMOTE_ADDR", ""))  # type: ignore[attr-defined]


def _count(scope: str, who: str) -> bool:
    minute, second = divmod(time.time(), _MINUTE)
    most = settings.THROTTLES[scope]
    key = f"throttle:{scope}:{who}:{minute:.0f}"
    if telemetry.count(key, keep_s=2 * _MINUTE) <= most:
        return True
    wait = math.ceil(_MINUTE - second)
    error = Throttled(wait=wait)
    error.detail = ErrorDetail(
        f"that was more than {most} {scope} in a minute; go on in {wait} s", "throttled"
    )
    raise error
