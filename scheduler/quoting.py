"""Honest offers before anyone pays: every machine a job could run on, with time and all-in cost.

What doesn't fit is in the list too, last, with the reason. A price holds for `hold_s`: it is the
offer's ask or the cell's last clearing price, whichever is more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings

from buyers import services as buyers
from buyers.models import Quote
from buyers.services import Plan
from marketplace.core import energy
from marketplace.core.estimates import Estimate
from marketplace.core.fit import Stands, Wants, misfit
from marketplace.core.hardware import Level, Tier, Trust, is_cpu
from marketplace.core.money import accrued, before_premium, with_premium
from marketplace.core.specs import JobRequest
from marketplace.models import Org
from scheduler import book, limits, paces, prices, timing
from scheduler.book import Standing
from scheduler.matching.book import Params

MAX_UNFIT: Final = 20
"""So many offers that don't fit are shown; the rest are only counted."""


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


@dataclass(frozen=True)
class Asked:
    """What is asked for, why one place can't have it, if so, and the premium on its price."""

    why: str
    plan: Plan
    premium_bps: int


def _premium(request: JobRequest) -> int:
    """Basis points on top of the market's price."""
    return settings.POLICY.premium_of(request.service)


def quote(org: Org, request: JobRequest, *, now: datetime) -> Quote:
    """All options for a job, ranked by what it would cost in all, then by time.

    Raises Invalid for a job that can run nowhere in principle (`buyers.services.plan`).
    """
    plan = buyers.plan(org, request, now=now)
    options = _options(org, request, plan, now)
    held = timedelta(seconds=settings.POLICY.hold_s)
    return Quote.objects.create(
        org=org,
        request=request.as_json(),
        options=[asdict(option) for option in options],
        created_at=now,
        expires_at=now + held,
    )


def _options(org: Org, request: JobRequest, plan: Plan, now: datetime) -> list[Option]:
    wanted = _wants(org, request, plan, now)
    rows = book.standing(now)
    speeds = timing.measured_tflops([row.node for row in rows])
    last, known = prices.last_by_cell(now), paces.expected(plan, now=now)
    found = []
    for seats in _gangs(wanted, rows):
        asks = [prices.to_pay(row.stands, last) for row, _ in seats]
        slowest = min((speeds.get(row.node.pk) or 0.0) for row, _ in seats)
        spent = timing.estimated(
            plan,
            tflops=slowest,
            gpus=_gpus(seats),
            efficiency=_efficiency(seats, request),
            pace=known.get(seats[0][0].stands.gpu_class),
        )
        price = with_premium(max(asks), _premium(request))
        why = _over_budget(request, price, _gpus(seats), spent)
        found.append(_option(seats, max(asks), spent, Asked(why, plan, _premium(request))))
    unfit = [
        _option([(row, request.gpus_min)], prices.to_pay(row.stands, last),
                timing.estimated(plan, tflops=speeds.get(row.node.pk), gpus=request.gpus_min),
                Asked(why, plan, _premium(request)))
        for row in rows
        if (why := misfit(wanted, row.stands)) and not _in_a_gang(row, found)
    ]  # fmt: skip
    ranked = sorted(found, key=lambda option: (not option.fits, option.total, option.seconds))
    shown = [*ranked, *sorted(unfit, key=lambda option: option.node)[:MAX_UNFIT]]
    return [replace(option, index=index) for index, option in enumerate(shown)]


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
            name: before_premium(limit, _premium(request))
            for name, limit in limits.of(request, plan, now=now).items()
        },
        egress=bool(request.egress),
        secrets_trust=plan.secrets_trust,
        python=plan.packages.python if plan.packages else "",
        torch=plan.packages.torch if plan.packages else "",
        registry=plan.image.registry if plan.image else "",
    )


