"""Suppliers' pages: sites and nodes, one node, its offer. Fragments live by themselves."""

from collections.abc import Callable
from datetime import timedelta
from itertools import groupby
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.middleware import HtmxDetails

from marketplace.core.errors import MarketError
from marketplace.core.money import format_amount
from marketplace.http import json_file, org_of
from scheduler import proving
from suppliers import board, control, earnings, enrolment, offers, services
from suppliers.forms import FingerprintForm, OfferForm, SiteForm, TokenForm, write_windows
from suppliers.models import Node, Offer, Site

_NODES_A_PAGE: Final = 100


class MemberRequest(HttpRequest):
    """A request as `login_required` lets it through."""

    user: User
    htmx: HtmxDetails


@login_required
@require_GET
def supply(request: MemberRequest) -> HttpResponse:
    """All sites with their nodes: what each does, why it idles, what it earns today."""
    now = timezone.now()
    org = org_of(request)
    sites = list(Site.objects.of(org).order_by("name"))
    nodes = Node.objects.of(org).exclude(state="retired").select_related("site")
    page = Paginator(nodes.order_by("site__name", "name"), _NODES_A_PAGE).get_page(
        request.GET.get("page")
    )
    shown = board.lines(page.object_list, now=now)
    by_site = {site: list(group) for site, group in groupby(shown, key=lambda line: line.node.site)}
    context = {
        "sites": [board.SiteLines(site, by_site.get(site, [])) for site in sites],
        "page": page,
        "now": now,
    }
    template = "suppliers/_sites.html" if request.htmx else "suppliers/supply.html"
    return render(request, template, context)


@login_required
@require_http_methods(["GET", "POST"])
def new_site(request: MemberRequest) -> HttpResponse:
    """A form, and then the site."""
    org = org_of(request)
    form = SiteForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            services.create_site(org, form.facts(), now=timezone.now())
            return redirect("supply")
        except MarketError as error:
            form.refuse(error)
    return render(request, "suppliers/site_form.html", {"form": form})


