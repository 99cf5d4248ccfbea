"""What anybody sees of prices and rounds: true figures, cheap to read, and nobody's bid or ask."""

from datetime import timedelta

import pytest
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from marketplace.core.errors import Invalid
from marketplace.core.ids import uuid7
from scheduler import clearing, history, public
from scheduler.models import ClearingPrice, PriceSpan, Round
from tests import world

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("valkey")]
H100 = "h100-sxm"


def a_round(at, *prices, make_whole=0.0):
    """A round that let GPUs of a class at these (price, GPUs), each in a cell of its own."""
    gpus = sum(let for _, let in prices)
    round = Round.objects.create(
        id=uuid7(), at=at, jobs=5, gpus=40, matched_jobs=len(prices), matched_gpus=gpus, welfare=99.0,
        bound=100.0, make_whole=make_whole, seconds=0.25, seed=7, book_sha256="ab" * 32,
    )  # fmt: skip
    for cell, (price, let) in enumerate(prices):
        ClearingPrice.objects.create(
            round=round, gpu_class=H100, cell=f"{H100}/eu/{cell}/0", slot=1, price_micros=price,
            gpus=let, at=at,
        )  # fmt: skip
    history.record(round)
    return round


def test_rounds_of_five_minutes_make_one_span(now):
    a_round(now, (2_000_000, 3), (4_000_000, 1))
    a_round(now + timedelta(seconds=5), (1_000_000, 4))
    span = PriceSpan.objects.get()
    assert (span.gpus, span.low_micros, span.high_micros) == (8, 1_000_000, 4_000_000)
    assert span.turnover_micros == 14_000_000
    assert (span.last_micros, span.last_at) == (1_000_000, now + timedelta(seconds=5))


@pytest.mark.parametrize(("name", "seen"), [("hour", 1), ("day", 2), ("week", 3)])
def test_a_range_reaches_as_far_back_as_it_says(now, name, seen):
    for hours in (0.5, 5, 50, 500):
        a_round(now - timedelta(hours=hours), (2_000_000, 3), (4_000_000, 1))
    points = history.points(H100, history.range_of(name), now=now)
    assert len(points) == seen
    for point in points:
        assert (point.price, point.low, point.high) == (2_500_000, 2_000_000, 4_000_000)
        assert point.gpus == 4


def test_the_day_is_a_part_of_the_week(now):
    a_round(now - timedelta(days=3), (9_000_000, 2))
    a_round(now, (2_000_000, 4))
    let = history.traded(now=now)[H100]
    assert (let.day_low, let.day_high, let.week_high) == (2_000_000, 2_000_000, 9_000_000)
    assert (let.last, let.day_gpus, let.week_gpus) == (2_000_000, 4, 6)


def test_a_real_round_is_in_the_history(buyer, node, now):
    world.job(buyer, now=now)
    assert clearing.clear_market(now=now) == 1
    price = ClearingPrice.objects.get().price_micros
    (point,) = history.points(H100, history.range_of("day"), now=now + timedelta(seconds=5))
    assert (point.price, point.gpus) == (price, 1)


def test_an_unknown_range_is_refused():
    with pytest.raises(Invalid, match="hour, day, week"):
        history.range_of("century")


def test_asks_are_told_only_of_enough_suppliers(node, now):
    for number in range(public.SUPPLIERS_TO_HIDE_AMONG - 2):
        world.agent(world.org(f"Another {number}", now=now), now=now, ask=(number + 2) * 1_111_111)
    (row,) = public.look(now=now).supply
    assert (row.ask_low, row.ask_high) == (None, None)
    world.agent(world.org("The fifth", now=now), now=now, ask=5_555_555)
    (row,) = public.look(now=now).supply
    assert row.ask_low is not None
    assert row.ask_low % 100_000 == 0, "two digits, so that it is nobody's own"


def test_the_api_tells_a_class_by_its_range(client, now):
    at = timezone.now() - timedelta(minutes=10)
    a_round(at, (2_000_000, 4))
    answer = client.get("/api/v1/market/prices/", {"gpu_class": H100, "range": "hour"})
    assert answer["Cache-Control"] == "public, max-age=5"
    told = answer.json()
    assert told["step_s"] == 60
    assert [point["price"] for point in told["points"]] == [2_000_000]
    assert client.get("/api/v1/market/prices/", {"range": "day"}).status_code == 400
    asked = {"gpu_class": H100, "range": "year"}
    assert client.get("/api/v1/market/prices/", asked).status_code == 400


