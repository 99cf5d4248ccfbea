"""Checks matches against their book, from the rules alone.

Written apart from the engine and shares no code with it but the two file formats: what this finds
right, anybody can find right. Welfare, make-whole and bound are computed anew; amounts agree when
they differ by less than a part in a million.
"""

import math
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from scheduler.matching.arrays import Bools, Floats, Ints
from scheduler.matching.book import Book
from scheduler.matching.matches import Matches

VERSION: Final = 2
"""Of the rules below. 1: the first. 2: the bound follows from what balances the cells, and a gang over
sites bears a toll."""
_SLACK = 1e-6
_HALVINGS: Final = 50


@dataclass(frozen=True)
class Amounts:
    """Of matches, by the rules: USD per hour."""

    welfare: float
    make_whole: float


def check(book: Book, matches: Matches) -> list[str]:
    """What is wrong, a sentence for each finding; empty if nothing is."""
    faults = _misfits(book, matches)
    if faults:
        return faults
    gangs = _Gangs.of(book, matches)
    return [
        *_double_lets(book, matches),
        *_wrong_cuts(matches),
        *_wrong_sizes(book, matches, gangs),
        *_wrong_reach(book, matches, gangs),
        *_unacceptable(book, matches),
        *_wrong_ladders(book, matches),
        *_wrong_prices(book, matches, gangs),
        *_wrong_sums(book, matches, gangs),
    ]


def amounts(book: Book, matches: Matches) -> Amounts:
    """What these matches come to; they must fit the book."""
    return _amounts(book, matches, _Gangs.of(book, matches))


@dataclass(frozen=True, eq=False)
class _Gangs:
    """What the rows say of each job [J] and each row [M]."""

    gpus: Ints  # [J]
    nodes: Ints  # [J] how many
    sites: Ints  # [J] how many
    worth: Floats  # [M] limit · η, USD per GPU-hour
    risk: Floats  # [M] USD per GPU-hour

    @classmethod
    def of(cls, book: Book, matches: Matches) -> "_Gangs":
        job, node = matches.job, matches.node
        site = book.node_site[node]
        gpus = np.bincount(job, matches.gpus, book.jobs).astype(np.int64)
        nodes, sites = (_count_distinct(job, other, book.jobs) for other in (node, site))
        limit = book.job_limit[job, book.node_class[node]]
        rate = np.array(book.params.failures_per_gpu_hour)[book.node_tier[node]]
        risk = rate * gpus[job] * book.job_hours_lost[job].astype(float) * limit
        keeps = np.select(
            [gpus[job] == 1, nodes[job] == 1, sites[job] == 1],
            [np.ones(len(job)), _in_node(book, job, node), _in_site(book, job, node)],
            _over_sites(book, job, node),
        )
        return cls(gpus, nodes, sites, limit * keeps, risk)


def _misfits(book: Book, matches: Matches) -> list[str]:
    """Arrays of another book's size, rows that point nowhere, slots that don't exist."""
    faults = []
    if len(matches.level) != book.jobs:
        faults.append(f"level has {len(matches.level)} entries for {book.jobs} jobs")
    if len(matches.cell_price) != book.nodes:
        faults.append(f"cell_price has {len(matches.cell_price)} entries for {book.nodes} nodes")
    faults += [f"row {m} is of job {matches.job[m]}, which the book lacks"
               for m in np.flatnonzero(matches.job >= book.jobs)]  # fmt: skip
    faults += [f"row {m} is on node {matches.node[m]}, which the book lacks"
               for m in np.flatnonzero(matches.node >= book.nodes)]  # fmt: skip
    faults += [f"row {m} has {matches.gpus[m]} GPUs; slots have 1, 2, 4 or 8"
               for m in np.flatnonzero(~np.isin(matches.gpus, (1, 2, 4, 8)))]  # fmt: skip
    return faults


