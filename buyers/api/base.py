"""What all views of buying share."""

import hashlib
from collections.abc import Callable
from typing import Any, Final

from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from buyers import repeats
from marketplace.core.errors import Invalid, TooLarge
from marketplace.core.text import require_plain
from marketplace.http import org_of
from marketplace.models import Org, Scope

MAX_BODY: Final = 8 * 2**20
"""A manifest of 10,000 files with long names, and room."""
REPEATABLE: Final = OpenApiParameter(
    "Idempotency-Key",
    location=OpenApiParameter.HEADER,
    description="Any text of yours, like a UUID. The same request under the same key is done "
    "once, and answered alike for a day.",
)


class Newest(CursorPagination):
    """Pages with the newest first: ids are made of their time."""

    ordering = "-id"
    page_size = 50


class BuyerView(APIView):
    """The scope, the org, and how large a question may be."""

    scope = Scope.BUY

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if int(request.META.get("CONTENT_LENGTH") or 0) > MAX_BODY:
            raise TooLarge(f"a request's body has at most {MAX_BODY >> 20} MiB")

    @property
    def org(self) -> Org:
        """The org that the request acts for."""
        return org_of(self.request)

    def by(self) -> dict[str, Any]:
        """Who does it, and when."""
        return {"by": self.request.user, "now": timezone.now()}

    def body(self) -> dict[str, Any]:
        """What was sent, as an object of plain text and numbers; raises Invalid otherwise."""
        try:
            said = self.request.data
        except RecursionError:
            raise Invalid("this JSON is nested too deeply") from None
        if not isinstance(said, dict):
            raise Invalid('send a JSON object, like {"budget": "2.50"}')
        require_plain(said)
        return dict(said)

    def asked(self, name: str) -> str:
        """A parameter of the address; raises Invalid for text that can't be."""
        found = self.request.query_params.get(name, "")
        require_plain({name: found})
        return found

    def page(self, found: Any, shape: type[serializers.Serializer[Any]]) -> Response:
        """One page of a list, newest first."""
        pages = Newest()
        rows: Any = pages.paginate_queryset(found, self.request, view=self)
        return pages.get_paginated_response(shape(rows, many=True).data)

    def once(self, act: Callable[[], dict[str, Any]]) -> Response:
        """The answer to a POST that makes something: done once per Idempotency-Key."""
        request = self.request
        said = repr((request.method, request.path, self.body())).encode()
        status, answer = repeats.once(
            self.org,
            request.headers.get("Idempotency-Key", ""),
            body_sha256=hashlib.sha256(said).hexdigest(),
            now=timezone.now(),
            act=lambda: (201, act()),
        )
        return Response(answer, status=status)


def shaped(serializer: serializers.Serializer[Any]) -> dict[str, Any]:
    """What was sent, in the right shape; DRF's own error otherwise."""
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)
