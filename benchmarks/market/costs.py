"""What a finished job costs, all in, over four weeks of real prices: here, at the cheapest cloud
that was listed, and at a hyperscaler's list price.

    python -m benchmarks.market.costs --traces DIR [--quick]

Real: prices/gpu_prices_2025-10-19_2025-11-16.csv.gz (tugot17/gpu-price-tracker, MIT: what an
aggregator listed), and for open markets prices_2026_vast_verda.csv (public SkyPilot catalogue).
List prices are facts in list_prices.csv, with their source and whether they were checked again.

Ours is modelled. At each moment and for each kind of GPU a book is drawn from the seed and cleared
by the engine: nodes of one to eight GPUs, as many as were available, and jobs for two thirds of
their GPUs, with limits around the median listing; a job whose limit is too low is not run. What
sellers ask comes in two ways:

- "as listed": from the listing's own quantiles (least, 10 %, median, 90 %), as if those very clouds
  offered here. Then a price here can hardly be lower than the lowest: there is our take on top.
- "as on an open market": the quantiles times what an open market asked of what a cloud asked, in
  the second file (its offers of one kind over one provider's price, in 2026).

A buyer pays the round's price, our take included. To every price comes what it takes to finish: an
interruption each so many GPU-hours (nodes here: by tier, and the owner's reclaim; a cloud: its
failures), of which work since the last checkpoint and a restart are paid again; the keeping of 50 GB
for a month and 10 GB of egress a job are noted apart, for they hardly depend on the GPU's price.
"""

import csv
import gzip
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from benchmarks.market.harness import HERE, Result, clear, compile_engine, parser
from marketplace.core.policy import Policy
from scheduler.matching.book import ClassRow, Order, SiteRow, Supply, build

JOB_HOURS: Final = 24.0
LOST_HOURS: Final = 0.25 + 1 / 12
"""Half a checkpoint's interval of half an hour, and five minutes to start again; both paid."""
CLOUD_RATE, RECLAIM_RATE = 2e-5, 1 / 100
"""Failures per GPU-hour of a cloud; how often in an hour an owner takes a node back."""
TIER_RATES, TIER_SHARES = (2e-5, 2e-4, 2e-3), (0.3, 0.5, 0.2)
EXTRAS: Final = {"ours": 50 * 0.023 / 30 + 0.0, "cloud": 50 * 0.10 / 30, "hyperscaler": 50 * 0.08 / 30 + 10 * 0.09}  # fmt: skip
"""USD a job (a day): 50 GB kept, 10 GB out. Ours at S3's price, egress from the supplier's line."""
WAYS: Final = ("as listed", "as on an open market")
_OPEN: Final = {"H200_141GB": ("H200", "H200"), "H100_80GB": ("H100-SXM", "H100-SXM"),
                "B200_180GB": ("B200", "B200"), "A100_80GB": ("A100-PCIE-80", "A100-80")}  # fmt: skip


