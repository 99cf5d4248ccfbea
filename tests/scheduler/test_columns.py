"""Offers side by side: whatever is judged for many at once is what each would be told by itself."""

import random
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import numpy as np
import pytest

from buyers import services as buyers
from buyers.models import Dataset
from marketplace.core.fit import Stands, Wants, misfit
from marketplace.core.money import MICRO, accrued, with_premium
from marketplace.core.specs import parse
from scheduler import costing, snapshots, timing
from scheduler.columns import ROW, Columns
from scheduler.lots import Ground, Lot
from scheduler.matching.quote import Quotes
from scheduler.seats import Machine

GIB = 2**30
CLASSES = ("h100-sxm", "a100-sxm", "cpu")
SITES = [
    Ground(
        f"site-{n}",
        f"org-{n}",
        ("eu-west", "us-east")[n % 2],
        n % 4,
        n % 3,
        100.0,
        f"S{n}",
        UUID(int=n),
    )
    for n in range(3)
]


def a_lot(draw: random.Random, number: int) -> Lot:
    """Any open offer. Most are of a few kinds, so that many are judged at once."""
    site, gpus = draw.choice(SITES), draw.choice((1, 8))
    free, gangs = draw.randint(0, gpus), draw.random() < 0.8

    def rare() -> bool:
        return draw.random() < 0.03

    stands = Stands(
        node=f"node-{number}", org=site.org, gpu_class=draw.choice(CLASSES), gpus=gpus, free=free,
        memory_bytes=draw.choice((24, 80)) * GIB, disk_bytes=draw.choice((5, 50, 500)) * GIB,
        trust=site.trust, tier=1 + rare(), region=site.region, environment="ef"[rare()] * 64,
        scripts=not rare(), gangs=gangs, ray=not rare(), own_org_only=rare(),
        ask=draw.choice((1, 2, 3)) * MICRO + draw.randrange(9), egress=not rare(),
        builds=not rare(), python=("3.11", "3.12")[rare()],
    )  # fmt: skip
    place = site.id if gangs else f"node-{number}"
    machine = Machine(UUID(int=number), "", site.supplier, "", stands.environment, 0, 100.0, gpus)
    lot = Lot(
        UUID(int=number),
        stands.ask,
        free,
        stands,
        "",
        draw.random() < 0.5,
        site,
        place,
        machine,
        0,
    )
    return lot._replace(windows="[[0, 10080]]") if rare() else lot


def some_wants(draw: random.Random) -> Wants:
    """What any job may ask for."""
    gpus = draw.choice((1, 1, 2, 3, 8, 12))

    def seldom() -> bool:
        return draw.random() < 0.2

    return Wants(
        org=draw.choice(("org-1", "buyer")), gpus=gpus, gpus_max=gpus + 2 * seldom(),
        level=int(gpus > 1 and not seldom()), memory_bytes=draw.choice((8, 40)) * GIB,
        memory_cpu_bytes=draw.choice((8, 40)) * GIB, disk_bytes=draw.choice((1, 20)) * GIB,
        trust=3 - 2 * seldom(), tier=2 - seldom(), regions=frozenset(["eu-west"] * seldom()),
        environment="e" * 64 * seldom(), runs_code=draw.random() < 0.5, ray=seldom(),
        avoid=frozenset(), egress=seldom(), python="3.11" * seldom(),
        limits={name: draw.choice((2, 4)) * MICRO for name in draw.sample(CLASSES, 2)},
    )  # fmt: skip


def some_offers(seed):
    """What draws everything, and 300 offers."""
    draw = random.Random(seed)
    return draw, Columns.of([a_lot(draw, number) for number in range(300)])


def answered(draw, columns, now):
    """What somebody wants, and every place for it."""
    wanted = some_wants(draw)
    book, classes, limits = snapshots.offered(wanted, columns, now=now)
    ladder = np.array([draw.choice((0.0, 2.0, 3.5)) for _ in columns.lots])
    quotes = Quotes(book, classes, ladder[:, None].repeat(4, axis=1))
    return wanted, quotes.every(snapshots.order_of(0, wanted, limits, kappa=0.3))


@pytest.fixture
def request_(buyer, now):
    script = Dataset.objects.create(
        org=buyer, name="project", version=1, created_by="me", created_at=now, committed_at=now,
        manifest=[{"path": "main.py", "bytes": 3, "sha256": "a" * 64}], sha256="b" * 64, bytes=3,
        prefix="datasets/x/",
    )  # fmt: skip
    asked = {"script": str(script.pk), "parameters": {"entry": "main.py"}, "budget": "20"}
    return parse({"recipe": "script", "memory_gib": 10, "hours": 2, **asked})


@pytest.fixture
def plan(buyer, request_, now):
    return buyers.plan(buyer, request_, now=now)


