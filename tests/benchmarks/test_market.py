"""The market's benchmarks run, and what they compare is legal; their figures are not tested."""

import csv
import gzip
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.market import ceiling, costs, greedy, harness, mechanism, replay, report
from benchmarks.market.arrivals import Run, Trace
from benchmarks.market.books import churned, large
from benchmarks.market.leaving import Leaving
from benchmarks.market.optimum import optimum
from benchmarks.market.program import prove
from benchmarks.market.worth import utilities
from scheduler.matching.book import ClassRow, Order, SiteRow, Supply, build
from scheduler.matching.check import check
from scheduler.matching.clear import clear
from scheduler.matching.matches import Matches
from scheduler.matching.synthetic import Plan, make

pytestmark = pytest.mark.timeout(300)  # its loops are compiled first


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the real ones' shapes."""
    folder = tmp_path_factory.mktemp("traces")
    random = np.random.Generator(np.random.PCG64(0))
    (folder / "philly").mkdir()
    with gzip.open(folder / "philly" / "philly.csv.gz", "wt") as file:
        rows = csv.writer(file)
        rows.writerow(["timestamp", "duration", "num_gpus", "gpu_time", "cluster"])
        for minute in range(300):
            when = f"2017-10-0{1 + minute // 60} 07:{minute % 60:02}:00"
            rows.writerow([when, random.integers(60, 9000), random.choice([1, 2, 8]), 0, "a"])
    (folder / "prices").mkdir()
    with gzip.open(folder / "prices" / "gpu_prices_a.csv.gz", "wt") as file:
        file.write("timestamp,gpu,socket,min,p10,median,p90,mean,offers,available,providers\n")
        file.writelines(
            f"t{at},H100_80GB,SXM5,1.9,2.0,2.4,3.0,2.4,20,12,a:1.9\n" for at in range(8)
        )
    (folder / "prices_2026_vast_verda.csv").write_text(
        "gpu,gpus_in_offer,usd_per_hour_offer,usd_per_gpu_hour,region,market\n"
        "H100-SXM,1,1.87,1.870,US/NA,vast\nH100-SXM,1,2.29,2.290,FI/EU,verda-ondemand\n"
    )
    return folder


@pytest.mark.parametrize(
    "name",
    ["small", "middle", "large", "quote", "quotepage", "room", "baselines", "mechanism", "replay",
     "costs", "commit", "ceiling"],
)  # fmt: skip
def test_a_quick_run_leaves_a_table_that_the_report_reads(
    name: str, traces: Path, tmp_path: Path
) -> None:
    needs = ["--traces", str(traces)] if name in report.NEED_TRACES else []
    script = importlib.import_module(f"benchmarks.market.{name}")
    assert script.main(["--quick", "--out", str(tmp_path), *needs]) == 0
    shutil.copy(harness.HERE / "README.md", tmp_path)
    assert report.main([], tmp_path, tmp_path) == 0
    left = json.loads((tmp_path / f"{name}.json").read_text())
    assert left["rows"]
    assert report.table(left) in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("rule", greedy.RULES)
@pytest.mark.parametrize("kind", ["default", "gang-heavy"])
def test_the_simpler_ways_match_by_the_same_rules(rule: str, kind: str) -> None:
    """The checker finds nothing but prices, which these have not."""
    book = large(kind, seed=1, scale=50)
    placed = greedy.place(book, rule)
    assert len(placed.job) > 50
    faults = check(book, _as_matches(book, placed))
    assert [fault for fault in faults if "bound" not in fault] == []


def test_the_program_bounds_the_optimum_closely() -> None:
    for seed in range(3):
        book = make(Plan(jobs=30, nodes=50, seed=seed))
        best = optimum(book)
        proof, relaxed = prove(book, 30), prove(book, 30, relaxed=True)
        assert best * (1 - 1e-6) <= proof.bound <= 1.01 * best
        assert proof.bound <= relaxed.bound * (1 + 1e-4)


def test_buyers_and_sellers_share_the_welfare() -> None:
    book = make(Plan(jobs=60, nodes=90, seed=3))
    matches = clear(book)
    shared = utilities(book, matches)
    total = shared["buyers"].sum() + shared["sellers"].sum() - matches.make_whole
    assert total == pytest.approx(matches.welfare)


def test_churn_changes_about_as_much_as_it_says() -> None:
    book = make(Plan(jobs=2000, nodes=2000, seed=0))
    after = churned(book, 0.02, seed=0)
    assert 10 < (after.job_id != book.job_id).sum() < 90
    assert 10 < (after.node_ask != book.node_ask).sum() < 90
    assert (after.job_id == book.job_id).mean() > 0.9


@pytest.mark.parametrize("load", ["slack", "congested"])
def test_no_way_to_match_exceeds_the_ceiling(load: str, traces: Path) -> None:
    trace = replay.read(traces / "philly" / "philly.csv.gz")
    kind = replay.LOADS[load]._replace(each=1)
    jobs, book = replay.market(trace, kind, seed=3)
    together, alone = ceiling.bounds(jobs, book, ((1, 20), (2, 20)))
    toll = together.price.mean(axis=1)
    runs = [Run(book, jobs, ceiling.first_come), Run(book, jobs, replay.matched),
            ceiling.Tolled(book, jobs, ceiling.first_come, toll)]  # fmt: skip
    for run in runs:
        run.play()
        assert 0 < run.welfare <= together.bound
    assert together.bound < alone