@login_required
@require_http_methods(["GET", "POST"])
def edit_site(request: MemberRequest, pk: UUID) -> HttpResponse:
    """What its supplier says of a site."""
    site = get_object_or_404(Site.objects.of(org_of(request)), pk=pk)
    form = SiteForm.of(site, request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            services.edit_site(site, form.facts())
            return redirect("supply")
        except MarketError as error:
            form.refuse(error)
    return render(request, "suppliers/site_form.html", {"form": form, "site": site})


@login_required
@require_http_methods(["GET", "POST"])
def new_token(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Asks for how many machines, then shows the secret: on the answer to its making, once."""
    site = get_object_or_404(Site.objects.of(org_of(request)), pk=pk)
    form = TokenForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        days = form.cleaned_data["days"]
        try:
            token, secret = enrolment.make_token(
                site,
                nodes=form.cleaned_data["nodes"],
                by=request.user,
                now=timezone.now(),
                lifetime=timedelta(days=days) if days else None,
            )
            return _show_token(request, token, secret)
        except MarketError as error:
            form.refuse(error)
    return render(request, "suppliers/token_form.html", {"form": form, "site": site})


@login_required
@require_POST
def rekey(request: MemberRequest, pk: UUID) -> HttpResponse:
    """A token that gives this node a new key."""
    node = _node(request, pk)
    token, secret = enrolment.make_rekey_token(node, by=request.user, now=timezone.now())
    return _show_token(request, token, secret)


@login_required
@require_GET
def node(request: MemberRequest, pk: UUID) -> HttpResponse:
    """One machine: what it is, how it stands, its story. Its state refreshes itself."""
    found = _node(request, pk)
    if request.htmx:
        return _node_state(request, found)
    return _node_page(request, found, FingerprintForm())


@login_required
@require_GET
def proof(request: MemberRequest, pk: UUID) -> HttpResponse:
    """The node's row in the round that let some of it last, else in the newest, with its proof."""
    found = proving.of_node(_node(request, pk))
    return json_file(f"proof-{found.round}.json", found.as_json())


@login_required
@require_POST
def confirm(request: MemberRequest, pk: UUID) -> HttpResponse:
    """The owner has compared the fingerprint."""
    found = _node(request, pk)
    form = FingerprintForm(request.POST)
    if form.is_valid():
        try:
            control.confirm(
                found, form.cleaned_data["fingerprint"], by=request.user, now=timezone.now()
            )
            return redirect("node", pk)
        except MarketError as error:
            form.refuse(error)
    return _node_page(request, found, form)


@login_required
@require_POST
def drain(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Takes the machine back within its notice."""
    return _changed(request, control.drain(_node(request, pk), **_by(request)))


@login_required
@require_POST
def undrain(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Lets it again."""
    return _changed(request, control.undrain(_node(request, pk), **_by(request)))


@login_required
@require_POST
def retire(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Ends it, and revokes its key."""
    at_once = request.POST.get("at_once") == "1"
    return _changed(request, control.retire(_node(request, pk), at_once=at_once, **_by(request)))


@login_required
@require_http_methods(["GET", "POST"])
def new_offer(request: MemberRequest, pk: UUID) -> HttpResponse:
    """What the node is let at. It begins with what it is let at now, its ask perhaps from the address."""
    found = _node(request, pk)
    current = found.offers.exclude(state="closed").first()
    asked = {"ask": request.GET["ask"]} if "ask" in request.GET else {}
    form = OfferForm(request.POST or None, initial={**_initial(current), **asked})
    if request.method == "POST" and form.is_valid():
        try:
            control.offer(found, form.terms(), **_by(request))
            return redirect("node", pk)
        except MarketError as error:
            form.refuse(error)
    context = {"form": form, "node": found, "floor": offers.ask_floor(found), "current": current}
    return render(request, "suppliers/offer_form.html", context)


@login_required
@require_POST
def pause_offer(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Nothing new starts on it."""
    return _offer_changed(request, pk, offers.pause)


@login_required
@require_POST
def resume_offer(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Open again."""
    return _offer_changed(request, pk, control.resume)


@login_required
@require_POST
def close_offer(request: MemberRequest, pk: UUID) -> HttpResponse:
    """The end of it."""
    return _offer_changed(request, pk, offers.close)


def _node(request: MemberRequest, pk: UUID) -> Node:
    return get_object_or_404(Node.objects.of(org_of(request)).select_related("site"), pk=pk)


def _by(request: MemberRequest) -> dict[str, Any]:
    """Who does it, and when: what every verb wants to know."""
    return {"by": request.user, "now": timezone.now()}


def _changed(request: MemberRequest, node: Node) -> HttpResponse:
    return _node_state(request, node) if request.htmx else redirect("node", node.pk)


def _offer_changed(request: MemberRequest, pk: UUID, verb: Callable[..., Offer]) -> HttpResponse:
    mine = Offer.objects.of(org_of(request)).select_related("node__site")
    offer = get_object_or_404(mine, pk=pk)
    verb(offer, by=request.user, now=timezone.now())
    return _changed(request, offer.node)


def _node_state(request: MemberRequest, node: Node) -> HttpResponse:
    now = timezone.now()
    context = {"line": board.line(node, now=now), "now": now}
    return render(request, "suppliers/_node_state.html", context)


def _node_page(request: MemberRequest, node: Node, form: FingerprintForm) -> HttpResponse:
    now = timezone.now()
    context = {
        # A copy of its own, so that the line's prefetched rows are not taken for all rows.
        "line": board.line(_node(request, node.pk), now=now),
        "node": node,
        "form": form,
        "offers": node.offers.order_by("-id")[:20],
        "proofs": node.benchmarks.order_by("-asked_at")[:5],
        "story": node.story().order_by("-id")[:50],
        "earnings": earnings.of_node(node),
        "floor": offers.ask_floor(node),
        "now": now,
    }
    return render(request, "suppliers/node.html", context)


def _show_token(request: MemberRequest, token: object, secret: str) -> HttpResponse:
    context = {
        "token": token,
        "command": f"python -m agent enroll --market {settings.AGENTS_URL} --token {secret}",
        "now": timezone.now(),
    }
    response = render(request, "suppliers/token.html", context)
    response["Cache-Control"] = "no-store"
    return response


def _initial(offer: Offer | None) -> dict[str, object]:
    if offer is None:
        return {}
    return {
        "ask": format_amount(offer.ask_micros).replace(",", ""),
        "notice_s": offer.notice_s,
        "audience": offer.audience,
        "scripts": offer.scripts,
        "windows": write_windows(offer.windows),
    }