def _double_lets(book: Book, matches: Matches) -> list[str]:
    let = np.bincount(matches.node, matches.gpus, book.nodes)
    return [f"node {node} lets {let[node]:.0f} GPUs and has {book.node_gpus[node]} free"
            for node in np.flatnonzero(let > book.node_gpus)]  # fmt: skip


def _wrong_cuts(matches: Matches) -> list[str]:
    """A gang's GPUs on one node are cut into the fewest slots: of 1, 2 and 4 at most one each."""
    small = matches.gpus < 8
    rows = np.stack([matches.job, matches.node, matches.gpus], axis=1)[small]
    each, times = np.unique(rows, axis=0, return_counts=True)
    return [f"job {job} has {n} slots of {size} on node {node}, which make a larger one"
            for (job, node, size), n in zip(each, times, strict=True) if n > 1]  # fmt: skip


def _wrong_sizes(book: Book, matches: Matches, gangs: _Gangs) -> list[str]:
    """A gang is whole, of one class, and the summary says the same."""
    placed = gangs.gpus > 0
    wrong = placed & ((gangs.gpus < book.job_gpus_min) | (gangs.gpus > book.job_gpus_max))
    faults = [f"job {job} has {gangs.gpus[job]} GPUs and wants {book.job_gpus_min[job]}"
              f" to {book.job_gpus_max[job]}" for job in np.flatnonzero(wrong)]  # fmt: skip
    classes = book.node_class[matches.node]
    mixed = _count_distinct(matches.job, classes, book.jobs) > 1
    faults += [f"job {job} has GPUs of several classes" for job in np.flatnonzero(mixed)]
    said = np.full(book.jobs, -1)
    said[matches.job] = classes
    faults += [f"job {job} runs on class {said[job]}, class says {matches.gpu_class[job]}"
               for job in np.flatnonzero((said != matches.gpu_class) & ~mixed)]  # fmt: skip
    return faults


def _wrong_reach(book: Book, matches: Matches, gangs: _Gangs) -> list[str]:
    """The level is the one said and allowed; a gang over sites keeps to their least and most."""
    level = np.select([gangs.gpus == 0, gangs.nodes == 1, gangs.sites == 1], [-1, 0, 1], 2)
    faults = [f"job {job} reaches level {level[job]}, level says {matches.level[job]}"
              for job in np.flatnonzero(level != matches.level)]  # fmt: skip
    faults += [f"job {job} accepts level {book.job_level[job]} and got {level[job]}"
               for job in np.flatnonzero(level > book.job_level)]  # fmt: skip
    spans = gangs.sites > 1
    faults += [f"job {job} accepts {book.job_sites_max[job]} sites and got {gangs.sites[job]}"
               for job in np.flatnonzero(spans & (gangs.sites > book.job_sites_max))]  # fmt: skip
    pairs = np.stack([matches.job, book.node_site[matches.node]], axis=1)
    each, of_row = np.unique(pairs, axis=0, return_inverse=True)
    gpus = np.bincount(of_row.reshape(-1), matches.gpus, len(each))
    few = spans[each[:, 0]] & (gpus < book.job_site_gpus_min[each[:, 0]])
    faults += [f"job {job} has {n:.0f} GPUs on site {site}, fewer than it accepts"
               for (job, site), n in zip(each[few], gpus[few], strict=True)]  # fmt: skip
    return faults


def _unacceptable(book: Book, matches: Matches) -> list[str]:
    """Rows on nodes that the job's own terms exclude."""
    job, node = matches.job, matches.node
    site = book.node_site[node]
    regions = book.job_regions[job] >> book.site_region[site].astype(np.uint64) & np.uint64(1)
    tests = {
        "class or memory": book.job_limit[job, book.node_class[node]] > 0,
        "region": regions == 1,
        "trust": book.site_trust[site] <= book.job_trust[job],
        "reliability": book.node_tier[node] <= book.job_tier[job],
        "window": book.node_long[node] >= book.job_long[job],
    }
    return [f"job {job[m]} does not accept the {name} of node {node[m]}"
            for name, right in tests.items() for m in np.flatnonzero(~right)]  # fmt: skip