def test_an_address_that_asks_too_often_waits(client, settings):
    settings.THROTTLES = {**settings.THROTTLES, "figures": 2}
    asked = {"gpu_class": H100}
    answers = [
        client.get("/api/v1/market/prices/", asked, REMOTE_ADDR="192.0.2.7") for _ in range(6)
    ]
    assert 429 in [answer.status_code for answer in answers]
    other = client.get("/api/v1/market/prices/", asked, REMOTE_ADDR="192.0.2.8")
    assert other.status_code == 200


def test_the_api_asks_once_however_many_rounds_there_were(
    client, django_assert_num_queries: DjangoAssertNumQueries
):
    for minutes in range(30):
        a_round(timezone.now() - timedelta(minutes=minutes), (2_000_000, 4))
    for name in history.RANGES:
        with django_assert_num_queries(1):
            client.get("/api/v1/market/prices/", {"gpu_class": H100, "range": name})


def test_the_page_tells_without_a_script(client, node):
    a_round(timezone.now() - timedelta(minutes=10), (2_000_000, 4), make_whole=0.02)
    page = client.get("/market/", {"gpu_class": H100, "range": "hour"}).content.decode()
    for expected in (
        "h100-sxm: prices of the last 1 hour",
        "$2.00",
        "1.00 %",
        "0.25 %",
        "abababab",
    ):
        assert expected in page
    assert client.get("/market/", {"range": "year"}).status_code == 400
    part = client.get("/market/", headers={"HX-Request": "true"}).content.decode()
    assert "<html" not in part


def test_the_page_asks_as_often_for_many_classes_and_rounds_as_for_one(
    client, django_assert_num_queries: DjangoAssertNumQueries
):
    world.listening(timezone.now())
    world.agent(world.org("Supplier", now=timezone.now()), now=timezone.now())
    a_round(timezone.now(), (2_000_000, 4))
    # Five for what stands open (one, where the rounds' worker has noted it), and one each for what
    # was let, jobs, accuracy, rounds and points.
    with django_assert_num_queries(10) as one:
        client.get("/market/")
    for number in range(5):
        a_round(timezone.now() - timedelta(minutes=number), (2_000_000, 4))
        PriceSpan.objects.create(
            gpu_class=f"class-{number}", at=timezone.now(), gpus=1, turnover_micros=1, low_micros=1,
            high_micros=1, last_micros=1, last_at=timezone.now(),
        )  # fmt: skip
    with django_assert_num_queries(len(one)):
        client.get("/market/")


def test_a_round_has_a_page_with_its_prices(client, now):
    round = a_round(now, (2_000_000, 3), (4_500_000, 1), make_whole=0.021)
    page = client.get(f"/market/rounds/{round.pk}/").content.decode()
    for expected in (
        "h100-sxm, eu, verified, steady",
        "$4.5000",
        "$10.50 an hour",
        "0.20 %",
        "ab" * 32,
    ):
        assert expected in page
    assert client.get(f"/market/rounds/{uuid7()}/").status_code == 404


@pytest.mark.parametrize("reader", ["buyers", "suppliers", "economists"])
def test_the_mechanism_is_told_on_the_site(client, reader):
    page = client.get(f"/docs/mechanism/{reader}/").content.decode()
    assert f"How the market works, for {reader}</h1>" in page
    for other in ("buyers", "suppliers", "economists"):
        assert f'href="/docs/mechanism/{other}/"' in page
    assert ".md" not in page
    assert client.get("/docs/mechanism/kings/").status_code == 404


def test_the_files_of_a_round_are_told_on_the_site(client):
    page = client.get("/docs/mechanism/files/").content.decode()
    assert "<code>job_site_gpus_min</code>" in page
    assert 'href="../economists/"' in page
    assert 'href="../files/"' in client.get("/docs/mechanism/economists/").content.decode()