def test_the_ceiling_of_one_gpu_that_two_jobs_want_all_the_time_is_the_better_one() -> None:
    orders = [
        Order(at, {"it": limit}, 1, 1, hours_lost=0.0) for at, limit in enumerate((3.0, 2.0, 9.0))
    ]
    book = build(orders, [Supply(0, "it", 0, 1, 1.0)], [SiteRow(0, region=0)],
                 [ClassRow("it", nvlink=True)], seed=0)  # fmt: skip
    hours = np.array([3.0, 2.0, 1.0])
    jobs = Trace(np.array([0.0, 0.0, 7200.0]), np.ones(3, int), 3600 * hours)  # the last ends it
    together, alone = ceiling.bounds(jobs, book, ((1, 40), (4, 40)))
    assert alone == pytest.approx(2 * (3 - 1) + 2 * (2 - 1))
    assert together.bound == pytest.approx(2 * (3 - 1), rel=0.01)
    assert together.bound >= 2 * (3 - 1) - 1e-9


def test_who_is_displaced_loses_what_was_not_saved_and_goes_on_later() -> None:
    """One GPU: the first runs 76 minutes and has saved at 60, the second takes its place for 30, for
    which the GPU stands idle for a round, then the first starts again, five minutes for nothing, and
    does the two hours that it has left."""
    orders = [
        Order(at, {"it": limit}, 1, 1, hours_lost=0.25) for at, limit in enumerate((2.0, 4.0, 0.5))
    ]
    book = build(orders, [Supply(0, "it", 0, 1, 1.0)], [SiteRow(0, region=0)],
                 [ClassRow("it", nvlink=True)], seed=0)  # fmt: skip
    jobs = Trace(
        np.array([0.0, 4500.0, 14400.0]), np.ones(3, int), np.array([10800.0, 1800.0, 60.0])
    )
    run = Leaving(book, jobs, replay.matched, np.array([True, False, False]))
    run.play()
    assert run.leaves == 1
    assert run.started[:2].tolist() == [6480, 4680]
    assert run.figures()[2] == (6480 - 4560 + 4680 - 4500) / 2
    assert run.gpu_hours == pytest.approx(76 / 60 + 0.5 + 2 + 5 / 60)
    assert run.lost_gpu_hours == pytest.approx(16 / 60 + 5 / 60)
    # But for the risk of failures, a thousandth.
    assert run.welfare == pytest.approx(1 - 16 / 60 + 0.5 * 3 + 2 - 5 / 60, rel=2e-3)


def test_what_runs_is_work_done_or_lost(traces: Path) -> None:
    kind = replay.LOADS["congested"]._replace(each=1)
    jobs, book = replay.market(replay.read(traces / "philly" / "philly.csv.gz"), kind, seed=3)
    stays = Leaving(book, jobs, ceiling.first_come, np.zeros(book.jobs, bool))
    plain = Run(book, jobs, ceiling.first_come)
    run = Leaving(book, jobs, replay.matched, np.ones(book.jobs, bool))
    for each in (stays, plain, run):
        each.play()
    assert stays.figures() == plain.figures()
    assert run.leaves > 0 < run.lost_gpu_hours
    runs = np.nan_to_num(run.horizon - run.started) / 3600
    done = (jobs.seconds - run.left) / 3600 + np.minimum(runs, run.left / 3600)
    assert run.gpu_hours == pytest.approx(float(jobs.gpus @ done) + run.lost_gpu_hours)


def test_nothing_costs_less_than_the_floor() -> None:
    moment = costs.Moment((1.0, 1.4, 2.0), 0.5)
    for seed in range(5):
        found = costs._cleared(moment, None, 1 / 3, seed)
        assert 1.0 <= found.least <= found.asked <= found.price * (1 - costs.TAKE) * (1 + 1e-6)


def test_who_is_drawn_stands_for_all_who_trade() -> None:
    book = make(Plan(jobs=60, nodes=90, seed=3))
    market = mechanism._honest(book)
    trading = utilities(book, clear(book))
    for side in ("buyers", "sellers"):
        agents = mechanism._drawn([book], [market], side, 9)
        assert len(agents.row) <= 9
        assert agents.weight.sum() == pytest.approx((trading[side] > 1e-9).sum())


def _as_matches(book, placed: greedy.Placed) -> Matches:
    """Rows cut into slots, at no price: buyers would pay nothing, and prices prove nothing."""
    rows = [
        (job, node, slot)
        for job, node, gpus in zip(placed.job, placed.node, placed.gpus, strict=True)
        for slot in [8] * (gpus // 8) + [size for size in (4, 2, 1) if gpus & size]
    ]
    job, node, gpus = np.array(rows).T
    level, gpu_class = np.full((2, book.jobs), -1)
    for one in np.unique(job):
        nodes = np.unique(node[job == one])
        level[one] = 0 if len(nodes) == 1 else 1 + (len(np.unique(book.node_site[nodes])) > 1)
    gpu_class[job] = book.node_class[node]
    return Matches(
        job.astype("<i4"), node.astype("<i4"), gpus.astype("|i1"), np.zeros(len(job)),
        level.astype("|i1"), gpu_class.astype("<i2"), np.zeros((book.nodes, 4)),
        placed.welfare, 0.0, float((gpus * book.node_ask[node]).sum()), 0.0,
    )  # fmt: skip
