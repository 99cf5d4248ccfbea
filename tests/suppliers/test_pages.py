"""Suppliers' pages: true words, forms that say what is wrong, a fixed number of queries."""

from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from suppliers import board, offers, services
from suppliers.forms import OfferForm, write_windows
from suppliers.models import Node, Offer, Site
from suppliers.offers import Terms
from tests import world
from tests.suppliers.conftest import make_ready, prove

TERMS = {"ask": "1.25", "notice_s": "60", "audience": "anyone", "scripts": "on", "windows": ""}


@pytest.fixture
def now() -> datetime:
    """The server reads the real clock."""
    return timezone.now()


@pytest.fixture
def member(client, owner, org, valkey):
    """The owner's browser."""
    client.force_login(owner)
    return client


def words(node: Node, now: datetime) -> str:
    return board.line(Node.objects.select_related("site").get(pk=node.pk), now=now).words


def test_a_new_supplier_is_told_where_to_begin(member):
    assert "Begin with a site" in member.get("/supply/").content.decode()


def test_a_site_is_made_and_a_machine_added_in_three_pages(member):
    form = {"name": "Attic", "region": "uk", "network": "roce", "uplink_mbps": "940",
            "tariff": "0.31", "carbon_g_per_kwh": "150", "pue": "1.1"}  # fmt: skip
    assert member.post("/supply/sites/new/", form).url == "/supply/"
    site = Site.objects.get()
    assert site.tariff_micros_per_kwh == 310_000
    made = member.post(f"/supply/sites/{site.pk}/token/", {"nodes": "1", "days": ""})
    assert "python -m agent enroll --market" in made.content.decode()
    assert "gle_" in made.content.decode()
    assert made["Cache-Control"] == "no-store"
    assert "gle_" not in member.get(f"/supply/sites/{site.pk}/token/").content.decode()


def test_a_form_shows_why_the_market_said_no(member, site):
    form = {"name": "Cellar", "region": "uk", "network": "roce", "uplink_mbps": "940",
            "tariff": "0.31", "carbon_g_per_kwh": "150", "pue": "1.1"}  # fmt: skip
    again = member.post("/supply/sites/new/", form)
    assert "already" in again.content.decode()
    edited = member.post(f"/supply/sites/{site.pk}/", form)
    assert edited.status_code == 302
    assert "Cellar" in member.get(f"/supply/sites/{site.pk}/").content.decode()


def test_the_page_keeps_the_fingerprint_to_itself_until_it_is_confirmed(member, enrol, now):
    node, machine = enrol()
    prove(node, now=now)
    path = f"/supply/nodes/{node.pk}/"
    assert machine.fingerprint not in member.get(path).content.decode()
    wrong = member.post(f"{path}confirm/", {"fingerprint": "0000:" * 7 + "0000"})
    assert "somebody else has used your token" in wrong.content.decode()
    assert member.post(f"{path}confirm/", {"fingerprint": machine.fingerprint}).url == path
    shown = member.get(path).content.decode()
    assert machine.fingerprint in shown
    assert "Is it your machine?" not in shown
    node.refresh_from_db()
    assert node.state == "ready"


def test_an_offer_is_made_changed_paused_and_closed(member, enrol, now):
    node, _ = enrol()
    path = f"/supply/nodes/{node.pk}/"
    assert member.post(f"{path}offer/", TERMS).url == path
    assert 'value="1.25"' in member.get(f"{path}offer/").content.decode()
    member.post(f"{path}offer/", {**TERMS, "ask": "1.50", "windows": "Sun 20:00 - Mon 06:00"})
    offer = Offer.objects.get(state="open")
    assert offer.windows == [[0, 360], [9840, 10080]]
    for verb, state in (("pause", "paused"), ("resume", "open"), ("close", "closed")):
        assert member.post(f"/supply/offers/{offer.pk}/{verb}/").url == path
        offer.refresh_from_db()
        assert offer.state == state
    assert "closed" in member.get(path).content.decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ask": "0"}, "more than zero"),
        ({"ask": "a lot"}, "plain decimal"),
        ({"windows": "always"}, "isn&#x27;t like"),
        ({"windows": "Mon 25:00 - Tue 01:00"}, "not a time of day"),
        ({"notice_s": "90000"}, "86400"),
    ],
)
def test_an_offer_that_makes_no_sense_comes_back_with_words(member, enrol, change, said):
    node, _ = enrol()
    answer = member.post(f"/supply/nodes/{node.pk}/offer/", {**TERMS, **change})
    assert answer.status_code == 200
    assert said in answer.content.decode()
    assert not Offer.objects.exists()


