"""A model's page, its card, its files, and its promotion."""

from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from buyers import downloads, modelview, promotion
from buyers.forms import PromoteForm
from buyers.member import MemberRequest, by
from buyers.models import Artifact
from marketplace.core.errors import MarketError
from marketplace.http import org_of


@login_required
@require_GET
def model(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Where a model comes from, what it can do, and what to do with it."""
    return _page(request, _artifact(request, pk), PromoteForm())


@login_required
@require_POST
def promote(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Makes it the org's current model of its name."""
    found, form = _artifact(request, pk), PromoteForm(request.POST)
    if form.is_valid():
        try:
            promotion.promote(found, reason=form.cleaned_data["reason"], **by(request))
            return redirect("model", pk)
        except MarketError as error:
            form.refuse(error)
    return _page(request, found, form)


@login_required
@require_GET
def card(request: MemberRequest, pk: UUID) -> HttpResponse:
    """The model's lineage and what it took, to be kept beside its files."""
    view = modelview.look(_artifact(request, pk), org_of(request))
    answer = HttpResponse(modelview.card(view), content_type="text/markdown; charset=utf-8")
    answer["Content-Disposition"] = 'attachment; filename="LINEAGE.md"'
    return answer


@login_required
@require_GET
def artifact_file(request: MemberRequest, pk: UUID) -> HttpResponse:
    """Leads to one file of a model: its URL is made anew for each click."""
    return redirect(downloads.url(_artifact(request, pk), request.GET.get("path", "")))


def _artifact(request: MemberRequest, pk: UUID) -> Artifact:
    usable = Artifact.objects.usable_by(org_of(request)).select_related("org")
    return get_object_or_404(usable, pk=pk)


def _page(request: MemberRequest, found: Artifact, form: PromoteForm) -> HttpResponse:
    org = org_of(request)
    context = {
        "view": modelview.look(found, org),
        "artifact": found,
        "mine": found.org_id == org.pk and found.job_id is not None,
        "form": form,
        "now": timezone.now(),
    }
    return render(request, "buyers/model.html", context)
