"""Order books written by hand, and drawn by hypothesis."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from scheduler.matching.book import Book, ClassRow, Order, Params, SiteRow, Supply, build
from scheduler.matching.check import check
from scheduler.matching.matches import Matches

CLASSES = (ClassRow("sxm", nvlink=True), ClassRow("pcie"))
SITE = SiteRow("a", region=0, trust=1, net=0, up_mbps=1000.0)


def an_order(number: int = 1, **terms: Any) -> Order:
    """One that takes a GPU of class `sxm` for at most 2 USD, unless told otherwise."""
    return Order(number, **{"limits": {"sxm": 2.0}} | terms)


def a_node(number: int = 1, **terms: Any) -> Supply:
    """Eight GPUs of class `sxm` on site `a` at 1 USD each, unless told otherwise."""
    return Supply(
        number, **{"gpu_class": "sxm", "site": "a", "gpus": 8, "ask": 1.0, "tier": 0} | terms
    )


def a_book(
    orders: Sequence[Order],
    nodes: Sequence[Supply],
    sites: Sequence[SiteRow] = (SITE,),
    **params: Any,
) -> Book:
    """A book with seed 7 and rules without risk, unless told otherwise."""
    rules = replace(Params(failures_per_gpu_hour=(0.0, 0.0, 0.0)), **params)
    return build(orders, nodes, sites, CLASSES, seed=7, params=rules)


def edited(book: Book, **columns: Any) -> Book:
    """The book with some arrays replaced; values take the array's own type."""
    return replace(
        book,
        **{name: np.array(values, getattr(book, name).dtype) for name, values in columns.items()},
    )


def checked(book: Book, matches: Matches) -> Matches:
    """The matches, which the checker must find right."""
    assert check(book, matches) == []
    return matches


# Few different numbers, so that ties and near misses are common.
_PRICES = st.sampled_from((0.0, 0.5, 0.9, 1.0, 1.000001, 1.3, 2.0, 3.7))


@st.composite
def orders(draw: st.DrawFn, number: int) -> Order:
    least = draw(st.sampled_from((1, 1, 2, 3, 4, 8, 12)))
    return Order(
        number,
        limits={row.name: draw(_PRICES) for row in CLASSES},
        gpus_min=least,
        gpus_max=least + draw(st.sampled_from((0, 0, 1, 5))),
        level=draw(st.integers(0, 2)),
        kappa=draw(st.sampled_from((0.0, 0.3, 1.0))),
        hours_lost=draw(st.sampled_from((0.0, 0.5, 30.0))),
        regions=draw(st.sampled_from((2**64 - 1, 1, 2))),
        trust=draw(st.integers(0, 3)),
        tier=draw(st.integers(0, 2)),
        long=draw(st.booleans()),
        age_h=draw(st.sampled_from((0.0, 1.0, 100.0))),
        sync_mb=draw(st.sampled_from((0.0, 20.0, 2000.0))),
        sync_s=draw(st.sampled_from((0.0, 30.0))),
        site_gpus_min=draw(st.integers(1, 4)),
        sites_max=draw(st.integers(1, 3)),
    )


@st.composite
def supplies(draw: st.DrawFn, number: int, sites: int) -> Supply:
    return Supply(
        number,
        gpu_class=draw(st.sampled_from([row.name for row in CLASSES])),
        site=draw(st.integers(0, sites - 1)),
        gpus=draw(st.sampled_from((0, 1, 2, 3, 4, 8, 16))),
        ask=draw(_PRICES),
        tier=draw(st.integers(0, 2)),
        long=draw(st.booleans()),
    )


@st.composite
def site_rows(draw: st.DrawFn, number: int) -> SiteRow:
    return SiteRow(
        number,
        region=draw(st.integers(0, 1)),
        trust=draw(st.integers(0, 3)),
        net=draw(st.integers(0, 2)),
        up_mbps=draw(st.sampled_from((0.0, 20.0, 1000.0))),
    )


@st.composite
def books(draw: st.DrawFn, most: int = 12) -> Book:
    """A small book in which anything may happen."""
    sites = [draw(site_rows(number)) for number in range(draw(st.integers(1, 4)))]
    return build(
        [draw(orders(number)) for number in range(draw(st.integers(0, most)))],
        [draw(supplies(number, len(sites))) for number in range(draw(st.integers(0, most)))],
        sites,
        CLASSES,
        seed=draw(st.integers(0, 2**64 - 1)),
    )