def test_a_fragment_answers_htmx_and_a_page_the_rest(member, enrol, owner, now):
    node, machine = enrol()
    make_ready(node, machine, by=owner, now=now)
    htmx = {"HX-Request": "true"}
    part = member.post(f"/supply/nodes/{node.pk}/drain/", headers=htmx).content.decode()
    assert "<html" not in part
    assert "drained" in part or "draining" in part
    assert member.post(f"/supply/nodes/{node.pk}/undrain/").status_code == 302
    for path in ("/supply/", f"/supply/nodes/{node.pk}/"):
        assert "<html" not in member.get(path, headers=htmx).content.decode()
        assert "<html" in member.get(path).content.decode()


def test_a_no_from_the_market_is_a_fragment_for_htmx(member, enrol):
    node, _ = enrol()
    answer = member.post(f"/supply/nodes/{node.pk}/drain/", headers={"HX-Request": "true"})
    assert answer.status_code == 409
    assert "a pending node cannot drain" in answer.content.decode()
    assert "<html" not in answer.content.decode()


def test_a_node_says_in_words_where_it_stands_and_why_it_idles(enrol, owner, site, now, valkey):
    node, machine = enrol(now=now - timedelta(hours=1))
    rows = Node.objects.filter(pk=node.pk)
    assert "never connected" in words(node, now)
    rows.update(last_seen_at=now, session=node.pk)
    assert words(node, now) == "waiting for you to confirm its fingerprint"
    make_ready(node, machine, by=owner, now=now)
    assert words(node, now) == "idle: not offered; set a price"
    offer = offers.create_offer(node, Terms(ask="1.25"), by=owner, now=now)
    assert words(node, now) == "idle: offered at 1.25 a GPU-hour, no job has taken it"
    offers.pause(offer, by=owner, now=now)
    assert words(node, now) == "idle: its offer is paused"
    rows.update(owner_busy=True, owner_why="somebody is at the keyboard")
    assert words(node, now) == "wanted by its owner: somebody is at the keyboard"
    rows.update(session=None)
    assert words(node, now) == "not connected"
    rows.update(lost_at=now)
    assert words(node, now).startswith("lost")
    services.quarantine(Node.objects.get(), reason="a device of another node", now=now)
    assert words(node, now) == "in quarantine: a device of another node"


def test_a_nodes_earnings_are_its_charges_less_the_fee_and_what_was_given_back(
    org, site, now, valkey
):
    from scheduler.models import Credit, UsageSlice

    worker = world.agent(org, now=now, site=site)
    share = world.lease(
        world.job(world.org(now=now, wallet=1_000_000_000), now=now), worker, now=now
    ).assignments.get()
    yesterday = now - timedelta(days=1)
    for since, at in ((0, yesterday), (60, now)):
        UsageSlice.objects.create(
            assignment=share, since_s=since, until_s=since + 60,
            charge_micros=1000, fee_micros=80, at=at,
        )  # fmt: skip
    Credit.objects.create(
        assignment=share, micros=500, from_supplier_micros=460, reason="a test", at=now
    )
    line = board.line(Node.objects.select_related("site").get(), now=now)
    assert (line.earned, line.earned_today, line.running) == (1380, 460, 1)
    assert line.words == "running a job"


# Session, user, the frame's org, the page's org, sites, nodes (count and page), GPUs, offers,
# benchmarks, earned and credited today, earned and credited ever, running, what is held, quarantine reasons.
QUERIES = 17


@pytest.mark.parametrize("count", [1, 12])
def test_the_list_costs_the_same_for_one_node_as_for_many(
    member, org, site, now, count, django_assert_max_num_queries
):
    for _ in range(count):
        world.agent(org, now=now, site=site, gpus=2)
    with django_assert_max_num_queries(QUERIES):
        shown = member.get("/supply/").content.decode()
    assert shown.count('id="node-') == count


def test_windows_are_written_as_they_are_read(db):
    form = OfferForm({**TERMS, "windows": "Mon 18:00 - Tue 08:00\nsat 00:00 to sun 24:00\n"})
    assert form.is_valid(), form.errors
    spans = form.cleaned_data["windows"]
    assert spans == [[1080, 1920], [7200, 10080]]
    assert write_windows(spans) == "Mon 18:00 - Tue 08:00\nSat 00:00 - Mon 00:00"
    assert OfferForm({**TERMS, "windows": write_windows(spans)}).is_valid()


def test_devices_alike_are_shown_together(member, org, site, now):
    world.agent(org, now=now, site=site, gpus=8)
    assert "8 × h100-sxm" in member.get("/supply/").content.decode()
