"""Why a node was not let in a round, and at which ask it would have been.

The asks that are tried come from what is public, the prices at which its like was let, and from the
node's own ask; that it would have been let is not argued but seen, by clearing the book again.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np

from marketplace.core.money import MICRO
from scheduler.matching.arrays import Bools, Floats, Ints
from scheduler.matching.book import Book
from scheduler.matching.cells import Cells, cells
from scheduler.matching.explain import TERMS, Term
from scheduler.matching.matches import Matches
from scheduler.matching.placing import ANY, LARGEST, NODE

_CUTS: Final = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of its ask that a node might do without."""


class Lost(StrEnum):
    """Why a node was not let; the first that holds."""

    QUIET = "quiet"  # no job waited
    UNWANTED = "unwanted"  # no job accepts it
    SMALL = "small"  # those that do need more GPUs together than there are
    DEAR = "dear"  # it asks for more than its like was let for, or nothing like it was let
    LONG = "long"  # more was free than wanted


@dataclass(frozen=True)
class Idle:
    """Why a node was not let."""

    node: int
    why: Lost
    jobs: int
    """How many were in the book."""
    term: Term | None
    """Of UNWANTED: the term on which most of them left it out; of LIMIT: they want other classes,
    or more than it has."""
    left_out: int
    """By how many."""
    accepted: int
    """By how many jobs."""
    needed: int
    """GPUs that the smallest of these needs."""
    price: float
    """The most that its like was let for in this round, USD per GPU-hour; 0: nothing was."""
    own_cell: bool
    """Whether that is the price of its own cell; else of its class."""


def idle(book: Book, matches: Matches, nodes: Iterable[int]) -> list[Idle]:
    """Why each of these was not let. They had something free, and nobody got any of it."""
    kinds = cells(book)
    return [_explained(book, matches, kinds, node) for node in nodes]


def let_at(
    book: Book, node: int, tries: Iterable[float], clear: Callable[[Book], Matches]
) -> float | None:
    """The highest of these asks (which fall) at which the node is let, as far as a search by halves
    can tell; None if not even the lowest. Clears the book each time it looks."""
    asks, found = list(tries), None
    while asks:
        middle = len(asks) // 2
        if _is_let(book, node, asks[middle], clear):
            found, asks = asks[middle], asks[:middle]
        else:
            asks = asks[middle + 1 :]
    return found


def among(asks: Sequence[int], clearings: int) -> list[int]:
    """Those of the asks, evenly spread, that `let_at` can tell apart by so many clearings."""
    most = min(2**clearings - 1, len(asks))
    return [asks[(at + 1) * len(asks) // (most + 1)] for at in range(most)]


def tries(book: Book, matches: Matches, node: int) -> list[float]:
    """Asks below its own that are worth a try, falling: a micro less than its like was let for (at
    the same, a tie would fall now so and now so), and some shares of its own ask. None of them tells
    of anybody's live ask or limit; but that it would have been let at one tells that somebody pays it."""
    ask = float(book.node_ask[node])
    like = _let_for(book, matches, book.node_class[matches.node] == book.node_class[node], node)
    paid = np.unique(np.floor(like * MICRO + 0.5))
    own = [math.floor(ask * (1 - cut) * MICRO) for cut in _CUTS]
    micros = {*(paid - 1).tolist(), *own}
    return [each / MICRO for each in sorted(micros, reverse=True) if 0 <= each < ask * MICRO]


def _is_let(book: Book, node: int, ask: float, clear: Callable[[Book], Matches]) -> bool:
    asks = book.node_ask.copy()
    asks[node] = ask
    return bool((clear(replace(book, node_ask=asks)).node == node).any())


def _explained(book: Book, matches: Matches, kinds: Cells, node: int) -> Idle:
    meets = {name: _accepted(book, name, node) for name in TERMS}
    accepted = np.logical_and.reduce(list(meets.values()))
    needs = book.job_gpus_min
    served = accepted & (needs <= _together(book, node))
    own = kinds.of_node[matches.node] == kinds.of_node[node]
    like = _let_for(book, matches, own, node)
    own_cell = bool(len(like))
    if not own_cell:
        like = _let_for(book, matches, book.node_class[matches.node] == book.node_class[node], node)
    price = float(like.max(initial=0.0))
    term, left_out = _leaving_out(meets)
    if not book.jobs:
        why = Lost.QUIET
    elif not accepted.any():
        why = Lost.UNWANTED
    elif not served.any():
        why = Lost.SMALL
    else:
        why = Lost.LONG if book.node_ask[node] <= price else Lost.DEAR
    return Idle(
        node=node,
        why=why,
        jobs=book.jobs,
        term=term if why is Lost.UNWANTED else None,
        left_out=left_out if why is Lost.UNWANTED else 0,
        accepted=int(accepted.sum()),
        needed=int(needs[accepted].min(initial=2**31 - 1)) if accepted.any() else 0,
        price=price,
        own_cell=own_cell,
    )


def _accepted(book: Book, name: Term, node: int) -> Bools:
    """[J] whether the node meets this term of each job."""
    site = book.node_site[node]
    found: Bools
    if name is Term.LIMIT:
        found = book.job_limit[:, book.node_class[node]] > 0
    elif name is Term.REGION:
        region = book.site_region[site].astype(np.uint64)
        found = (book.job_regions >> region & np.uint64(1)).astype(bool)
    elif name is Term.TRUST:
        found = book.job_trust >= book.site_trust[site]
    elif name is Term.TIER:
        found = book.job_tier >= book.node_tier[node]
    else:
        found = book.job_long <= book.node_long[node]
    return found


def _leaving_out(meets: dict[Term, Bools]) -> tuple[Term, int]:
    """The term on which most jobs leave the node out, each by the first that it fails."""
    still, counted = np.ones(len(next(iter(meets.values()))), bool), {}
    for name, good in meets.items():
        counted[name] = int((still & ~good).sum())
        still = still & good
    most = max(counted, key=lambda name: counted[name])
    return most, counted[most]


def _together(book: Book, node: int) -> Ints:
    """[J] how many GPUs a gang could have at most with this node among them, all being free."""
    alike = book.node_class == book.node_class[node]
    here = alike & (book.node_site == book.node_site[node])
    gpus = book.node_gpus.astype(np.int64)
    alone = (book.job_level == NODE) | (book.job_gpus_max == 1)
    found: Ints = np.where(alone, gpus[node], gpus[here].sum())
    spans = (book.job_level == ANY) & ~alone
    return np.where(spans, gpus[alike].sum(), found)


def _let_for(book: Book, matches: Matches, like: Bools, node: int) -> Floats:
    """Published prices of what was let of these rows, in sizes that the node has."""
    slot = np.log2(matches.gpus).astype(np.int64)
    rows = like & (slot <= LARGEST[book.node_gpus[node]])
    prices: Floats = matches.cell_price[matches.node[rows], slot[rows]]
    return prices