def _gangs(wanted: Wants, rows: Sequence[Standing]) -> Iterable[list[tuple[Standing, int]]]:
    """Each node that can take the gang, and each site that can take more of it than one node:
    both with as many GPUs as they have for it."""
    for row in rows:
        if row.stands.free >= wanted.gpus and not misfit(wanted, row.stands):
            yield [(row, min(row.stands.free, wanted.gpus_max))]
    if wanted.level < Level.SITE or wanted.gpus_max == 1:
        return
    by_site: dict[object, list[Standing]] = {}
    for row in rows:
        if row.stands.free < wanted.gpus_max and not misfit(wanted, row.stands):
            # The ranks speak with each other, so they run one and the same environment.
            alike = (row.place, row.stands.gpu_class, row.stands.environment)
            by_site.setdefault(alike, []).append(row)
    for members in by_site.values():
        members.sort(key=lambda row: (row.stands.ask, -row.stands.free, row.stands.node))
        gang = _fill(members, wanted.gpus_max)
        if len(gang) > 1 and _gpus(gang) >= wanted.gpus:
            yield gang


def _efficiency(seats: Sequence[tuple[Standing, int]], request: JobRequest) -> float:
    """What is left of a gang's speed: by the share of its time that it communicates (κ), and by
    what it communicates over. The same as the rounds count with."""
    node = seats[0][0].node
    rules = Params()
    if len(seats) > 1:
        return 1 - rules.penalty_site[node.site.network] * request.kappa
    linked = node.nvlink or is_cpu(seats[0][0].stands.gpu_class) or _gpus(seats) == 1
    return 1.0 if linked else 1 - rules.penalty_node_pcie * request.kappa


def _fill(members: Sequence[Standing], gpus: int) -> list[tuple[Standing, int]]:
    """The cheapest nodes, until there are so many GPUs or no more nodes."""
    gang, missing = [], gpus
    for row in members:
        if part := min(row.stands.free, missing):
            gang.append((row, part))
            missing -= part
    return gang


def _gpus(seats: Sequence[tuple[Standing, int]]) -> int:
    return sum(part for _, part in seats)


def _in_a_gang(row: Standing, found: Sequence[Option]) -> bool:
    offer = str(row.offer.pk)
    return any(seat.offer == offer for option in found for seat in option.seats)


def _over_budget(request: JobRequest, price: int, gpus: int, spent: Estimate) -> str:
    cost = accrued(price, gpus, int(spent.seconds_low))
    return "" if cost <= request.budget_micros else "it would cost more than the budget"


def _option(
    seats: Sequence[tuple[Standing, int]], price: int, spent: Estimate, asked: Asked
) -> Option:
    """`price` is the market's; the option's is what the buyer pays, with the premium."""
    why, plan = asked.why, asked.plan
    first = seats[0][0]
    site, node, stands = first.node.site, first.node, first.stands
    gpus = _gpus(seats)
    lines = _lines(price, gpus, spent, asked.premium_bps)
    drawn = _energy(seats, spent)
    return Option(
        index=0,
        fits=not why,
        why=why,
        node=", ".join(row.node.name for row, _ in seats),
        site=site.name,
        supplier=site.org.name,
        region=site.region,
        trust=Trust(stands.trust).name.lower(),
        tier=Tier(stands.tier).name.lower(),
        gpu_class=stands.gpu_class,
        level=Level.NODE if len(seats) == 1 else Level.SITE,
        gpus=gpus,
        seats=[SeatAsked(str(row.offer.pk), str(row.node.pk), part) for row, part in seats],
        price_micros=with_premium(price, asked.premium_bps),
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
        told = row.free[0].watts if row.free else 0
        cores = row.node.cpu_cores if is_cpu(stands.gpu_class) else 1
        watts = told or energy.watts(stands.gpu_class, cores=cores)
        joules += watts * part * spent.seconds
    pue = seats[0][0].node.site.pue
    return energy.at_the_wall(round(joules * 1000), pue=pue, estimated=True)
