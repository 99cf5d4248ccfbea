"""Cells: nodes that are alike to every job, so that they trade at one price.

A cell is a GPU class, a site and a service tier (reliability and long window). The only node of a
site is pooled with its like: same class, region, trust and service tier.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from marketplace.core.hardware import REGIONS
from scheduler.matching.arrays import Bools, Floats, Ints
from scheduler.matching.book import Book

SLOTS: Final = (1, 2, 4, 8)
"""Sizes in which the GPUs of one node are let; a gang's share of a node is cut into the fewest."""
POOL: Final = -1
"""The site of a pooled cell."""
_PACKED: Final = 2**63


@dataclass(frozen=True, eq=False)
class Cells:
    """Attributes of each cell [K], numbered as they first appear among the nodes."""

    of_node: Ints  # [N]
    place: Ints  # [N] each node's class and site, as one number
    gpu_class: Ints
    site: Ints  # POOL where pooled
    region: Ints
    trust: Ints
    tier: Ints
    long: Bools
    failures: Floats  # per GPU-hour
    node_penalty: Floats  # share of its communication time that a gang loses in one node
    site_penalty: Floats  # and over the site's network

    def __len__(self) -> int:
        return len(self.gpu_class)


@dataclass(frozen=True)
class Names:
    """What classes and sites are called, in the book's order; a book itself names nobody."""

    classes: Sequence[str]
    sites: Sequence[str]


def cells(book: Book) -> Cells:
    """The cells of a book."""
    site = book.node_site.astype(np.int64)
    alone = np.bincount(site, minlength=len(book.site_region))[site] == 1
    # A pooled site stands for all of its region and trust, by a number below POOL.
    region, trust = book.site_region[site].astype(np.int64), book.site_trust[site].astype(np.int64)
    where = np.where(alone, POOL - 4 * region - trust, site)
    columns = (book.node_class, where, book.node_tier, book.node_long)
    of_node, first = _by_first_appearance(*columns)
    place, _ = _by_first_appearance(book.node_class, site)
    gpu_class, tier, long = (column[first] for column in columns if column is not where)
    params, net = book.params, book.site_net[site[first]]
    return Cells(
        of_node=of_node,
        place=place,
        gpu_class=gpu_class,
        site=np.where(alone, POOL, site)[first],
        region=region[first],
        trust=trust[first],
        tier=tier,
        long=long.astype(bool),
        failures=np.array(params.failures_per_gpu_hour)[tier],
        node_penalty=np.where(book.class_nvlink[gpu_class] == 1, 0.0, params.penalty_node_pcie),
        site_penalty=np.array(params.penalty_site)[net],
    )


def labels(kinds: Cells, names: Names) -> list[str]:
    """[K] what each cell is called, the same from round to round: `class/site/tier`."""
    return [_label(kinds, names, cell) for cell in range(len(kinds))]


def slots(gpus: int) -> list[int]:
    """The fewest slots that make so many GPUs of one node, largest first: 11 → 8, 2, 1."""
    return [8] * (gpus // 8) + [size for size in (4, 2, 1) if gpus & size]


def _by_first_appearance(*columns: Ints) -> tuple[Ints, Ints]:
    """A number for each distinct row, counted as they first appear, and where that is."""
    first, number = told_apart(*columns)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[number], np.sort(first)


def distinct(rows: Ints) -> tuple[Ints, Ints, Ints]:
    """The distinct rows in order, where each first appears, and for each row which it is."""
    first, of_row = told_apart(*rows.T)
    return rows[first], first, of_row


def told_apart(*columns: Ints) -> tuple[Ints, Ints]:
    """Where each distinct row of these columns first appears, in their order, and for each row which
    it is."""
    # As one number each, with the row behind it, they sort ten times faster.
    number, span, rows = np.zeros(len(columns[0]), np.int64), 1, np.arange(len(columns[0]))
    for column in columns:
        least, most = int(column.min(initial=0)), int(column.max(initial=0))
        span *= most - least + 1
        number = number * (most - least + 1) + column - least
    new, bits = np.ones(len(rows), bool), len(rows).bit_length()
    if span << bits <= _PACKED:
        packed = np.sort(number << bits | rows)
        order, number = packed & (1 << bits) - 1, packed >> bits
        new[1:] = number[1:] != number[:-1]
    else:
        order = np.lexsort(columns[::-1])
        new[1:] = np.any([column[order[1:]] != column[order[:-1]] for column in columns], axis=0)
    of_row = np.empty(len(rows), np.int64)
    of_row[order] = np.cumsum(new) - 1
    return order[new], of_row


def _label(kinds: Cells, names: Names, cell: int) -> str:
    region, site = kinds.region[cell], kinds.site[cell]
    place = names.sites[site]
    if site == POOL:
        where = REGIONS[region] if region < len(REGIONS) else f"region-{region}"
        place = f"{where}-trust-{kinds.trust[cell]}"
    long = "-long" if kinds.long[cell] else ""
    return f"{names.classes[kinds.gpu_class[cell]]}/{place}/tier-{kinds.tier[cell]}{long}"
