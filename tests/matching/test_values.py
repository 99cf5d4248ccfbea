"""What gangs are worth where they run is what the same gangs would be worth to a round."""

import numpy as np
import pytest

from scheduler.matching.book import ClassRow, Order, SiteRow, Supply, build
from scheduler.matching.check import amounts
from scheduler.matching.clear import clear
from scheduler.matching.values import of_gangs

SITES = [
    SiteRow("a", 0, net=1, up_mbps=800),
    SiteRow("b", 0, net=2, up_mbps=200),
    SiteRow("c", 0, net=0, up_mbps=3000),
]


def order(number, limit, gpus, **changes):
    return Order(
        number, {"pcie": limit}, gpus_min=gpus, gpus_max=gpus, kappa=0.4, hours_lost=0.5, **changes
    )


@pytest.mark.parametrize(
    ("orders", "level"),
    [
        ([order(1, 3.0, 1)], 0),
        ([order(1, 3.0, 3)], 0),
        ([order(1, 3.0, 6, level=1)], 1),
        ([order(1, 9.0, 12, level=2, sync_mb=100, sync_s=30, sites_max=3)], 2),
        ([order(1, 3.0, 1), order(2, 4.0, 6, level=1), order(3, 5.0, 2)], 1),
    ],
    ids=["one GPU", "one node", "one site", "several sites", "several gangs"],
)
def test_gangs_that_run_are_worth_what_a_round_counts_and_its_checker_finds(orders, level):
    nodes = [
        Supply(at, "pcie", "abc"[at // 2], gpus=4, ask=0.5 + at / 10, tier=at % 3)
        for at in range(6)
    ]
    book = build(orders, nodes, SITES, [ClassRow("pcie", nvlink=False)], seed=1)
    matches = clear(book)
    assert max(matches.level) == level
    placed = np.unique(matches.job)
    gang = np.searchsorted(placed, matches.job)
    running = [orders[job] for job in placed]
    surplus, value = of_gangs(
        book, running, gang, matches.node.astype(int), matches.gpus.astype(int)
    )
    assert surplus.sum() == pytest.approx(amounts(book, matches).welfare, rel=1e-6)
    assert (value > surplus).all()
