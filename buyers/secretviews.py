"""Buyers' page of their secrets: names, and a form that takes a value and never shows one."""

from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST

from buyers import secrets as kept
from buyers.forms import SecretForm
from buyers.member import MemberRequest, by
from buyers.own_models import Secret
from marketplace.core.errors import MarketError
from marketplace.http import org_of


@login_required
@require_http_methods(["GET", "POST"])
def secrets(request: MemberRequest) -> HttpResponse:
    """The org's secrets by name; a form that sets one."""
    org = org_of(request)
    form = SecretForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        told = form.cleaned_data
        try:
            trust = kept.parse_trust(told.pop("trust"))
            kept.keep(org, trust=trust, **told, **by(request))
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
    kept.forget(get_object_or_404(Secret.objects.of(org_of(request)), pk=pk))
    return redirect("secrets")
