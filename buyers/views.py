"""Buyers' pages: what they have, a quote, a job that lives."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from buyers import control, downloads, jobview
from buyers import secrets as vaulted
from buyers import wallet as wallets
from buyers.forms import BidForm, JobForm, ResumeForm, SecretForm, TopUpForm
from buyers.models import Artifact, Dataset, Job, Quote, Secret
from marketplace.core import specs
from marketplace.core.errors import Invalid, MarketError
from marketplace.core.money import parse_amount
from marketplace.core.specs import JobRequest
from marketplace.http import org_of
from marketplace.ledger import services as ledger
from marketplace.payments import services as payments
from marketplace.payments.models import TopUp
from scheduler import jobs, receipts

_ROWS: Final = 25


class MemberRequest(HttpRequest):
    """A request as `login_required` lets it through."""

    user: User
    htmx: HtmxDetails


@login_required
@require_GET
def buy(request: MemberRequest) -> HttpResponse:
    """What the org has: money, jobs, datasets, models. The jobs refresh themselves."""
    org, now = org_of(request), timezone.now()
    found = Job.objects.of(org).order_by("-created_at")
    page = Paginator(found, _ROWS).get_page(request.GET.get("page"))
    if request.htmx:
        return render(request, "buyers/_jobs.html", {"page": page, "now": now})
    context = {
        "page": page,
        "now": now,
        "wallet": wallets.look(org),
        "datasets": Dataset.objects.of(org).committed().order_by("-id")[:10],
        "artifacts": Artifact.objects.of(org).exclude(committed_at=None).order_by("-id")[:10],
    }
    return render(request, "buyers/buy.html", context)


@login_required
@require_http_methods(["GET", "POST"])
def wallet(request: MemberRequest) -> HttpResponse:
    """What is in the wallet and how it came there; a form that leads to the card page."""
    org = org_of(request)
    form = TopUpForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        page = settings.SITE_URL + reverse("wallet")
        try:
            url = payments.start_top_up(
                org,
                amount=payments.parse_top_up(form.cleaned_data["amount"]),
                success_url=f"{page}?paid=1",
                cancel_url=page,
                **_by(request),
            )
            return redirect(url)
        except MarketError as error:
            form.refuse(error)
    lines = ledger.statement(ledger.wallet(org.pk)).order_by("-at", "-id")
    context = {
        "form": form,
        "wallet": wallets.look(org),
        "page": Paginator(lines, _ROWS).get_page(request.GET.get("page")),
        "open": TopUp.objects.of(org).open().order_by("-created_at")[:5],
        "paid": "paid" in request.GET,
        "now": timezone.now(),
    }
    return render(request, "buyers/wallet.html", context)


@login_required
@require_GET
def datasets(request: MemberRequest) -> HttpResponse:
    """All versions, and a way to upload one: the browser sends it straight to our storage."""
    found = Dataset.objects.of(org_of(request)).order_by("-id")
    page = Paginator(found, _ROWS).get_page(request.GET.get("page"))
    return render(request, "buyers/datasets.html", {"page": page, "now": timezone.now()})


@login_required
@require_http_methods(["GET", "POST"])
def secrets(request: MemberRequest) -> HttpResponse:
    """The org's secrets by name; a form that sets one."""
    org = org_of(request)
    form = SecretForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        told = form.cleaned_data
        try:
            trust = vaulted.parse_trust(told.pop("trust"))
            vaulted.keep(org, trust=trust, **told, **_by(request))
            return redirect("secrets")
        except MarketError as error:
            form.refuse(error)
    context = {
        "form": form,
        "secrets": Secret.objects.of(org).order_by("name"),
        "now": timezone.now(),
    }
    return render(request, "buyers/secrets.html", context)


