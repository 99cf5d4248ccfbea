"""What no matches of a book can exceed, at given prices: the bound as the checker reckons it.

Written apart from the engine, as `scheduler.matching.check` is. Nodes that no job can tell apart, but by
their price and their free GPUs, are one kind; and a gang looks at places and classes from those that
promise it most on, until none can give it more than it has found.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from scheduler.matching.arrays import Bools, Floats, Ints
from scheduler.matching.book import Book

_LARGEST: Final = 16
"""A node has no more GPUs."""
_HALVINGS: Final = 50


def proven_bound(book: Book, ladder: Floats) -> float:
    """USD per hour: at these prices [N, 4], the best for each one alone."""
    gpus = book.node_gpus.astype(np.int64)
    gain = np.maximum(ladder - book.node_ask[:, None], 0)
    counts = np.stack([gpus % 2, gpus // 2 % 2, gpus // 4 % 2, gpus // 8], axis=1)
    nodes = math.fsum((counts * gain * [1, 2, 4, 8]).sum(axis=1))
    market = _Market.of(book, ladder)
    return nodes + math.fsum(_Job(market, job).best() for job in range(book.jobs))


def in_node(book: Book, job: Ints | int, gpu_class: Ints) -> Floats:
    """The share of its speed that a gang keeps in one node of a class; of one job, or row by row."""
    slow = np.where(book.class_nvlink[gpu_class] > 0, 0, book.params.penalty_node_pcie)
    return np.asarray(1 - slow * book.job_kappa[job].astype(float))


def in_site(book: Book, job: Ints | int, node: Ints) -> Floats:
    """The same over the network of a node's site."""
    slow = np.array(book.params.penalty_site)[book.site_net[book.node_site[node]]]
    return np.asarray(1 - slow * book.job_kappa[job].astype(float))


def over_sites(book: Book, job: Ints | int, node: Ints) -> Floats:
    """1 / (1 + 16 · MB / (Mbit/s · s)); nothing where there is no time or no link."""
    uplink = book.site_up_mbps[book.node_site[node]].astype(float)
    pace = uplink * book.job_sync_s[job].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = 1 / (1 + 16 * book.job_sync_mb[job].astype(float) / pace)
    return np.where(pace > 0, share, 0.0)