def _wrong_ladders(book: Book, matches: Matches) -> list[str]:
    """Neither prices nor what balances a cell fall with the slot's size; of prices, nodes of one cell
    have the same."""
    ladder, told = matches.cell_price, {"prices": matches.cell_price, "balance": _proving(matches)}
    faults = [f"the {name} of node {node} fall with the slot's size" for name, each in told.items()
              for node in np.flatnonzero((np.diff(each, axis=1) < 0).any(axis=1))]  # fmt: skip
    on_site = np.bincount(book.node_site)
    first: dict[tuple[int, ...], int] = {}
    for node in range(book.nodes):
        site = int(book.node_site[node])
        where = (site,) if on_site[site] > 1 else (
            -1, int(book.site_region[site]), int(book.site_trust[site])
        )  # fmt: skip
        kind = int(book.node_class[node]), int(book.node_tier[node]), int(book.node_long[node])
        like = first.setdefault(kind + where, node)
        if (ladder[like] != ladder[node]).any():
            faults.append(f"nodes {like} and {node} are of one cell and differ in price")
    return faults


def _wrong_prices(book: Book, matches: Matches, gangs: _Gangs) -> list[str]:
    """Each row pays its cell's price, or less where that is all the buyer's value; never more."""
    slot = np.select([matches.gpus == 1, matches.gpus == 2, matches.gpus == 4], [0, 1, 2], 3)
    price = matches.cell_price[matches.node, slot]
    pays = np.bincount(matches.job, matches.gpus * matches.price, book.jobs)
    worth = np.bincount(matches.job, matches.gpus * gangs.worth, book.jobs)
    faults = [f"job {job} pays {pays[job]:.6f} an hour for what is worth {worth[job]:.6f} to it"
              for job in np.flatnonzero(pays > worth * (1 + 1e-9) + 1e-9)]  # fmt: skip
    capped = pays >= worth * (1 - 1e-9) - 1e-9
    wrong = (matches.price > price) | ((matches.price < price) & ~capped[matches.job])
    faults += [f"job {matches.job[m]} pays {matches.price[m]:.6f} on node {matches.node[m]}, where"
               f" the price is {price[m]:.6f}" for m in np.flatnonzero(wrong)]  # fmt: skip
    return faults


def _wrong_sums(book: Book, matches: Matches, gangs: _Gangs) -> list[str]:
    found = asdict(_amounts(book, matches, gangs))
    found["bound"] = _proven_bound(book, _proving(matches))
    if matches.balance is None:  # what was proven before is true, if looser than by these rules
        found["bound"] = max(found["bound"], matches.bound)
    faults = [f"{name} is {value:.6f}, the matches say {getattr(matches, name):.6f}"
              for name, value in found.items()
              if not _agree(value, getattr(matches, name))]  # fmt: skip
    if found["welfare"] > found["bound"] + _SLACK * max(1, found["bound"]):
        faults.append("the welfare exceeds the bound: the prices prove nothing")
    return faults


def _proving(matches: Matches) -> Floats:
    """[N, 4] the prices that the bound follows from."""
    return matches.cell_price if matches.balance is None else matches.balance


def _amounts(book: Book, matches: Matches, gangs: _Gangs) -> Amounts:
    ask = book.node_ask[matches.node]
    return Amounts(
        welfare=math.fsum(matches.gpus * (gangs.worth - ask - gangs.risk)),
        make_whole=math.fsum(matches.gpus * np.maximum(ask - matches.price, 0)),
    )