class Listing(NamedTuple):
    """One kind of GPU at one moment: USD per GPU-hour."""

    gpu: str
    socket: str
    quantiles: tuple[float, ...]
    available: int


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    given = parser(__doc__, "prices/… and prices_2026_vast_verda.csv").parse_args(arguments)
    seeds = [0]
    columns = ["GPU", "asks", "moments", "ours, USD/GPU-h", "cheapest cloud", "hyperscaler",
               "jobs run, %", "finished job: ours, USD", "cheapest cloud, USD",
               "hyperscaler, USD", "ours / cloud", "ours / hyperscaler",
               "moments dearer than the cloud, %"]  # fmt: skip
    result = Result("costs", columns, seeds, given.quick)
    compile_engine()
    listings = read(next((given.traces / "prices").glob("gpu_prices_*.csv.gz")))
    shares = open_market(given.traces / "prices_2026_vast_verda.csv")
    lists = {(row["gpu"], row["socket"]): float(row["usd_per_gpu_hour"])
             for row in csv.DictReader((HERE / "list_prices.csv").open())}  # fmt: skip
    for (gpu, socket), found in sorted(listings.items()):
        step = max(1, len(found) // (4 if given.quick else 60))
        for way in WAYS:
            factor = 1.0 if way == WAYS[0] else shares.get(gpu)
            if factor:
                _add(result, way, found[::step], factor, lists.get((gpu, socket)))
    result.notes.append(
        "list prices that say `no` under `checked` were not read again for this run"
    )
    result.finish(given.out)
    return 0


def read(path: Path) -> dict[tuple[str, str], list[Listing]]:
    """Listings by GPU and socket, in time."""
    found: dict[tuple[str, str], list[Listing]] = {}
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            quantiles = tuple(float(row[name]) for name in ("min", "p10", "median", "p90"))
            if int(row["available"]) > 0:
                one = Listing(row["gpu"], row["socket"], quantiles, int(row["available"]))
                found.setdefault((row["gpu"], row["socket"]), []).append(one)
    return found


def open_market(path: Path) -> dict[str, float]:
    """What an open market's cheapest offer asks of what a cloud asks, on demand, by GPU."""
    least: dict[tuple[str, str], float] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            key = row["gpu"], row["market"]
            least[key] = min(float(row["usd_per_gpu_hour"]), least.get(key, np.inf))
    return {gpu: least[here, "vast"] / least[there, "verda-ondemand"]
            for gpu, (here, there) in _OPEN.items()
            if (here, "vast") in least and (there, "verda-ondemand") in least}  # fmt: skip


def _add(
    result: Result, way: str, listings: list[Listing], factor: float, listed: float | None
) -> None:
    rounds = [_cleared(one, factor, number) for number, one in enumerate(listings)]
    prices = np.array([price for price, _ in rounds])
    run = np.array([share for _, share in rounds])
    traded = np.isfinite(prices)
    cloud = np.array([one.quantiles[0] for one in listings])
    ours, cheapest = float(prices[traded].mean()), float(cloud[traded].mean())
    tier = float(np.dot(TIER_RATES, TIER_SHARES))
    here = _finished(ours, tier, RECLAIM_RATE) + EXTRAS["ours"]
    there = _finished(cheapest, CLOUD_RATE, 0) + EXTRAS["cloud"]
    hyper = _finished(listed, CLOUD_RATE, 0) + EXTRAS["hyperscaler"] if listed else None
    name = f"{listings[0].gpu} {listings[0].socket}".strip()
    result.add(name, way, int(traded.sum()), ours, cheapest, listed or "none", 100 * float(run.mean()),
               here, there, hyper or "none", here / there, here / hyper if hyper else "none",
               100 * float((prices[traded] > cloud[traded]).mean()))  # fmt: skip


def _finished(price: float, failures: float, reclaims: float) -> float:
    """USD for one GPU's job of JOB_HOURS. Who reclaims pays the drain; a restart is paid."""
    repeated = JOB_HOURS * (failures * LOST_HOURS + reclaims / 12)
    return price * (JOB_HOURS + repeated)


def _cleared(one: Listing, factor: float, seed: int) -> tuple[float, float]:
    """(mean price per GPU-hour, share of the jobs that run) of one moment's round."""
    random = np.random.Generator(np.random.PCG64([seed, 5]))
    take = Policy().take_bps / 10_000
    free = random.choice([1, 2, 4, 8], 2 * one.available, p=[0.4, 0.2, 0.2, 0.2])
    asks = factor * np.interp(random.random(len(free)), (0, 0.1, 0.5, 0.9), one.quantiles)
    tiers = random.choice(3, len(free), p=TIER_SHARES)
    nodes = [
        Supply(at, "it", at // 4, int(free[at]), float(asks[at] / (1 - take)), int(tiers[at]))
        for at in range(len(free))
    ]
    sites = [SiteRow(at, region=0, trust=2) for at in range(len(free) // 4 + 1)]
    sizes, wanted = [], 2 * int(free.sum()) / 3
    while sum(sizes) < wanted:
        sizes.append(int(random.choice([1, 2, 4, 8], p=[0.6, 0.15, 0.15, 0.1])))
    median = one.quantiles[2]
    orders = [
        Order(at, {"it": float(median * random.lognormal(0, 0.25))}, gpus, gpus, hours_lost=0.5)
        for at, gpus in enumerate(sizes)
    ]
    matches = clear(build(orders, nodes, sites, [ClassRow("it", nvlink=True)], seed=seed))
    gpus = matches.gpus.astype(float)
    paid = float((gpus * matches.price).sum() / gpus.sum()) if len(gpus) else np.nan
    return paid, float((matches.level >= 0).mean())


if __name__ == "__main__":
    raise SystemExit(main())
