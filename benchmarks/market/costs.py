"""What a finished job costs over four weeks of real prices: here, at the cheapest cloud that was
listed, and at a hyperscaler's list price.

    python -m benchmarks.market.costs --traces DIR [--quick]

Real: prices/gpu_prices_2025-10-19_2025-11-16.csv.gz (tugot17/gpu-price-tracker, MIT: what an
aggregator listed, by provider), prices_2026_vast_verda.csv (public SkyPilot catalogue) for what an
open market asks beside a cloud, and list_prices.csv with its source. A provider that changed some
price more than ten times in the four weeks sells at moving prices, as spot markets do, and is no
cloud on demand: it stands in a column of its own.

Ours is modelled, for no market of ours ran then. At each moment and for each kind of GPU a book is
drawn from the seed and cleared by the engine: forty nodes of one to eight GPUs, and jobs of one to
eight GPUs for a third or two thirds of them, with limits around the usual cloud's price (the median
of those on demand); a job whose limit is too low does not run. Owners net what they ask, so our
take is on top of it. The cheapest cloud's price holds for all it would be asked for, which no
listing promises; so the same jobs are also sold one by one at the same asks, without a take
(`greedy`, first come). What they ask:

- "a cloud's": the prices on demand at that moment, as if those very clouds offered here;
- "an open market's": the usual cloud's price, times what Vast's offers asked of what one cloud
  (Verda, on demand) asked for the same kind in 2026, each within a tenth or so. Vast's prices hold
  its own fee; owners are taken to net all of it, which makes ours dearer than it need be.

A job of a day pays for more than a day. On all sides it saves as often as `core.checkpoints` says
and pays for saves, for what is repeated after an interruption and for five minutes of starting
again. Interruptions, each so many hours: ours a day, what checkpoints are made for, and after a
day's lease it moves; a cloud's 50,000 (the best of our tiers); a moving price's a day as ours,
for want of a figure. What is kept and what goes out is left out everywhere: listings don't say it.

A second table says where the distance to the cheapest cloud comes from, each step on top of the one
before. It begins with a floor that no market goes below while owners net what they ask: as many GPUs
as ours let, the cheapest of all that are offered, whether or not a job fits on their nodes, with no take,
at each its own ask, as rarely interrupted as a cloud.
"""

import csv
import gzip
from pathlib import Path
from statistics import mean, median
from typing import Final, NamedTuple

import numpy as np

from benchmarks.market import greedy
from benchmarks.market.harness import HERE, Result, clear, compile_engine, parser
from marketplace.core import checkpoints
from marketplace.core.policy import Policy
from scheduler.matching.book import Book, ClassRow, Order, Params, SiteRow, Supply, build

STEPS: Final = ["asks", "GPUs wanted", "floor / cheapest cloud", "jobs fit on few nodes",
                "one price for all", "take", "interruptions", "ours / cheapest cloud",
                "least floor of a kind", "most", "kinds whose floor misses 0.9"]  # fmt: skip
JOB_HOURS: Final = 24.0
STARTING_HOURS: Final = 5 / 60
CLOUD_RATE: Final = Params().failures_per_gpu_hour[0]
OUR_RATE: Final = 3600 / Policy().mtbf_s
TAKE: Final = Policy().take_bps / 10_000
NODES: Final = 40
LOADS: Final = {"a third": 1 / 3, "two thirds": 2 / 3}
CLOUDS, OPEN = "a cloud's", "an open market's"
MOVING: Final = 10
_SAME: Final = {"H200_141GB": ("H200", "H200"), "H100_80GB": ("H100-SXM", "H100-SXM"),
                "B200_180GB": ("B200", "B200"), "A100_80GB": ("A100-PCIE-80", "A100-80")}  # fmt: skip
"""GPU → what the second file calls it on the open market and at the cloud."""

Kind = tuple[str, str]
"""GPU, socket."""


class Moment(NamedTuple):
    """What was listed for one kind: USD per GPU-hour."""

    on_demand: tuple[float, ...]
    least: float  # moving prices too


