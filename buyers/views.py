"""Buyers' pages: what they have, a quote, a job that lives."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseClientRedirect

from buyers import control, jobstart, jobview
from buyers import wallet as wallets
from buyers.forms import BidForm, JobForm, ParameterForm, ResumeForm, TopUpForm
from buyers.member import MemberRequest, by
from buyers.models import Artifact, Dataset, Job, Quote
from marketplace.core import specs
from marketplace.core.errors import Invalid, MarketError
from marketplace.core.money import parse_amount
from marketplace.core.specs import JobRequest
from marketplace.http import json_file, org_of
from marketplace.ledger import services as ledger
from marketplace.payments import services as payments
from marketplace.payments.models import TopUp
from scheduler import jobs, proving, receipts

_ROWS: Final = 25


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
                **by(request),
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
@require_http_methods(["GET", "POST"])
def new_job(request: MemberRequest) -> HttpResponse:
    """A job as wanted; then its quote, or, left to a bid, the job.

    Another recipe has other inputs and parameters: htmx asks for the fragment that holds them.
    """
    org = org_of(request)
    posted = request.POST or None
    start = jobstart.of(org, request.POST or request.GET)
    form = JobForm(start.recipe, posted, org=org, initial=start.fields)
    parameters = ParameterForm(start.recipe, posted, initial=start.parameters)
    if posted and form.is_valid() and parameters.is_valid():
        try:
            asked = specs.parse({**form.raw(), "parameters": parameters.raw()})
            if "bid" in request.POST:
                return redirect("job", control.submit(org, asked, **by(request)).pk)
            return redirect("quote", control.quote(org, asked, now=timezone.now()).pk)
        except MarketError as error:
            at_parameters = isinstance(error, Invalid) and error.field.startswith("parameters")
            (parameters if at_parameters else form).refuse(error)
    template = "buyers/_job_form_recipe.html" if request.htmx else "buyers/job_form.html"
    return render(request, template, {"form": form, "parameters": parameters, "start": start})


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
    return _to_job(request, jobs.take(found, option=int(option), **by(request)))


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
            return _to_job(request, control.submit(found.org, asked, **by(request)))
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
@require_GET
def proof(request: MemberRequest, pk: UUID) -> HttpResponse:
    """The job's row in the round that placed it, else in the newest, as a file with its proof."""
    found = proving.of_job(_job(request, pk))
    return json_file(f"proof-{found.round}.json", found.as_json())


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
@require_POST
def accept(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Makes one change that would place it: `change` is its term, what to, and a GPU class."""
    term, to, gpu_class, *_ = [*request.POST.get("change", "").split(" "), "", "", ""]
    control.accept(_job(request, pk), term=term, to=to, gpu_class=gpu_class, **by(request))
    if not request.htmx:
        return redirect("job", pk)
    view = jobview.look(_job(request, pk), now=timezone.now())
    return render(request, "buyers/_job_waiting.html", {"view": view})


def _job(request: MemberRequest, pk: UUID) -> Job:
    mine = Job.objects.of(org_of(request)).select_related("created_by", "packages", "image")
    return get_object_or_404(mine, pk=pk)


def _quote(request: MemberRequest, pk: UUID) -> Quote:
    return get_object_or_404(Quote.objects.of(org_of(request)).select_related("org"), pk=pk)


def _quote_page(request: MemberRequest, found: Quote, form: BidForm) -> HttpResponse:
    now = timezone.now()
    unfit = [option for option in found.options if not option["fits"]]
    context = {
        "quote": found,
        "fitting": [option for option in found.options if option["fits"]],
        "unfit": unfit,
        "unfit_in_all": len(unfit) + found.more_unfit,
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
    verb(_job(request, pk), **by(request), **more)
    if not request.htmx:
        return redirect("job", pk)
    view = jobview.look(_job(request, pk), now=timezone.now())
    return render(request, "buyers/_job_state.html", {"view": view})
