"""A book as the compiled loops read it: arrays of rows.

Jobs meet cells by what they accept (class, tier, region, trust, window), so most questions of a job
are one look into a table over these. Gangs on one site meet places: a class on a site that has
several nodes, with up to six cells (three tiers, short and long windows). Gangs over several sites
meet places, and sources: nodes of one pooled cell with equal uplinks and as many GPUs, each on a
site of its own.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.arrays import Array, Floats, Ints, Record
from scheduler.matching.book import Book
from scheduler.matching.cells import POOL, Cells
from scheduler.matching.ordering import sorted_by

TIERS: Final = 3
TRUSTS: Final = 4
NOWHERE: Final = -1


# Rows rather than columns: the loops read many fields of one job or cell at a time, and numba counts
# references for each array that it takes from a tuple.
JOB: Final = np.dtype(
    [
        ("least", "i4"), ("most", "i4"), ("level", "i4"), ("trust", "i4"), ("tier", "i4"),
        ("long", "i4"), ("site_least", "i4"), ("sites_most", "i4"), ("kappa", "f8"),
        ("lost", "f8"), ("sync_mb", "f8"), ("sync_s", "f8"), ("regions", "u8"),
    ],
    align=True,
)  # fmt: skip
CELL: Final = np.dtype(
    [(name, "i4") for name in ("gpu_class", "tier", "region", "trust", "long", "largest")]
)
"""`largest`: the most that one of its nodes has free."""
PLACE: Final = np.dtype(
    [
        ("uplink", "f8"), ("gpu_class", "i4"), ("region", "i4"), ("trust", "i4"), ("net", "i4"),
        ("cells", "i4", (2 * TIERS,)), ("gpus", "i4", (2 * TIERS,)), ("there", "i4", (2 * TIERS,)),
    ],
    align=True,
)  # fmt: skip
"""Its cells by 2 · tier + long, NOWHERE where it has none, what each has free, and what is `there` for
a job of that tier and window: what such cells and better ones have. Sorted by class; the uplink is in
Mbit/s."""
SOURCE: Final = np.dtype(
    [("uplink", "f8"), ("cell", "i4"), ("gpus", "i4"), ("each", "i4")], align=True
)
"""Sorted by class. Each of its sites has `each` GPUs free, all together `gpus`."""
NODE: Final = np.dtype([("cell", "i4"), ("free", "i4"), ("ask", "f8")])
SHARE: Final = np.dtype([("cell", "i4"), ("gpus", "i4")])
"""What a gang would buy of a cell."""


class Rules(NamedTuple):
    """What speed gangs lose in a node [C] and on a site [net], and failures by tier."""

    in_node: Floats
    in_site: Floats
    failures: Floats


class Tables(NamedTuple):
    """All of a book: arrays of the types above, and each job's limits [J, C]."""

    jobs: Array
    limit: Floats
    rules: Rules
    nodes: Array
    cells: Array
    places: Array
    sources: Array
    place_start: Ints
    """[C + 1] where the places of each class begin, and so the sources."""
    source_start: Ints


def tables(book: Book, kinds: Cells) -> Tables:
    """The tables of a book and its cells."""
    places, sources = _places(book, kinds), _sources(book, kinds)
    classes = np.arange(book.job_limit.shape[1] + 1)
    return Tables(
        _jobs(book), np.array(book.job_limit, order="C"), rules(book), _nodes(book, kinds),
        _cells(book, kinds), places, sources, np.searchsorted(places["gpu_class"], classes),
        np.searchsorted(kinds.gpu_class[sources["cell"]], classes),
    )  # fmt: skip


def rows(dtype: np.dtype[Any], **columns: Array) -> Array:
    """Columns of one length as rows of a type."""
    found = np.zeros(len(next(iter(columns.values()))), dtype)
    for name, column in columns.items():
        found[name] = column
    return found


def _jobs(book: Book) -> Array:
    return rows(
        JOB,
        least=book.job_gpus_min, most=book.job_gpus_max, level=book.job_level,
        trust=book.job_trust, tier=book.job_tier, long=book.job_long,
        site_least=book.job_site_gpus_min, sites_most=book.job_sites_max, kappa=book.job_kappa,
        lost=book.job_hours_lost, sync_mb=book.job_sync_mb, sync_s=book.job_sync_s,
        regions=book.job_regions,
    )  # fmt: skip


