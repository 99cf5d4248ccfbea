"""Topping up, from the buyer's side: the API and the page lead to the same card page."""

from django.urls import reverse

from marketplace.core.money import MICRO
from marketplace.payments.models import TopUp
from tests.buyers.test_api import get, post
from tests.payments.conftest import stand, stand_of_all, webhooks, webhooks_of_all  # noqa: F401
from tests.payments.doorbell import deliver


def test_what_is_paid_on_the_card_page_is_in_the_wallet(api, client, stand, webhooks):  # noqa: F811
    answer = post(api, "top-ups/", {"amount": "25.00"})
    assert answer.status_code == 201
    back = stand.pay(answer.json()["url"]).location
    assert back == f"http://testserver{reverse('wallet')}?paid=1"
    (before,) = get(api, "top-ups/").json()["results"]
    assert (before["state"], before["amount_micros"]) == ("open", 25 * MICRO)
    webhooks.wait_for("charge.updated")
    for payload, header in webhooks.taken:
        assert deliver(client, payload, header).status_code == 200
    assert get(api, "wallet/").json()["balance_micros"] == 125 * MICRO
    assert get(api, "top-ups/").json()["results"][0]["state"] == "credited"


def test_the_page_sends_the_browser_to_the_card_page_and_greets_it_back(member, stand):  # noqa: F811
    answer = member.post(reverse("wallet"), {"amount": "25"})
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith(stand.url)
    page = member.get(reverse("wallet"), {"paid": "1"}).content.decode()
    assert "Thank you" in page
    assert "$25.00 begun" in page


def test_a_processor_that_is_away_is_said_and_nothing_is_owed(api):
    answer = post(api, "top-ups/", {"amount": "25.00"})
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert TopUp.objects.get().state == "expired"
