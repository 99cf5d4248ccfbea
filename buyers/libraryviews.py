"""Buyers' pages of what they keep: datasets and bases."""

from typing import Any, Final
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from buyers import checking, control, datasets, fetching, licences
from buyers.forms import BaseForm
from buyers.hub_models import Fetch
from buyers.member import MemberRequest, by
from buyers.models import Artifact, Dataset
from marketplace.core.errors import MarketError
from marketplace.http import org_of

_ROWS: Final = 25


@login_required
@require_GET
def dataset_list(request: MemberRequest) -> HttpResponse:
    """All versions, and a way to upload one: the browser sends it straight to our storage."""
    found = Dataset.objects.of(org_of(request)).order_by("-id")
    page = Paginator(found, _ROWS).get_page(request.GET.get("page"))
    return render(request, "buyers/datasets.html", {"page": page, "now": timezone.now()})


@login_required
@require_GET
def dataset(request: MemberRequest, pk: UUID) -> HttpResponse:
    """One version: its state, its files, its first rows. While it is looked at, it refreshes."""
    found = get_object_or_404(Dataset.objects.of(org_of(request)), pk=pk)
    context = {"dataset": found, "parts": checking.as_json(found), "now": timezone.now()}
    template = "buyers/_dataset.html" if request.htmx else "buyers/dataset.html"
    return render(request, template, context)


@login_required
@require_POST
def check_again(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Has a refused version looked through again, once what was missing has been sent."""
    found = get_object_or_404(Dataset.objects.of(org_of(request)), pk=pk)
    control.commit(found, now=timezone.now())
    return redirect("dataset", pk)


@login_required
@require_POST
def discard(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Removes a version that is not committed, with what was sent of it."""
    datasets.discard(get_object_or_404(Dataset.objects.of(org_of(request)), pk=pk))
    return redirect("datasets")


@login_required
@require_http_methods(["GET", "POST"])
def bases(request: MemberRequest) -> HttpResponse:
    """What the org may start from, what is on its way, and a form to fetch another."""
    org = org_of(request)
    if request.htmx and request.method == "GET":
        return _fetches_anew(request)
    form = BaseForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            control.add_base(org, **form.cleaned_data, **by(request))
            return redirect("bases")
        except MarketError as error:
            form.refuse(error)
    found = Artifact.objects.usable_by(org).bases().order_by("name", "-created_at")
    words = licences.words(org)
    context = {
        "form": form,
        **_fetches(request),
        "bases": [
            {"base": base, "accepted": (base.repository, base.licence) in words}
            for base in found[:200]
        ],
        "now": timezone.now(),
    }
    return render(request, "buyers/bases.html", context)


@login_required
@require_POST
def accept_licence(request: MemberRequest, pk: UUID) -> HttpResponse:
    """The org's word on the licence that the page has shown."""
    org = org_of(request)
    base = get_object_or_404(Artifact.objects.usable_by(org), pk=pk)
    licences.accept(org, base, licence=request.POST.get("licence", ""), **by(request))
    return redirect("bases")


@login_required
@require_POST
def cancel_fetch(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Ends a fetch that is under way."""
    fetching.cancel(get_object_or_404(Fetch.objects.of(org_of(request)), pk=pk), **by(request))
    return redirect("bases")


def _fetches_anew(request: MemberRequest) -> HttpResponse:
    """How far they are; once nothing is under way any more, the whole page."""
    fetches = _fetches(request)
    answer = render(request, "buyers/_fetches.html", fetches)
    if not fetches["under_way"]:
        answer["HX-Refresh"] = "true"
    return answer


def _fetches(request: MemberRequest) -> dict[str, Any]:
    """What is under way, and what was refused lately."""
    shown = Fetch.objects.of(org_of(request)).exclude(state="ready").order_by("-created_at")
    found = list(shown[:10])
    return {
        "fetches": found,
        "under_way": any(fetch.state in ("asked", "fetching") for fetch in found),
    }
