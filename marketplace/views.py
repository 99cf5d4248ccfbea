"""The public pages, and a member's keys."""

import re
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.db import connection
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import mark_safe
from django.views.decorators.http import require_GET, require_POST
from markdown_it import MarkdownIt

from marketplace import accounts
from marketplace.core.errors import Missing
from marketplace.forms import ApiKeyForm
from marketplace.http import choose_org, org_of
from marketplace.models import ApiKey, Org, Scope
from scheduler import archive, history, proving, public
from scheduler.models import Round
from scheduler.tasks import check_rounds, ring

READERS: Final = ("buyers", "suppliers", "economists")
"""For whom the mechanism is told, each on a page of docs/."""
_PAGES: Final = {
    **{reader: f"mechanism-for-{reader}.md" for reader in READERS},
    "files": "round-files.md",
}


@require_GET
def home(request: HttpRequest) -> HttpResponse:
    """A visitor sees what this is; a member goes to work."""
    if request.user.is_authenticated:
        return redirect("buy" if _buys(request) else "supply")
    view = public.look(now=timezone.now(), rounds=0)
    return render(request, "marketplace/home.html", {"market": view})


@require_GET
def market(request: HttpRequest) -> HttpResponse:
    """Prices, open supply and rounds, for anybody; refreshes itself."""
    now = timezone.now()
    view = public.look(now=now)
    over = history.range_of(request.GET.get("range", "day"))
    gpu_class = request.GET.get("gpu_class", "") or view.busiest
    context = {
        "market": view,
        "now": now,
        "over": over,
        "ranges": history.RANGES.values(),
        "chosen": next((row for row in view.supply if row.gpu_class == gpu_class), None),
        "points": history.points(gpu_class, over, now=now),
    }
    template = "marketplace/_market.html" if request.htmx else "marketplace/market.html"  # type: ignore[attr-defined]
    return render(request, template, context)


@require_GET
def rounds(request: HttpRequest) -> HttpResponse:
    """All rounds that matched something."""
    page = Paginator(public.rounds_matched(), 50).get_page(request.GET.get("page"))
    return render(request, "marketplace/rounds.html", {"page": page, "now": timezone.now()})


@require_GET
def round_page(request: HttpRequest, pk: UUID) -> HttpResponse:
    """All that is public of one round; the part on its verification lives by itself."""
    round = get_object_or_404(public.every_round(), pk=pk)
    context = _verification(round)
    if request.htmx:  # type: ignore[attr-defined]
        return render(request, "marketplace/_verification.html", context)
    prices = public.prices_of(round)
    curves = [each for each in context["curves"] if each["supply"] or each["demand"]]
    asked = request.GET.get("gpu_class", "")
    chosen = next((each for each in curves if each["gpu_class"] == asked), next(iter(curves), None))
    if chosen:
        chosen = {**chosen, "mean": public.mean_prices(prices).get(chosen["gpu_class"])}
    context |= {"prices": prices, "curves": curves, "chosen": chosen}
    return render(request, "marketplace/round.html", context)


@require_GET
def round_file(request: HttpRequest, pk: UUID, name: str) -> HttpResponse:
    """The book or the matches of a released round, by way of storage."""
    round = get_object_or_404(public.every_round(), pk=pk)
    return redirect(archive.file_url(public.record_of(round), name))


@require_POST
def check_round(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Has a released round checked, and answers with how far that is."""
    round = get_object_or_404(public.every_round(), pk=pk)
    record = public.record_of(round)
    if record is None:
        raise Missing("nothing is kept of this round")
    proving.want_check(record, now=timezone.now())
    ring(check_rounds)
    if request.htmx:  # type: ignore[attr-defined]
        return render(request, "marketplace/_verification.html", _verification(round))
    return redirect("round", pk=pk)


def _verification(round: Round) -> dict[str, Any]:
    """What a round commits to, what of it can be had, and what was found."""
    record = public.record_of(round)
    return {
        "round": round,
        "record": record,
        "curves": record.curves if record else [],
        "releases_at": archive.released_at(record) if record else None,
        "files": archive.files(record) if record else None,
        "can_check": bool(record and proving.can_check(record)),
        "market_url": settings.SITE_URL,
        "now": timezone.now(),
    }


@require_GET
def mechanism(request: HttpRequest, reader: str) -> HttpResponse:
    """How the market works, for one of those who ask, or what its files hold: a page of docs/."""
    if reader not in _PAGES:
        raise Http404
    text = (settings.BASE_DIR / "docs" / _PAGES[reader]).read_text("utf-8")
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    # On the site the pages stand beside each other under the names of their readers.
    for name, file in _PAGES.items():
        html = html.replace(f'href="{file}"', f'href="../{name}/"')
    # What stands beside docs/ is in the source alone.
    html = re.sub(
        r'<a href="\.\./([^"]*)/README\.md">(.*?)</a>', r"\2 (<code>\1</code> in the source)", html
    )
    for each in ("pre", "table"):  # they scroll on a phone, by keyboard too
        html = html.replace(f"<{each}>", f'<{each} tabindex="0">')
    title = text.partition("\n")[0].removeprefix("# ")
    context = {"reader": reader, "readers": READERS, "title": title, "html": mark_safe(html)}  # noqa: S308 - ours
    return render(request, "marketplace/mechanism.html", context)


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
