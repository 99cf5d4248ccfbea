"""The edge of HTTP: who is asking, and how a no from the market looks to them."""

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace.core import errors
from marketplace.models import ApiKey, Member, Org, digest

if TYPE_CHECKING:
    from rest_framework.views import APIView

log = logging.getLogger(__name__)

STATUS: Final[tuple[tuple[type[errors.MarketError], int], ...]] = (
    (errors.TooLarge, 413),
    (errors.Invalid, 400),
    (errors.Unauthenticated, 401),
    (errors.NotEnoughMoney, 402),
    (errors.Forbidden, 403),
    (errors.Missing, 404),
    (errors.Conflict, 409),
    (errors.Unavailable, 503),
    (errors.MarketError, 400),
)
_SESSION_ORG: Final = "org"
_KEY_USED_EVERY: Final = timedelta(minutes=1)


def status_of(error: errors.MarketError) -> int:
    """The HTTP status that says the same as the error."""
    return next(status for kind, status in STATUS if isinstance(error, kind))


def problem(error: errors.MarketError) -> dict[str, str]:
    """The JSON body that says the same as the error."""
    return {"code": error.code, "message": str(error), "field": getattr(error, "field", "")}


def org_of(request: HttpRequest | Request) -> Org:
    """The org that this request acts for: its API key's, else the one chosen in the session.

    Raises Unauthenticated for a stranger, Forbidden for a user without any org.
    """
    key = getattr(request, "auth", None)
    if isinstance(key, ApiKey):
        return key.org
    if not request.user.is_authenticated:
        raise errors.Unauthenticated("log in, or send an API key as `Authorization: Bearer …`")
    memberships = Member.objects.filter(user=request.user).select_related("org").order_by("id")
    chosen = request.session.get(_SESSION_ORG)
    orgs = [membership.org for membership in memberships]
    for org in orgs:
        if str(org.pk) == chosen:
            return org
    if not orgs:
        raise errors.Forbidden("you belong to no organisation yet; create one in your account")
    return orgs[0]


def choose_org(request: HttpRequest, org: Org) -> None:
    """Makes `org` the one that this session acts for."""
    request.session[_SESSION_ORG] = str(org.pk)


def key_of(authorization: str) -> ApiKey | None:
    """The API key in an Authorization header; None if it holds none. Raises AuthenticationFailed
    for one that is no good."""
    kind, _, secret = authorization.partition(" ")
    if kind.lower() != "bearer" or not secret:
        return None
    now = timezone.now()
    key = (
        ApiKey.objects.filter(digest=digest(secret.strip()), revoked_at=None)
        .filter(Q(expires_at=None) | Q(expires_at__gt=now))
        .select_related("org", "created_by")
        .first()
    )
    if key is None or not key.created_by.is_active:
        raise AuthenticationFailed("this API key is wrong, revoked or expired; make a new one")
    if key.last_used_at is None or now - key.last_used_at > _KEY_USED_EVERY:
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=now)
    return key


def json_file(name: str, content: Mapping[str, Any]) -> HttpResponse:
    """JSON that a browser saves under this name."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return JsonResponse(dict(content), json_dumps_params={"indent": 1}, headers=headers)


class ApiKeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer glk_…`. The key's creator is the user, its org the org."""

    def authenticate(self, request: Request) -> tuple[User, ApiKey] | None:
        key = key_of(request.headers.get("Authorization", ""))
        return (key.created_by, key) if key else None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class ApiKeyScheme(OpenApiAuthenticationExtension):
    """How the OpenAPI document names the above."""

    target_class = ApiKeyAuthentication
    name = "apiKey"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer"}


class HasScope(BasePermission):
    """A view says `scope = Scope.…`, or `public = True`; one that says neither is closed."""

    message = "this API key lacks the scope for that; make one that has it"

    def has_permission(self, request: Request, view: "APIView") -> bool:
        if getattr(view, "public", False):
            return True
        scope = getattr(view, "scope", None)
        if scope is None or isinstance(request.user, AnonymousUser):
            return False
        key = request.auth
        return not isinstance(key, ApiKey) or scope in key.scopes


def api_exception(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: a MarketError as JSON, DRF's own in the same shape."""
    if isinstance(error, errors.MarketError):
        return Response(problem(error), status=status_of(error))
    # DRF's views import this module while they are being made.
    from rest_framework.views import exception_handler

    response = exception_handler(error, context)
    if response is not None:
        data = response.data
        detail = data.get("detail") if isinstance(data, dict) else None
        field = "" if detail or not isinstance(data, dict) else next(iter(data), "")
        message = str(detail) if detail else _first_message(data)
        code = getattr(getattr(error, "detail", None), "code", None) or "invalid"
        response.data = {"code": code, "message": message, "field": field}
    return response


def _first_message(data: Any) -> str:
    while isinstance(data, dict | list) and data:
        data = next(iter(data.values())) if isinstance(data, dict) else data[0]
    return str(data)


class MarketErrorMiddleware:
    """Turns a MarketError raised by a page's view into a page, a fragment or JSON."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, errors.MarketError):
            return None
        status = status_of(error)
        if request.path.startswith(("/api/", "/agent/", "/stripe/")):
            return JsonResponse(problem(error), status=status)
        template = "_error.html" if getattr(request, "htmx", False) else "error.html"
        return render(request, template, {"error": error, "status": status}, status=status)


def page_context(request: HttpRequest) -> dict[str, object]:
    """What every page's frame shows: the org that the session acts for."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {"org": None}
    try:
        return {"org": org_of(request)}
    except errors.MarketError:
        return {"org": None}