@pytest.mark.django_db
@pytest.mark.parametrize("seed", range(12))
def test_each_offer_that_does_not_fit_says_what_it_would_say_alone(seed, plan, now):
    draw, columns = some_offers(seed)
    wanted, answer = answered(draw, columns, now)
    told = {
        node: each.why
        for each in costing.unfit(wanted, plan, answer, columns, most=len(columns))
        for node, _ in each.seats
    }
    assert told == {
        node: misfit(wanted, columns.lots[node].stands) or answer.why(node)
        for node in answer.unfit.tolist()
    }


@pytest.mark.django_db
@pytest.mark.parametrize("seed", range(4))
def test_of_what_does_not_fit_each_reason_s_cheapest_comes_first(seed, plan, now):
    draw, columns = some_offers(seed)
    wanted, answer = answered(draw, columns, now)
    told = costing.unfit(wanted, plan, answer, columns, most=len(columns))
    reasons = {each.why for each in told}
    first = told[: len(reasons)]
    assert {each.why for each in first} == reasons
    for each in first:
        assert each.price == min(other.price for other in told if other.why == each.why)
    assert costing.unfit(wanted, plan, answer, columns, most=5) == told[:5]


@pytest.mark.django_db
@pytest.mark.parametrize("seed", range(12))
def test_each_place_costs_what_it_would_cost_alone(seed, request_, plan, now):
    draw, columns = some_offers(seed)
    _, answer = answered(draw, columns, now)
    costs = costing.costs(request_, plan, answer, columns, now)
    bps, alone = costing.premium(request_), []
    for place in map(answer.place, range(len(answer.found))):
        spent = timing.estimated(plan, tflops=None, gpus=sum(place.gpus), efficiency=place.keeps)
        price = with_premium(round(max(place.prices) * MICRO), bps)
        cost = accrued(price, sum(place.gpus), round(spent.seconds))
        least = accrued(price, sum(place.gpus), int(spent.seconds_low))
        seats = tuple(zip(place.nodes, place.gpus, strict=True))
        alone.append((least <= request_.budget_micros, cost, spent.seconds, seats))
    for covered in (True, False):
        expected = [seats for fits, _, _, seats in sorted(alone) if fits is covered]
        assert [each.seats for each in costs.best(len(alone), covered=covered)] == expected


@pytest.mark.parametrize("seed", range(6))
def test_offers_that_move_one_after_another_stand_as_if_they_were_read_anew(seed):
    draw = random.Random(seed)
    kept = {number: a_lot(draw, number) for number in draw.sample(range(200), 60)}
    columns = Columns.of([kept[number] for number in sorted(kept)])
    for _ in range(10):
        moved = draw.sample(sorted(kept), 5)
        new = [a_lot(draw, number) for number in {*moved[:3], *draw.sample(range(200), 4)}]
        gone = {UUID(int=number) for number in moved} | {
            lot.offer_id for lot in new if lot.offer_id.int in kept
        }
        columns = columns.moved(gone, new)
        kept = {number: lot for number, lot in kept.items() if lot.offer_id not in gone}
        kept |= {lot.offer_id.int: lot for lot in new}
        anew = Columns.of([kept[number] for number in sorted(kept)])
        assert columns.lots == anew.lots
        for name in set(ROW.names or ()) - {"kind", "make", "place"}:
            assert (columns.rows[name] == anew.rows[name]).all()
        for name in ("kind", "make", "place"):
            pairs = set(zip(columns.rows[name].tolist(), anew.rows[name].tolist(), strict=True))
            assert (
                len({one for one, _ in pairs}) == len({other for _, other in pairs}) == len(pairs)
            )


@pytest.mark.django_db
def test_who_closes_soon_or_has_closed_does_not_stand(now):
    lot = a_lot(random.Random(0), 1)._replace(windows="")
    minute = now.weekday() * 1440 + now.hour * 60 + now.minute
    closing = lot._replace(offer_id=UUID(int=2), windows=f"[[{minute}, {minute + 5}]]")
    columns = Columns.of([lot, closing])
    assert columns.standing(now).lots == [lot]
    assert columns.standing(now + timedelta(minutes=20)).lots == [lot]


def test_a_kind_leaves_out_what_is_an_offer_s_own():
    lot = a_lot(random.Random(0), 1)
    own = {"node": "other", "free": 0, "ask": 1, "disk_bytes": 1}
    other = lot._replace(offer_id=UUID(int=2), stands=replace(lot.stands, **own))
    larger = lot._replace(offer_id=UUID(int=3), stands=replace(lot.stands, gpus=16))
    columns = Columns.of([lot, other, larger])
    assert columns.kinds[1].tolist() == [0, 0, 1]
    assert columns.makes[1].tolist() == [0, 0, 0]
