"""Honest offers before anyone pays: the cheapest places for a job, with time and all-in cost.

Some of what doesn't fit is in the list too, last, with the reason; the rest is counted. A price
holds for `hold_s`: it is the offer's ask or the cell's last clearing price, whichever is more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import numpy as np
from django.conf import settings

from buyers import services as buyers
from buyers.models import Quote
from buyers.services import Plan
from marketplace.core import energy
from marketplace.core.estimates import Estimate
from marketplace.core.fit import Stands, Wants
from marketplace.core.hardware import Tier, Trust, is_cpu
from marketplace.core.money import MICRO, accrued, before_premium, with_premium
from marketplace.core.specs import JobRequest
from marketplace.models import Org
from scheduler import book, costing, limits, prices, snapshots, timing
from scheduler.book import Standing
from scheduler.columns import Columns
from scheduler.costing import Costed
from scheduler.following import OFFERS

if TYPE_CHECKING:
    from scheduler.matching.quote import Answer

MAX_FIT: Final = 30
MAX_UNFIT: Final = 20
"""So many options that fit, and offers that don't, are shown; the rest are only counted."""


@dataclass(frozen=True)
class Line:
    """One line of a cost, micros. 0 is a price too."""

    label: str
    micros_low: int
    micros: int
    micros_high: int


@dataclass(frozen=True)
class SeatAsked:
    """So many GPUs of one open offer."""

    offer: str
    node: str
    gpus: int


@dataclass(frozen=True)
class Option:
    """One way to run a job. Seconds are of running; what is not running is not billed."""

    index: int
    fits: bool
    why: str
    node: str
    site: str
    supplier: str
    region: str
    trust: str
    tier: str
    gpu_class: str
    level: int
    gpus: int
    seats: list[SeatAsked]
    price_micros: int
    """Per GPU-hour, the premium of a protected job included."""
    premium_bps: int
    premium_micros: int
    """Of the price."""
    seconds_low: float
    seconds: float
    seconds_high: float
    lines: list[Line]
    total_low: int
    total: int
    total_high: int
    kwh: float
    g_co2: float
    notice_s: int
    sandbox: str
    environment: str
    start_s: float
    """About so long until it runs, from a node that has none of it yet. Not billed."""
    memory_bytes: int
    """Needed on each GPU, as estimated or booked."""


def quote(org: Org, request: JobRequest, *, now: datetime) -> Quote:
    """The best options for a job, ranked by what it would cost in all, then by time.

    Raises Invalid for a job that can run nowhere in principle (`buyers.services.plan`).
    """
    plan = buyers.plan(org, request, now=now)
    options, more_fit, more_unfit = _options(org, request, plan, now)
    held = timedelta(seconds=settings.POLICY.hold_s)
    return Quote.objects.create(
        org=org,
        request=request.as_json(),
        options=[_as_json(option) for option in options],
        more_fit=more_fit,
        more_unfit=more_unfit,
        created_at=now,
        expires_at=now + held,
    )


def warm_up() -> None:
    """Loads the loops that quote, which takes a second, or more where they have to be compiled."""
    from scheduler.matching.quote import Quotes
    from scheduler.matching.synthetic import CLASSES, make
    from scheduler.matching.synthetic import Plan as Made

    Quotes(make(Made(jobs=1, nodes=4, seed=0)), CLASSES).warm_up()


def _options(
    org: Org, request: JobRequest, plan: Plan, now: datetime
) -> tuple[list[Option], int, int]:
    """Those shown, by cost and then by time, and how many more fit and how many more don't."""
    wanted = _wants(org, request, plan, now)
    standing = OFFERS.standing(now)
    answer = _answer(request, wanted, standing, now)
    costs = costing.costs(request, plan, answer, standing, now)
    fitting, dear = costs.best(MAX_FIT, covered=True), costs.best(MAX_UNFIT, covered=False)
    unfit = dear + costing.unfit(wanted, plan, answer, standing, MAX_UNFIT)
    shown = fitting + unfit[:MAX_UNFIT]
    asked = {node: standing.lots[node] for each in shown for node, _ in each.seats}
    rows = {row.offer.pk: row for row in book.rows_of(list(asked.values()))}
    options = [
        _option(
            each,
            [(rows[asked[node].offer_id], part) for node, part in each.seats],
            plan,
            index=index,
            bps=costing.premium(request),
        )
        for index, each in enumerate(shown)
    ]
    fit = sum(costs.covered)
    unfit_in_all = len(costs.covered) - fit + len(answer.unfit)
    return options, max(fit - MAX_FIT, 0), max(unfit_in_all - MAX_UNFIT, 0)


