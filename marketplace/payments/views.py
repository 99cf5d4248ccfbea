"""The processor's door: it knocks here when something has happened."""

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from marketplace.payments import services


@csrf_exempt  # the signature over the raw body says who it is
@require_POST
def webhook(request: HttpRequest) -> HttpResponse:
    """200 and the outcome; 400 for a forged one, 503 when we want to be rung again."""
    outcome = services.receive_webhook(
        request.body, request.headers.get("Stripe-Signature", ""), now=timezone.now()
    )
    return HttpResponse(outcome, content_type="text/plain; charset=utf-8")
