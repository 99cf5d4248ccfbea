"""Who asks for a page of buying, and what every verb wants to know of them."""

from typing import Any

from django.contrib.auth.models import User
from django.http import HttpRequest
from django.utils import timezone
from django_htmx.middleware import HtmxDetails


class MemberRequest(HttpRequest):
    """A request as `login_required` lets it through."""

    user: User
    htmx: HtmxDetails


def by(request: MemberRequest) -> dict[str, Any]:
    """Who does it, and when."""
    return {"by": request.user, "now": timezone.now()}