class Cleared(NamedTuple):
    """Mean USD per GPU-hour, also of the same jobs one by one at the asks; the share that runs; what
    the owners ask who let, and what as many GPUs would ask that are the cheapest of all."""

    price: float
    posted: float
    run: float
    asked: float
    least: float


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    given = parser(__doc__, "prices/… and prices_2026_vast_verda.csv").parse_args(arguments)
    columns = ["GPU", "asks", "GPUs wanted", "ours, USD/GPU-h", "one by one at asks",
               "cheapest cloud", "moving price", "hyperscaler",
               "finished job: ours / cheapest cloud", "ours / one by one", "ours / moving price",
               "ours / hyperscaler", "jobs run, %"]  # fmt: skip
    result = Result("costs", columns, [0], given.quick)
    steps = Result("floor", STEPS, [0], given.quick)
    compile_engine()
    listed = read(next((given.traces / "prices").glob("gpu_prices_*.csv.gz")))
    shares = open_market(given.traces / "prices_2026_vast_verda.csv")
    with (HERE / "list_prices.csv").open() as file:
        hyper = {(row["gpu"], row["socket"]): float(row["usd_per_gpu_hour"])
                 for row in csv.DictReader(file)}  # fmt: skip
    found: dict[tuple[str, str], list[list[float]]] = {}
    for kind, moments in sorted(listed.items()):
        some = moments[:: max(1, len(moments) // (3 if given.quick else 30))]
        for asks, asked_of in ((CLOUDS, None), (OPEN, shares.get(kind[0]))):
            for load in LOADS if asks == CLOUDS or asked_of else ():
                rounds = _add(result, (kind, asks, load), some, asked_of, hyper.get(kind))
                found[asks, load] = [*found.get((asks, load), []), _steps(some, rounds)]
    _sum_up(result)
    result.finish(given.out)
    _add_floors(steps, found)
    steps.finish(given.out)
    return 0


def read(path: Path) -> dict[Kind, list[Moment]]:
    """Moments by kind, in time; those with nothing on demand are left out."""
    rows: dict[Kind, list[dict[str, float]]] = {}
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            offers = (each.rsplit(":", 1) for each in row["providers"].split())
            listed = {name: float(price) for name, price in offers}
            rows.setdefault((row["gpu"], row["socket"]), []).append(listed)
    moving: set[str] = set()
    for moments in rows.values():
        prices: dict[str, set[float]] = {}
        for moment in moments:
            for name, price in moment.items():
                prices.setdefault(name, set()).add(price)
        moving |= {name for name, seen in prices.items() if len(seen) > MOVING}
    return {
        kind: [
            Moment(tuple(sorted(p for n, p in one.items() if n not in moving)), min(one.values()))
            for one in moments
            if set(one) - moving
        ]
        for kind, moments in rows.items()
    }


def open_market(path: Path) -> dict[str, list[float]]:
    """What each offer of an open market asks of what one cloud asks on demand, by GPU."""
    prices: dict[tuple[str, str], list[float]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            price = float(row["usd_per_gpu_hour"])
            prices.setdefault((row["gpu"], row["market"]), []).append(price)
    return {gpu: [each / prices[there, "verda-ondemand"][0] for each in prices[here, "vast"]]
            for gpu, (here, there) in _SAME.items()
            if (here, "vast") in prices and (there, "verda-ondemand") in prices}  # fmt: skip


def hours_paid(rate: float, moved: float = 0.0) -> float:
    """Hours paid for JOB_HOURS of work on one node, interrupted `rate` times an hour and moved, with
    a save before it, `moved` times an hour."""
    save = float(Policy().save_default_s)
    every = checkpoints.interval(save, failures_per_hour=rate)
    lost = rate * (checkpoints.hours_lost(save, every) + STARTING_HOURS)
    lost += moved * (save / 3600 + STARTING_HOURS)
    return JOB_HOURS / (1 - checkpoints.overhead(save, every)) / (1 - lost)


def _add(
    result: Result,
    what: tuple[Kind, str, str],
    moments: list[Moment],
    asked_of: list[float] | None,
    hyper: float | None,
) -> list[Cleared]:
    kind, asks, load = what
    rounds = [_cleared(one, asked_of, LOADS[load], at) for at, one in enumerate(moments)]
    pairs = [(one, found) for one, found in zip(moments, rounds, strict=True) if found.run]
    ours, posted = mean(one.price for _, one in pairs), mean(one.posted for _, one in pairs)
    cheapest = mean(one.on_demand[0] for one, _ in pairs)
    moving = [(one.least, found.price) for one, found in pairs if one.least < one.on_demand[0]]
    day, at_cloud = hours_paid(OUR_RATE, moved=1 / 24), hours_paid(CLOUD_RATE)
    over: float | str = "none"
    if moving:
        over = mean(price for _, price in moving) * day
        over /= mean(price for price, _ in moving) * hours_paid(OUR_RATE)
    result.add(
        " ".join(kind).strip(), asks, load, ours, posted, cheapest,
        mean(price for price, _ in moving) if moving else "none", hyper or "none",
        ours * day / (cheapest * at_cloud), ours * day / (posted * at_cloud), over,
        ours * day / (hyper * at_cloud) if hyper else "none", 100 * mean(one.run for one in rounds),
    )  # fmt: skip
    return rounds


def _steps(moments: list[Moment], rounds: list[Cleared]) -> list[float]:
    """Over the cheapest cloud's finished job: the floor, and what each step in turn makes of it."""
    pairs = [(one, found) for one, found in zip(moments, rounds, strict=True) if found.run]
    cheapest = mean(one.on_demand[0] for one, _ in pairs)
    price = mean(found.price for _, found in pairs)
    longer = hours_paid(OUR_RATE, moved=1 / 24) / hours_paid(CLOUD_RATE)
    usd = [mean(found.least for _, found in pairs), mean(found.asked for _, found in pairs),
           price * (1 - TAKE), price, price * longer]  # fmt: skip
    return [each / cheapest for each in usd]


def _add_floors(result: Result, found: dict[tuple[str, str], list[list[float]]]) -> None:
    """The mean of the kinds, and at how many of them the floor alone misses the goal."""
    for (asks, load), kinds in sorted(found.items()):
        floor, *steps = (mean(each) for each in zip(*kinds, strict=True))
        before = [floor, *steps[:-1]]
        floors = [each[0] for each in kinds]
        result.add(asks, load, floor, *(b - a for a, b in zip(before, steps, strict=True)), steps[-1],
                   min(floors), max(floors), f"{sum(each > 0.9 for each in floors)} of {len(kinds)}")  # fmt: skip


def _sum_up(result: Result) -> None:
    ours, there = hours_paid(OUR_RATE, moved=1 / 24), hours_paid(CLOUD_RATE)
    for asks in (CLOUDS, OPEN):
        for at, goal in ((8, 0.9), (11, 0.5)):
            found = [row[at] for row in result.rows if row[1] == asks and row[at] != "none"]
            if found:
                result.notes.append(
                    f"asks {asks}: {result.columns[at].removeprefix('finished job: ')} is"
                    f" {mean(found):.2f} in the mean, {min(found):.2f} to {max(found):.2f}; at most"
                    f" {goal} in {sum(one <= goal for one in found)} of {len(found)} rows (goal {goal})"
                )
    result.notes.append(f"a day's job pays {ours:.2f} h here, {there:.2f} h at a cloud; with our take of"
                        f" {100 * TAKE:.0f} % a round's price must be {100 * 0.9 * there / ours:.0f} % of the cheapest"
                        f" cloud's for 0.9, so the last owner let nets {100 * 0.9 * (1 - TAKE) * there / ours:.0f} % of it")  # fmt: skip


def _cleared(one: Moment, asked_of: list[float] | None, load: float, seed: int) -> Cleared:
    """One moment's round."""
    random = np.random.Generator(np.random.PCG64([seed, 5]))
    usual = median(one.on_demand)
    if asked_of is None:
        asks = random.choice(one.on_demand, NODES)
    else:
        asks = usual * random.choice(asked_of, NODES) * random.lognormal(0, 0.1, NODES)
    free = random.choice([1, 2, 4, 8], NODES, p=[0.4, 0.2, 0.2, 0.2])
    sizes: list[int] = []
    while sum(sizes) < load * free.sum():
        sizes.append(int(random.choice([1, 2, 4, 8], p=[0.6, 0.15, 0.15, 0.1])))
    orders = [
        Order(at, {"it": float(usual * random.lognormal(0, 0.25))}, gpus, gpus)
        for at, gpus in enumerate(sizes)
    ]

    def book(take: float) -> Book:
        nodes = [
            Supply(at, "it", at // 4, int(free[at]), float(asks[at] / (1 - take)))
            for at in range(NODES)
        ]
        sites = [SiteRow(at, region=0) for at in range(NODES // 4)]
        return build(orders, nodes, sites, [ClassRow("it", nvlink=True)], seed=seed)

    matches, alone = clear(book(TAKE)), greedy.place(book(0.0), greedy.FIRST_COME)
    let = int(matches.gpus.sum(dtype=np.int64))
    cheapest = np.sort(np.repeat(asks, free))[:let]
    return Cleared(_mean(matches.gpus, matches.price), _mean(alone.gpus, alone.ask),
                   float((matches.level >= 0).mean()), _mean(matches.gpus, asks[matches.node]),
                   _mean(np.ones(let), cheapest))  # fmt: skip


def _mean(gpus: np.ndarray, price: np.ndarray) -> float:
    return float(np.dot(gpus.astype(float), price) / gpus.sum()) if len(gpus) else np.nan


if __name__ == "__main__":
    raise SystemExit(main())