@login_required
@require_POST
def forget_secret(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Forgets one."""
    vaulted.forget(get_object_or_404(Secret.objects.of(org_of(request)), pk=pk))
    return redirect("secrets")


@login_required
@require_http_methods(["GET", "POST"])
def new_job(request: MemberRequest) -> HttpResponse:
    """A job as wanted; then its quote, or, left to a bid, the job."""
    org = org_of(request)
    form = JobForm(request.POST or None, org=org)
    if request.method == "POST" and form.is_valid():
        try:
            asked = specs.parse(form.raw())
            if "bid" in request.POST:
                return redirect("job", control.submit(org, asked, **_by(request)).pk)
            return redirect("quote", control.quote(org, asked, now=timezone.now()).pk)
        except MarketError as error:
            form.refuse(error)
    return render(request, "buyers/job_form.html", {"form": form})


@login_required
@require_GET
def quote(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Every place it could run, ranked: take one, or leave it to a bid."""
    return _quote_page(request, _quote(request, pk), BidForm())


@login_required
@require_POST
def quote_again(request: MemberRequest, pk: UUID) -> HttpResponse:
    """The same job at today's prices."""
    old = _quote(request, pk)
    asked = JobRequest.from_json(old.request)
    return redirect("quote", control.quote(old.org, asked, now=timezone.now()).pk)


@login_required
@require_POST
def take(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Starts one option of a quote."""
    found = _quote(request, pk)
    option = request.POST.get("option", "")
    if not (option.isascii() and option.isdigit() and len(option) < 6):
        raise Invalid("choose one of the quote's options", field="option")
    return _to_job(request, jobs.take(found, option=int(option), **_by(request)))


@login_required
@require_POST
def bid(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Leaves a quote's job to the rounds, at a limit."""
    found = _quote(request, pk)
    form = BidForm(request.POST)
    if form.is_valid():
        try:
            limit = parse_amount(form.cleaned_data["limit"], field="limit")
            asked = replace(JobRequest.from_json(found.request), limit_micros=limit, limits={})
            return _to_job(request, control.submit(found.org, asked, **_by(request)))
        except MarketError as error:
            form.refuse(error)
    return _quote_page(request, found, form)


@login_required
@require_GET
def job(request: MemberRequest, pk: UUID) -> HttpResponse:
    """The page that lives: its socket (`buyers.consumers`) sends what changes."""
    found = _job(request, pk)
    now = timezone.now()
    view = jobview.look(found, now=now)
    context = {
        "view": view,
        "job": found,
        "receipt": receipts.receipt(found),
        "log": jobview.log_tail(found, view.lease),
        "points": list(jobview.points(found).rows),
    }
    return render(request, "buyers/job.html", context)


@login_required
@require_POST
def cancel(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Ends it for good."""
    return _changed(request, pk, jobs.cancel)


@login_required
@require_POST
def stop(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Saves and stops it."""
    return _changed(request, pk, jobs.stop)


@login_required
@require_POST
def resume(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Goes on from its last checkpoint."""
    form = ResumeForm(request.POST)
    budget = form.cleaned_data["budget"] if form.is_valid() else ""
    return _changed(request, pk, control.resume, budget=budget)


@login_required
@require_GET
def artifact_file(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Leads to one file of a model: its URL is made anew for each click."""
    usable = Artifact.objects.usable_by(org_of(request))
    artifact = get_object_or_404(usable, pk=pk)
    return redirect(downloads.url(artifact, request.GET.get("path", "")))


def _by(request: MemberRequest) -> dict[str, Any]:
    """Who does it, and when: what every verb wants to know."""
    return {"by": request.user, "now": timezone.now()}


def _job(request: MemberRequest, pk: UUID) -> Job:
    mine = Job.objects.of(org_of(request)).select_related("created_by", "packages")
    return get_object_or_404(mine, pk=pk)


def _quote(request: MemberRequest, pk: UUID) -> Quote:
    return get_object_or_404(Quote.objects.of(org_of(request)).select_related("org"), pk=pk)


def _quote_page(request: MemberRequest, found: Quote, form: BidForm) -> HttpResponse:
    now = timezone.now()
    context = {
        "quote": found,
        "asked": JobRequest.from_json(found.request),
        "form": form,
        "now": now,
        "holds": now <= found.expires_at and found.taken_at is None,
    }
    return render(request, "buyers/quote.html", context)


def _to_job(request: MemberRequest, job: Job) -> HttpResponse:
    """The job's page, for a form as for htmx."""
    url = reverse("job", args=[job.pk])
    return HttpResponseClientRedirect(url) if request.htmx else redirect(url)


def _changed(
    request: MemberRequest, pk: UUID, verb: Callable[..., Job], **more: Any
) -> HttpResponse:
    """Does it, and answers with the job's state as it now is."""
    verb(_job(request, pk), **_by(request), **more)
    if not request.htmx:
        return redirect("job", pk)
    view = jobview.look(_job(request, pk), now=timezone.now())
    return render(request, "buyers/_job_state.html", {"view": view})