def rules(book: Book) -> Rules:
    """The book's."""
    params = book.params
    return Rules(
        in_node=np.where(book.class_nvlink == 1, 0.0, params.penalty_node_pcie),
        in_site=np.array(params.penalty_site),
        failures=np.array(params.failures_per_gpu_hour),
    )


def _nodes(book: Book, kinds: Cells) -> Array:
    return rows(NODE, cell=kinds.of_node, free=book.node_gpus, ask=book.node_ask)


def _cells(book: Book, kinds: Cells) -> Array:
    largest = np.zeros(len(kinds), np.int32)
    np.maximum.at(largest, kinds.of_node, book.node_gpus.astype(np.int32))
    return rows(
        CELL, gpu_class=kinds.gpu_class, tier=kinds.tier, region=kinds.region, trust=kinds.trust,
        long=kinds.long, largest=largest,
    )  # fmt: skip


def _places(book: Book, kinds: Cells) -> Array:
    there = np.bincount(kinds.of_node, book.node_gpus, len(kinds)).astype(np.int32)
    place_of, site_of = np.zeros((2, len(kinds)), np.int64)
    place_of[kinds.of_node] = kinds.place
    site_of[kinds.of_node] = book.node_site
    shared = np.flatnonzero(kinds.site != POOL)
    shared = shared[np.argsort(kinds.gpu_class[shared], kind="stable")]
    _, first, place = np.unique(place_of[shared], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    cells = np.full((len(first), 2 * TIERS), NOWHERE, np.int32)
    cells[rank[place.reshape(-1)], 2 * kinds.tier[shared] + kinds.long[shared]] = shared
    one = shared[np.sort(first)]
    site = site_of[one]
    gpus = np.where(cells == NOWHERE, 0, there[cells])
    better = gpus.reshape(-1, TIERS, 2).cumsum(axis=1)
    better[:, :, 0] += better[:, :, 1]
    return rows(
        PLACE, gpu_class=kinds.gpu_class[one], region=kinds.region[one], trust=kinds.trust[one],
        net=book.site_net[site], uplink=book.site_up_mbps[site], cells=cells,
        gpus=gpus, there=better.reshape(-1, 2 * TIERS),
    )  # fmt: skip


def _sources(book: Book, kinds: Cells) -> Array:
    pooled = np.flatnonzero(kinds.site[kinds.of_node] == POOL)
    cell, free = kinds.of_node[pooled], book.node_gpus[pooled].astype(np.int32)
    uplink = book.site_up_mbps[book.node_site[pooled]].astype(float)
    order = sorted_by(book.node_class[pooled], cell, uplink, free)
    cell, uplink, free = cell[order], uplink[order], free[order]
    other = np.ones(len(order), bool)
    other[1:] = (np.diff(cell) != 0) | (np.diff(uplink) != 0) | (np.diff(free) != 0)
    first = np.flatnonzero(other)
    nodes = np.diff(first, append=len(order))
    each = free[first]
    return rows(SOURCE, cell=cell[first], uplink=uplink[first], gpus=nodes * each, each=each)


@njit(cache=True, nogil=True)
def accepts(job: Record, where: Record) -> bool:
    """Whether a job goes to a cell, kind or place at all: by its region and trust."""
    there = job.regions >> np.uint64(where.region) & np.uint64(1)
    return bool(where.trust <= job.trust and there == 1)


@njit(cache=True, nogil=True)
def kept(job: Record, uplink: float) -> float:
    """η of a gang's share behind an uplink, Mbit/s; 0 where it never computes in between."""
    computing = uplink * job.sync_s
    return computing / (computing + 16 * job.sync_mb) if computing > 0 else 0.0


@njit(cache=True, nogil=True, forceinline=True)
def goes_anywhere(job: Record, regions: int) -> bool:
    """Whether a job accepts each of so many regions (1 to 64)."""
    every = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - regions)
    return bool(job.regions & every == every)