def _answer(request: JobRequest, wanted: Wants, standing: Columns, now: datetime) -> "Answer":
    """Every place for it, by the engine, with prices as a round counts them."""
    # Compiled: loaded by the first who asks.
    from scheduler.matching.quote import Quotes

    stand, classes, limits_of = snapshots.offered(wanted, standing, now=now)
    last, (kinds, kind_of) = prices.last_by_cell(now), standing.kinds
    ladder = np.array([last.get(prices.cell_of(kind), 0) / MICRO for kind in kinds])[kind_of]
    order = snapshots.order_of(0, wanted, limits_of, kappa=request.kappa)
    return Quotes(stand, classes, ladder[:, None].repeat(4, axis=1)).every(order)


def _wants(org: Org, request: JobRequest, plan: Plan, now: datetime) -> Wants:
    return Wants(
        org=str(org.pk),
        gpus=request.gpus_min,
        gpus_max=request.gpus_max,
        level=request.level,
        memory_bytes=plan.memory_bytes,
        memory_cpu_bytes=plan.memory_cpu_bytes,
        disk_bytes=plan.disk_bytes + (plan.image.room if plan.image else 0),
        trust=request.trust,
        tier=request.tier,
        regions=frozenset(request.regions),
        environment=request.environment,
        runs_code=plan.script is not None,
        ray=request.recipe != "script" and request.gpus_max > 1,
        avoid=frozenset(),
        limits={
            name: before_premium(limit, costing.premium(request))
            for name, limit in limits.of(request, plan, now=now).items()
        },
        egress=bool(request.egress),
        secrets_trust=plan.secrets_trust,
        python=plan.packages.python if plan.packages else "",
        torch=plan.packages.torch if plan.packages else "",
        registry=plan.image.registry if plan.image else "",
    )


def _option(
    each: Costed, seats: Sequence[tuple[Standing, int]], plan: Plan, *, index: int, bps: int
) -> Option:
    first, spent, gpus = seats[0][0], each.spent, each.gpus
    site, node, stands = first.node.site, first.node, first.stands
    lines = _lines(each.price, gpus, spent, bps)
    drawn = _energy(seats, spent)
    return Option(
        index=index,
        fits=not each.why,
        why=each.why,
        node=", ".join(row.node.name for row, _ in seats),
        site=site.name,
        supplier=site.org.name,
        region=site.region,
        trust=Trust(stands.trust).name.lower(),
        tier=Tier(stands.tier).name.lower(),
        gpu_class=stands.gpu_class,
        level=each.level,
        gpus=gpus,
        seats=[SeatAsked(str(row.offer.pk), str(row.node.pk), part) for row, part in seats],
        price_micros=with_premium(each.price, bps),
        premium_bps=bps,
        premium_micros=with_premium(each.price, bps) - each.price,
        seconds_low=spent.seconds_low,
        seconds=spent.seconds,
        seconds_high=spent.seconds_high,
        lines=lines,
        total_low=sum(line.micros_low for line in lines),
        total=sum(line.micros for line in lines),
        total_high=sum(line.micros_high for line in lines),
        kwh=drawn.kwh,
        g_co2=drawn.grams_co2(site.carbon_g_per_kwh),
        notice_s=min(row.offer.notice_s for row, _ in seats),
        sandbox=node.sandbox,
        environment=plan.brought.sha256 if plan.brought else node.environment,
        start_s=max(timing.start_seconds(plan, row.node) for row, _ in seats),
        memory_bytes=plan.memory_cpu_bytes if is_cpu(stands.gpu_class) else plan.memory_bytes,
    )


def _as_json(option: Option) -> dict[str, object]:
    parts = {"seats": [vars(seat) for seat in option.seats]}
    return vars(option) | parts | {"lines": [vars(line) for line in option.lines]}


def _lines(price: int, gpus: int, spent: Estimate, premium_bps: int) -> list[Line]:
    """GPU time by its range, and the premium on it; storage and transfer are part of the fee, and
    so cost nothing."""
    times = [round(each) for each in (spent.seconds_low, spent.seconds, spent.seconds_high)]
    plain = [accrued(price, gpus, seconds) for seconds in times]
    paid = [accrued(with_premium(price, premium_bps), gpus, seconds) for seconds in times]
    more = [all_in - part for all_in, part in zip(paid, plain, strict=True)]
    protection = Line(f"Protection, {premium_bps / 100:g} %", *more)
    return [
        Line("GPU time", *plain),
        *([protection] if premium_bps else []),
        Line("Storage", 0, 0, 0),
        Line("Transfer", 0, 0, 0),
    ]


def _energy(seats: Sequence[tuple[Standing, int]], spent: Estimate) -> energy.Energy:
    joules = 0.0
    for row, part in seats:
        stands: Stands = row.stands
        cores = row.node.cpu_cores if is_cpu(stands.gpu_class) else 1
        watts = row.watts or energy.watts(stands.gpu_class, cores=cores)
        joules += watts * part * spent.seconds
    pue = seats[0][0].node.site.pue
    return energy.at_the_wall(round(joules * 1000), pue=pue, estimated=True)
