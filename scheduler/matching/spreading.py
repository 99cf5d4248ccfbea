"""Where a gang could run over several nodes: of one site, or of several.

Each group of nodes (a class on a site) gives its best GPUs first. The sizes that this needs of a
node are unknown until the gang is cut up, so a node gives only what its cell's prices allow in
any size (`Stand.high` of the smallest slot, `Stand.low` of the largest it may come to).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scheduler.matching.arrays import Array, Floats, Ints
from scheduler.matching.placing import ANY, SITE, WITHIN, Gang, Search, in_one_node


@dataclass(frozen=True, eq=False)
class _Shares:
    """What each node could give: so many GPUs, worth so much each less risk · the gang's size.

    Sorted by group, in each the best GPUs first.
    """

    nodes: Ints
    group: Ints
    gpus: Ints
    worth: Floats
    risk: Floats
    gain: Floats

    def where(self, rows: Array) -> "_Shares":
        return _Shares(
            self.nodes[rows], self.group[rows], self.gpus[rows],
            self.worth[rows], self.risk[rows], self.gain[rows],
        )  # fmt: skip

    @cached_property
    def first(self) -> Ints:
        """Where each group begins."""
        return np.flatnonzero(np.diff(self.group, prepend=-1))

    @cached_property
    def run(self) -> Ints:
        """Which group, of those here, each node is in: 0, 1, 2, …"""
        return np.repeat(np.arange(len(self.first)), np.diff(self.first, append=len(self.group)))

    def per_group(self, amounts: Array) -> Array:
        return np.add.reduceat(amounts, self.first)

    def taking(self, wanted: Ints) -> Ints:
        """GPUs from each node, when each group is to give so many."""
        before = np.cumsum(self.gpus) - self.gpus
        return np.clip(wanted[self.run] - (before - before[self.first][self.run]), 0, self.gpus)


def places(search: Search, target: int, *, everything: bool) -> list[Gang]:
    """Up to `target` GPUs at every level that the job accepts: the best of each, or all."""
    gangs = in_one_node(search, target, everything=everything)
    if target > 1 and search.loosest >= SITE:
        gangs += on_one_site(search, target, everything=everything)
    if target > 1 and search.loosest >= ANY and search.book.job_sites_max[search.job] > 1:
        gangs += over_sites(search, target)
    return gangs


def on_one_site(search: Search, target: int, *, everything: bool) -> list[Gang]:
    """Up to `target` GPUs of one class over nodes of one site: the best site, or all, best first."""
    keeps = search.terms.in_site[search.kinds.of_node[search.nodes]]
    shares = _shares(search, keeps, target)
    if not len(shares.nodes):
        return []
    gpus = shares.taking(np.full(len(shares.first), target))
    size = shares.per_group(gpus)
    value = shares.worth - shares.risk * size[shares.run]
    surplus = shares.per_group(gpus * (value - search.stand.cost[shares.nodes, gpus]))
    several = shares.per_group((gpus > 0).astype(np.int64)) > 1
    fits = np.flatnonzero(several & (size >= search.least))
    fits = fits[np.argsort(-surplus[fits], kind="stable")]
    gangs = []
    for at in fits[: None if everything else 1]:
        used = np.flatnonzero((shares.run == at) & (gpus > 0))
        gangs.append(Gang(shares.nodes[used], gpus[used], value[used], SITE, float(surplus[at])))
    return gangs


def over_sites(search: Search, target: int) -> Iterator[Gang]:
    """Up to `target` GPUs of one class over several sites: two choices of sites for each class.

    Few large sites serve a gang that may span few; the best GPUs first serve all others.
    """
    keeps = search.terms.over_sites[search.book.node_site[search.nodes]]
    shares = _shares(search, keeps, target)
    classes = search.book.node_class[shares.nodes]
    for gpu_class in dict.fromkeys(classes.tolist()):
        mine = shares.where(classes == gpu_class)
        gpus = mine.taking(np.full(len(mine.first), target))
        total = mine.per_group(gpus * mine.gain)
        for rank in (total, total / mine.per_group(gpus)):
            gang = _span(search, mine, np.argsort(-rank, kind="stable"), target)
            if gang is not None:
                yield gang


def _shares(search: Search, keeps: Floats, target: int) -> _Shares:
    """What each node of the search could give to a gang that keeps so much speed on it."""
    stand, nodes = search.stand, search.nodes
    cell = search.kinds.of_node[nodes]
    worth, risk = search.terms.limit[cell] * keeps, search.terms.risk[cell]
    value = worth - risk * target
    allowed = WITHIN[(value[:, None] >= stand.low[cell]).sum(axis=1)]
    gpus = np.minimum(stand.free[nodes], allowed)
    cost = stand.cost[nodes, gpus]
    group = search.kinds.place[nodes]
    useful = np.flatnonzero(
        (keeps > 0) & (gpus > 0) & (cost <= np.minimum(value, stand.high[cell, 0]))
    )
    every = _Shares(nodes, group, gpus, worth, risk, value - cost)
    return every.where(useful[np.lexsort((-every.gain[useful], group[useful]))])


def _span(search: Search, shares: _Shares, order: Ints, target: int) -> Gang | None:
    """A gang from the sites in this order, if they make one."""
    wanted = _split(search, shares.per_group(shares.gpus), order, target)
    gpus = shares.taking(wanted)
    size = int(gpus.sum())
    used = np.flatnonzero(gpus)
    if np.count_nonzero(wanted) < 2 or size < search.least:
        return None
    nodes, gpus = shares.nodes[used], gpus[used]
    value = shares.worth[used] - shares.risk[used] * size
    cost = search.stand.cost[nodes, gpus]
    # Uplinks differ inside a pool, so the gang's own rows must agree on a price as well.
    cell = search.kinds.of_node[nodes]
    agreed = np.full(len(search.kinds), np.inf)
    np.minimum.at(agreed, cell, value)
    if (cost > agreed[cell]).any():
        return None
    return Gang(nodes, gpus, value, ANY, float((gpus * (value - cost)).sum()))


def _split(search: Search, has: Ints, order: Ints, target: int) -> Ints:
    """How many GPUs each site gives, no site fewer than the job's least."""
    job, book = search.job, search.book
    least, most_sites = int(book.job_site_gpus_min[job]), int(book.job_sites_max[job])
    wanted = np.zeros(len(has), np.int64)
    left = target
    for site in order.tolist():
        gives = min(int(has[site]), left)
        if 0 < left - gives < least:
            gives = left - least
        if gives < least:
            continue
        wanted[site] = gives
        left -= gives
        most_sites -= 1
        if not left or not most_sites:
            break
    return wanted
