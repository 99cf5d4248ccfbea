"""The public pages, and a member's keys."""

from uuid import UUID

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from marketplace import accounts
from marketplace.forms import ApiKeyForm
from marketplace.http import choose_org, org_of
from marketplace.models import ApiKey, Org, Scope
from scheduler import public


@require_GET
def home(request: HttpRequest) -> HttpResponse:
    """A visitor sees what this is; a member goes to work."""
    if request.user.is_authenticated:
        return redirect("buy" if _buys(request) else "supply")
    view = public.look(now=timezone.now(), rounds=0)
    return render(request, "marketplace/home.html", {"market": view})


@require_GET
def market(request: HttpRequest) -> HttpResponse:
    """Open supply, last prices and rounds, for anybody; refreshes itself."""
    now = timezone.now()
    view = public.look(now=now)
    history = {row.gpu_class: public.price_history(row.gpu_class, now=now) for row in view.supply}
    context = {
        "market": view,
        "now": now,
        "series": {
            name: [[at.timestamp() for at, _, _ in rows], [price / 1e6 for _, price, _ in rows]]
            for name, rows in history.items()
            if rows
        },
    }
    template = "marketplace/_market.html" if request.htmx else "marketplace/market.html"  # type: ignore[attr-defined]
    return render(request, template, context)


@require_GET
def rounds(request: HttpRequest) -> HttpResponse:
    """All rounds that matched something."""
    page = Paginator(public.rounds_matched(), 50).get_page(request.GET.get("page"))
    return render(request, "marketplace/rounds.html", {"page": page, "now": timezone.now()})


@login_required
def api_keys(request: HttpRequest) -> HttpResponse:
    """The org's keys; a new one's secret is shown once, on the answer to its making."""
    org = org_of(request)
    assert isinstance(request.user, User), "login_required has seen to that"
    form = ApiKeyForm(request.POST or None, choices=list(Scope.choices))
    secret = ""
    if request.method == "POST" and form.is_valid():
        _, secret = accounts.create_key(
            org,
            name=form.cleaned_data["name"],
            scopes=form.cleaned_data["scopes"],
            by=request.user,
            now=timezone.now(),
        )
        form = ApiKeyForm(choices=list(Scope.choices))
    keys = ApiKey.objects.filter(org=org, revoked_at=None).order_by("-created_at")
    context = {"form": form, "keys": keys, "secret": secret, "now": timezone.now()}
    return render(request, "marketplace/api_keys.html", context)


@login_required
@require_POST
def revoke_key(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Ends a key at once."""
    key = get_object_or_404(ApiKey, pk=pk, org=org_of(request))
    ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now())
    messages.success(request, f"The key {key.name} no longer works.")
    return redirect("api_keys")


@login_required
@require_POST
def switch_org(request: HttpRequest) -> HttpResponse:
    """Acts for another of the user's orgs from now on."""
    slug = request.POST.get("org", "")
    choose_org(request, get_object_or_404(Org, slug=slug, memberships__user=request.user))
    return HttpResponseRedirect(reverse("home"))


@require_GET
def healthz(request: HttpRequest) -> HttpResponse:
    """Whether this process and its database answer."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok\n", content_type="text/plain")


def _buys(request: HttpRequest) -> bool:
    org = org_of(request)
    return not org.sites.exists() or org.jobs.exists()