def _proven_bound(book: Book, ladder: Floats) -> float:
    """What no matches of this book can exceed: at these prices, the best for each one alone."""
    gpus = book.node_gpus.astype(np.int64)
    gain = np.maximum(ladder - book.node_ask[:, None], 0)
    counts = np.stack([gpus % 2, gpus // 2 % 2, gpus // 4 % 2, gpus // 8], axis=1)
    nodes = math.fsum((counts * gain * [1, 2, 4, 8]).sum(axis=1))
    return nodes + math.fsum(_best_alone(book, ladder, job) for job in range(book.jobs))


def _best_alone(book: Book, ladder: Floats, job: int) -> float:
    """A job's most surplus, over one node, one site or several, at the prices of the ladder."""
    node = np.flatnonzero(_acceptable(book, job))
    if not len(node):
        return 0.0
    same = np.full(len(node), job)
    limit = book.job_limit[job, book.node_class[node]]
    rate = np.array(book.params.failures_per_gpu_hour)[book.node_tier[node]]
    risk = rate * float(book.job_hours_lost[job]) * limit
    free = book.node_gpus[node].astype(np.int64)
    least, most = int(book.job_gpus_min[job]), int(book.job_gpus_max[job])
    bests = [0.0]
    for n in range(least, min(most, 16) + 1):
        cut = np.array([n % 2, n // 2 % 2 * 2, n // 4 % 2 * 4, n // 8 * 8])
        keeps = _in_node(book, same, node) if n > 1 else 1.0
        bests.append(_highest(n * (limit * keeps - n * risk) - ladder[node] @ cut, free >= n))
    if most > 1 and book.job_level[job] >= 1:
        several = (np.bincount(book.node_site) > 1)[book.node_site[node]]
        gain = np.where(several, limit * _in_site(book, same, node) - ladder[node, 0], -np.inf)
        place = book.node_site[node].astype(np.int64) * len(book.class_nvlink)
        gangs = _Alone(gain, risk, free, place + book.node_class[node])
        bests.append(gangs.best(max(least, 2), most))
    if most > 1 and book.job_level[job] >= 2 and book.job_sites_max[job] > 1:
        keeps = _over_sites(book, same, node)
        gain = np.where(keeps > 0, limit * keeps - ladder[node, 0], -np.inf)
        gpu_class, site = book.node_class[node].astype(np.int64), book.node_site[node]
        gangs = _Alone(gain, risk, free, gpu_class, site)
        fewest, sites = int(book.job_site_gpus_min[job]), int(book.job_sites_max[job])
        bests.append(gangs.best_over_sites(max(least, 2), most, fewest, sites))
    return max(bests)


@dataclass(frozen=True, eq=False)
class _Alone:
    """Nodes that one gang may buy of: what it gains by each GPU, less risk · its size; groups are
    places or classes, of which it takes one."""

    gain: Floats
    risk: Floats
    free: Ints
    group: Ints
    site: Ints | None = None

    def best_over_sites(self, least: int, most: int, fewest: int, sites: int) -> float:
        """Over all classes: what so many sites gain beyond a toll, at whatever toll. Sites with fewer
        than `fewest` GPUs don't count, nor classes whose largest sites have fewer than it needs."""
        return max(
            (self._over(group, least, most, fewest, sites) for group in np.unique(self.group)),
            default=0.0,
        )

    def _over(self, group: int, least: int, most: int, fewest: int, sites: int) -> float:
        here = np.flatnonzero((self.group == group) & np.isfinite(self.gain))
        assert self.site is not None
        _, site = np.unique(self.site[here], return_inverse=True)
        has = np.bincount(site, self.free[here])
        if np.sort(has[has >= fewest])[::-1][:sites].sum() < least:
            return 0.0
        large = has[site] >= fewest
        here, site, best = here[large], site[large], 0.0
        least = max(least, 2 * fewest)
        while least <= most:
            size = min(2 * least - 1, most)
            gain = self.gain[here] - self.risk[here] * least
            order = np.lexsort((-gain, site))
            # Another site has to give its fewest as well.
            free = _at_most(size - fewest, site[order], self.free[here][order])
            best = max(best, _least_tolled(gain[order], site[order], free, size, sites))
            least = size + 1
        return best

    def best(self, least: int, most: int) -> float:
        """Over all groups and sizes, those from a to 2a − 1 as the largest at the risk of a."""
        return max((self._fill(group, least, most) for group in np.unique(self.group)), default=0.0)

    def _fill(self, group: int, least: int, most: int) -> float:
        here = (self.group == group) & np.isfinite(self.gain)
        free, best = self.free[here], 0.0
        most = min(most, int(free.sum()))
        while least <= most:
            size = min(2 * least - 1, most)
            gain = self.gain[here] - self.risk[here] * least
            order = np.argsort(-gain)
            before = np.cumsum(free[order]) - free[order]
            wanted = np.where(gain[order] > 0, size, least)
            taken = np.clip(wanted - before, 0, free[order])
            best = max(best, float((taken * gain[order]).sum()))
            least = size + 1
        return best


def _at_most(most: int, site: Ints, free: Ints) -> Ints:
    """What each of these nodes, sorted by site, gives if no site gives more than so many."""
    before = np.cumsum(free) - free
    _, first, of_node = np.unique(site, return_index=True, return_inverse=True)
    given: Ints = np.clip(most - (before - before[first][of_node.reshape(-1)]), 0, free)
    return given


def _least_tolled(gain: Floats, site: Ints, free: Ints, size: int, sites: int) -> float:
    """What the best sites gain beyond a toll on each GPU, and the toll of `size` of them, at the toll
    that makes it least: below it they give more than so many, above it fewer."""

    def at(toll: float) -> tuple[float, float]:
        given = free * (gain > toll)
        gains = np.bincount(site, given * (gain - toll))
        chosen = np.argsort(-gains)[:sites]
        return float(gains[chosen].sum()) + toll * size, float(
            np.bincount(site, given)[chosen].sum()
        )

    low, high = 0.0, float(gain.max(initial=0.0))
    total, gpus = at(low)
    if gpus <= size:
        return total
    for _ in range(_HALVINGS):
        toll = (low + high) / 2
        low, high = (toll, high) if at(toll)[1] > size else (low, toll)
    return at(high)[0]


def _acceptable(book: Book, job: int) -> Bools:
    """[N] whether the job's terms admit each node."""
    site = book.node_site
    bit = np.uint64(1) << book.site_region[site].astype(np.uint64)
    right: Bools = (
        (book.job_limit[job, book.node_class] > 0)
        & (book.job_regions[job] & bit > 0)
        & (book.site_trust[site] <= book.job_trust[job])
        & (book.node_tier <= book.job_tier[job])
        & (book.node_long >= book.job_long[job])
    )
    return right


def _in_node(book: Book, job: Ints, node: Ints) -> Floats:
    slow = np.where(book.class_nvlink[book.node_class[node]] > 0, 0, book.params.penalty_node_pcie)
    return np.asarray(1 - slow * book.job_kappa[job].astype(float))


def _in_site(book: Book, job: Ints, node: Ints) -> Floats:
    slow = np.array(book.params.penalty_site)[book.site_net[book.node_site[node]]]
    return np.asarray(1 - slow * book.job_kappa[job].astype(float))


def _over_sites(book: Book, job: Ints, node: Ints) -> Floats:
    """1 / (1 + 16 · MB / (Mbit/s · s)); nothing where there is no time or no link."""
    uplink = book.site_up_mbps[book.node_site[node]].astype(float)
    pace = uplink * book.job_sync_s[job].astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = 1 / (1 + 16 * book.job_sync_mb[job].astype(float) / pace)
    return np.where(pace > 0, share, 0.0)


def _count_distinct(job: Ints, other: Ints, jobs: int) -> Ints:
    """[J] how many different others each job has rows with."""
    pairs = np.unique(np.stack([job, other], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=jobs)


def _highest(amounts: Floats, where: Bools) -> float:
    return float(np.where(where, amounts, 0.0).max())


def _agree(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SLACK, abs_tol=_SLACK)
