"""The public face of the market: open supply, prices and rounds. No live bid or ask is in it.

Of asks only the middle half of a class is told, in two digits, and only where enough suppliers
stand in it that nobody can be told apart; of bids only how many wait.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from django.db.models import Count, F, FloatField, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Cast, Coalesce, NullIf

from buyers.models import Job
from marketplace.core.money import MICRO
from marketplace.core.paces import Accuracy
from scheduler import history, lots, paces
from scheduler.history import Traded
from scheduler.lots import Lot
from scheduler.models import ClearingPrice, OpenSupply, Round
from scheduler.record_models import Record

SUPPLIERS_TO_HIDE_AMONG: Final = 5
"""With fewer in a class, nothing is told of its asks."""


_NOTED: Final = timedelta(seconds=10)
"""The rounds' worker notes no more often what stands open."""
_STALE: Final = timedelta(seconds=30)
"""What was noted longer ago is not shown: the offers themselves are read then."""


@dataclass(frozen=True)
class ClassSupply:
    """One GPU class: what stands open, and what it was let for. Micros per GPU-hour."""

    gpu_class: str
    gpus: int = 0
    free: int = 0
    nodes: int = 0
    memory_bytes: int | None = None
    ask_low: int | None = None
    ask_high: int | None = None
    traded: Traded | None = None

    @property
    def last_price(self) -> int | None:
        """The mean price of the last round that let some, within a week."""
        return self.traded.last if self.traded else None

    @property
    def last_at(self) -> datetime | None:
        """When that was."""
        return self.traded.last_at if self.traded else None


@dataclass(frozen=True)
class MarketView:
    """What anybody may see of the market, as of `at`."""

    at: datetime
    supply: Sequence[ClassSupply]
    waiting_jobs: int
    running_jobs: int
    rounds: Sequence[Round]
    accuracy: Accuracy | None
    """How well the quotes of late foretold time and cost."""

    @property
    def busiest(self) -> str:
        """The class of which most was let within a week, or else of which most stands open."""
        most = max(
            self.supply, default=None,
            key=lambda row: (row.traded.week_gpus if row.traded else 0, row.gpus),
        )  # fmt: skip
        return most.gpu_class if most else ""


def look(*, now: datetime, rounds: int = 10) -> MarketView:
    """The market as it stands; what stands open is up to half a minute old. A constant number of
    queries."""
    open_now = {row.gpu_class: row for row in _open_supply(now)}
    let = history.traded(now=now)
    states = dict(Job.objects.live().values_list("state").annotate(count=Count("pk")).order_by())
    return MarketView(
        at=now,
        supply=[
            replace(open_now.get(name, ClassSupply(name)), traded=let.get(name))
            for name in sorted({*open_now, *let})
        ],
        waiting_jobs=states.get("queued", 0),
        running_jobs=states.get("running", 0) + states.get("placed", 0),
        accuracy=paces.accuracy(now=now),
        rounds=list(_with_turnover(Round.objects.order_by("-at")[:rounds])),
    )


def note_supply(standing: Callable[[datetime], Sequence[Lot]], *, now: datetime) -> None:
    """Notes what stands open for those who look, if that is due: they need not read every offer."""
    if OpenSupply.objects.filter(at__gt=now - _NOTED).exists():
        return
    classes = [asdict(row) for row in _supply_of(standing(now))]
    OpenSupply.objects.update_or_create(pk=1, defaults={"at": now, "classes": classes})


def _open_supply(now: datetime) -> Sequence[ClassSupply]:
    noted = OpenSupply.objects.filter(at__gt=now - _STALE, at__lte=now).first()
    if noted is None:
        return _supply_of(lots.standing(lots.read(now=now), now=now))
    return [ClassSupply(**row) for row in noted.classes]


def _supply_of(standing: Sequence[Lot]) -> Sequence[ClassSupply]:
    by_class: dict[str, list[Lot]] = {}
    for row in standing:
        if not row.stands.own_org_only:
            by_class.setdefault(row.stands.gpu_class, []).append(row)
    return [_supply(name, rows) for name, rows in by_class.items()]


def rounds_matched() -> QuerySet[Round]:
    """Rounds that matched something, newest first."""
    return _with_turnover(Round.objects.filter(matched_jobs__gt=0).order_by("-at"))


def every_round() -> QuerySet[Round]:
    """All of them, to find one in."""
    return _with_turnover(Round.objects.all())


def record_of(round: Round) -> Record | None:
    """What is kept of it; None for rounds from before there were records."""
    return Record.objects.select_related("round").filter(pk=round.pk).first()


def prices_of(round: Round) -> Sequence[ClearingPrice]:
    """What each slot size of each cell cost in a round."""
    return list(round.prices.filter(gpus__gt=0).order_by("cell", "slot"))


def mean_prices(prices: Sequence[ClearingPrice]) -> dict[str, int]:
    """Class → what its GPUs were let at in a round, on average; micros per GPU-hour."""
    gpus, turnover = Counter[str](), Counter[str]()
    for price in prices:
        gpus[price.gpu_class] += price.gpus
        turnover[price.gpu_class] += price.gpus * price.price_micros
    return {name: turnover[name] // count for name, count in gpus.items()}


def _with_turnover(rounds: QuerySet[Round]) -> QuerySet[Round]:
    """Each with `turnover`, USD per hour, and `made_whole`, the share of it that sellers get on top
    out of the platform's fee; None where nothing was let."""
    micros = (
        ClearingPrice.objects.filter(round=OuterRef("pk"))
        .values("round")
        .values(sum=Sum(F("price_micros") * F("gpus")))
    )
    turnover = Cast(Coalesce(Subquery(micros), 0), FloatField()) / MICRO
    return rounds.annotate(turnover=turnover, made_whole=F("make_whole") / NullIf(turnover, 0.0))


def _supply(name: str, rows: Sequence[Lot]) -> ClassSupply:
    low, high = _middle_asks(rows)
    return ClassSupply(
        gpu_class=name,
        gpus=sum(row.stands.gpus for row in rows),
        free=sum(row.stands.free for row in rows),
        nodes=len(rows),
        memory_bytes=max((row.stands.memory_bytes for row in rows), default=None),
        ask_low=low,
        ask_high=high,
    )


def _middle_asks(rows: Sequence[Lot]) -> tuple[int | None, int | None]:
    """The quartiles of a class's gross asks, one for each supplier, in two digits."""
    by_org: dict[object, list[int]] = {}
    for row in rows:
        by_org.setdefault(row.site.org, []).append(row.stands.ask)
    if len(by_org) < SUPPLIERS_TO_HIDE_AMONG:
        return None, None
    asks = [statistics.median(each) for each in by_org.values()]
    low, _, high = statistics.quantiles(asks, n=4)
    return _two_digits(low), _two_digits(high)


def _two_digits(micros: float) -> int:
    return int(float(f"{micros:.1e}"))
