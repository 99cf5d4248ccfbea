"""Books of more jobs than one thread looks through, of which there is little else."""

import pytest

from scheduler.matching.book import Book, SiteRow
from scheduler.matching.clear import follow
from scheduler.matching.synthetic import Plan, make
from tests.matching.rows import a_book, a_node, an_order, checked, edited

pytestmark = pytest.mark.timeout(300)  # its loops are compiled first

_MANY = 501
_SITES = [SiteRow(number, region=0) for number in range(3)]
_NODES = [a_node(at + 1, site=at // 2) for at in range(6)]
_ORDERS = [an_order(number, limits={"sxm": 1 + number / _MANY}) for number in range(1, _MANY + 1)]


@pytest.mark.parametrize(
    "book",
    [
        make(Plan(jobs=_MANY, nodes=0, seed=0)),
        make(Plan(jobs=_MANY, nodes=1, seed=0)),
        a_book(_ORDERS, _NODES[:2], _SITES),
        a_book(_ORDERS, _NODES, _SITES),
    ],
    ids=["no node", "one node", "one cell", "cells of one kind"],
)
def test_many_share_what_little_there_is(book: Book) -> None:
    matches, balance = follow(book, None)
    again, _ = follow(book, balance)
    for each in (matches, again):
        free = int(book.node_gpus.sum())
        assert free / 2 <= checked(book, each).gpus.sum() <= free


@pytest.mark.parametrize("jobs", [60, _MANY])
def test_the_last_region_is_one_like_others(jobs: int) -> None:
    book = make(Plan(jobs=jobs, nodes=40, seed=0))
    regions = [2**63, 2**64 - 1, 1] * jobs
    book = edited(book, site_region=[63] * len(book.site_region), job_regions=regions[:jobs])
    matches, _ = follow(book, None)
    assert set(book.job_regions[checked(book, matches).job].tolist()) == {2**63, 2**64 - 1}