@dataclass(frozen=True, eq=False)
class _Market:
    """Nodes that have anything free, by class, then by site; and the kinds of them, by all that makes
    a job accept a node or not."""

    book: Book
    node: Ints
    kind: Ints
    free: Ints
    price: Floats
    """Of a single GPU."""
    has_neighbours: Bools
    of_kind: Ints
    """[Q] a node of each kind."""
    cost: Floats
    """[Q, 17] of so many GPUs in one node of a kind, at least."""

    @classmethod
    def of(cls, book: Book, ladder: Floats) -> "_Market":
        node = np.lexsort((book.node_site, book.node_class))
        node = node[book.node_gpus[node] > 0]
        site, free = book.node_site[node], book.node_gpus[node].astype(np.int64)
        terms = (
            book.node_class[node], book.node_tier[node], book.node_long[node],
            book.site_region[site], book.site_trust[site],
        )  # fmt: skip
        rows = np.stack([term.astype(np.int64) for term in terms], axis=1)
        _, first, kind = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        kind = kind.reshape(-1)
        cost = np.full((len(first), _LARGEST + 1), np.inf)
        for n in range(1, _LARGEST + 1):
            cut = np.array([n % 2, n // 2 % 2 * 2, n // 4 % 2 * 4, n // 8 * 8])
            fits = free >= n
            np.minimum.at(cost[:, n], kind[fits], ladder[node[fits]] @ cut)
        neighbours = (np.bincount(book.node_site) > 1)[site]
        return cls(book, node, kind, free, ladder[node, 0], neighbours, node[first], cost)


class _Job:
    """One job of a market, and what it could gain there by itself."""

    def __init__(self, market: _Market, number: int) -> None:
        book = market.book
        self._market, self._number = market, number
        self._least, self._most = int(book.job_gpus_min[number]), int(book.job_gpus_max[number])
        self._accepted = _accepted(book, number, market.of_kind)

    def best(self) -> float:
        """The most surplus, over one node, one site or several."""
        book, number = self._market.book, self._number
        best = self._in_one_node()
        if self._most > 1 and book.job_level[number] >= 1:
            best = self._on_one_site(best)
            if book.job_level[number] >= 2 and book.job_sites_max[number] > 1:
                best = self._over_sites(best)
        return best

    def _in_one_node(self) -> float:
        book, kind = self._market.book, np.flatnonzero(self._accepted)
        n = np.arange(self._least, min(self._most, _LARGEST) + 1)
        node = self._market.of_kind[kind]
        keeps = in_node(book, self._number, book.node_class[node])
        limit, risk = self._limit(node), self._risk(node)
        share = np.where(n > 1, keeps[:, None], 1.0)
        gain = n * (limit[:, None] * share - n * risk[:, None]) - self._market.cost[kind][:, n]
        return float(gain.max(initial=0.0))

    def _on_one_site(self, best: float) -> float:
        """The GPUs of each place, a class on a site, that gain most: its least whatever they gain."""
        there = self._there[self._market.has_neighbours[self._there]]
        node, free = self._market.node[there], self._market.free[there]
        keeps = in_site(self._market.book, self._number, node)
        gain = self._limit(node) * keeps - self._market.price[there]
        risk, least = self._risk(node), max(self._least, 2)
        first = _beginnings(self._market.book.node_class[node], self._market.book.node_site[node])
        if not len(first):
            return best
        room = np.add.reduceat(free, first)
        dearest = np.maximum.reduceat(gain - risk * least, first)
        promise = np.where(room >= least, dearest * np.minimum(room, self._most), 0.0)
        end = _ends(first, len(node))
        for place in np.argsort(-promise):
            if promise[place] <= best:
                break
            at = slice(first[place], end[place])
            most = min(self._most, int(room[place]))
            best = max(best, _filled(gain[at], risk[at], free[at], least, most))
        return best

    def _over_sites(self, best: float) -> float:
        """Of one class, no more than so many sites gain beyond a toll on each GPU, and the toll of all
        GPUs that it needs, whatever the toll. Sites with too few GPUs don't count."""
        book = self._market.book
        keeps = over_sites(book, self._number, self._market.node[self._there])
        there, keeps = self._there[keeps > 0], keeps[keeps > 0]
        node = self._market.node[there]
        gain = self._limit(node) * keeps - self._market.price[there]
        first = _beginnings(book.node_class[node])
        for start, end in zip(first, _ends(first, len(node)), strict=True):
            at = slice(start, end)
            if gain[at].max() * self._most > best:
                best = max(best, self._over_sites_of(there[at], gain[at], best))
        return best

    def _over_sites_of(self, there: Ints, gain: Floats, known: float) -> float:
        book, node, free = self._market.book, self._market.node[there], self._market.free[there]
        fewest, most = int(book.job_site_gpus_min[self._number]), self._most
        sites = int(book.job_sites_max[self._number])
        first = _beginnings(book.node_site[node])
        has = np.add.reduceat(free, first)
        large = np.repeat(has >= fewest, np.diff(first, append=len(node)))
        least, risk = max(self._least, 2), self._risk(node)
        if np.sort(has[has >= fewest])[::-1][:sites].sum() < least:
            return known
        gain, risk, free, site = gain[large], risk[large], free[large], book.node_site[node][large]
        least = max(least, 2 * fewest)
        while least <= most:
            size, safe = min(2 * least - 1, most), gain - risk * least
            order = np.lexsort((-safe, site))
            # Another site has to give its fewest as well.
            given = _at_most(size - fewest, site[order], free[order])
            known = _tolled(safe[order], site[order], given, size=size, sites=sites, known=known)
            least = size + 1
        return known

    @cached_property
    def _there(self) -> Ints:
        """Which of the market's nodes it accepts."""
        return np.flatnonzero(self._accepted[self._market.kind])

    def _limit(self, node: Ints) -> Floats:
        book = self._market.book
        return np.asarray(book.job_limit[self._number][book.node_class[node]])

    def _risk(self, node: Ints) -> Floats:
        """Of each of its GPUs, for each GPU of the gang."""
        book = self._market.book
        rate = np.array(book.params.failures_per_gpu_hour)[book.node_tier[node]]
        return np.asarray(rate * float(book.job_hours_lost[self._number]) * self._limit(node))


def _accepted(book: Book, job: int, node: Ints) -> Bools:
    """Whether the job's terms admit each of these nodes."""
    site = book.node_site[node]
    bit = np.uint64(1) << book.site_region[site].astype(np.uint64)
    right: Bools = (
        (book.job_limit[job, book.node_class[node]] > 0)
        & (book.job_regions[job] & bit > 0)
        & (book.site_trust[site] <= book.job_trust[job])
        & (book.node_tier[node] <= book.job_tier[job])
        & (book.node_long[node] >= book.job_long[job])
    )
    return right


def _filled(gain: Floats, risk: Floats, free: Ints, least: int, most: int) -> float:
    """The best of all sizes on these nodes, those from a to 2a − 1 as the largest at the risk of a."""
    best = 0.0
    while least <= most:
        size, safe = min(2 * least - 1, most), gain - risk * least
        order = np.argsort(-safe)
        before = np.cumsum(free[order]) - free[order]
        taken = np.clip(np.where(safe[order] > 0, size, least) - before, 0, free[order])
        best = max(best, float((taken * safe[order]).sum()))
        least = size + 1
    return best


def _at_most(most: int, site: Ints, free: Ints) -> Ints:
    """What each of these nodes, sorted by site, gives if no site gives more than so many."""
    first, before = _beginnings(site), np.cumsum(free) - free
    before -= np.repeat(before[first], np.diff(first, append=len(free)))
    return np.asarray(np.clip(most - before, 0, free))


def _tolled(gain: Floats, site: Ints, free: Ints, *, size: int, sites: int, known: float) -> float:
    """What the best sites gain beyond a toll on each GPU, and the toll of `size` of them, at the toll
    that makes it least: below it they give more than so many, above it fewer. Or `known`, if that is
    no less."""
    first = _beginnings(site)

    def at(toll: float) -> tuple[float, bool]:
        given = np.where(gain > toll, free, 0)
        gains = np.add.reduceat(given * (gain - toll), first)
        chosen = np.argsort(-gains)[:sites]
        few = np.add.reduceat(given, first)[chosen].sum() <= size
        return float(gains[chosen].sum()) + toll * size, bool(few)

    low, high = 0.0, float(gain.max(initial=0.0))
    total, few = at(low)
    halvings = 0 if few else _HALVINGS
    for _ in range(halvings):
        toll = (low + high) / 2
        total, few = at(toll)
        if total <= known:
            return known
        low, high = (low, toll) if few else (toll, high)
    return max(known, at(high)[0] if halvings else total)


def _beginnings(*columns: Ints) -> Ints:
    """Where rows begin that differ in one of these from the row before."""
    if not len(columns[0]):
        return np.arange(0)
    differs = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return np.flatnonzero(np.append(True, differs))


def _ends(first: Ints, count: int) -> Ints:
    """Where the next begins, or all ends."""
    return np.append(first, count)[1:]
