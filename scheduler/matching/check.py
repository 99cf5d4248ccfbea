"""Checks matches against their book, from the rules alone.

Written apart from the engine and, with `check_bound`, shares no code with it but the two file formats:
what this finds right, anybody can find right. Welfare, make-whole and bound are computed anew; amounts agree when
they differ by less than a part in a million.
"""

import math
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from scheduler.matching.arrays import Floats, Ints
from scheduler.matching.book import Book
from scheduler.matching.check_bound import in_node, in_site, over_sites, proven_bound
from scheduler.matching.matches import Matches

VERSION: Final = 2
"""Of the rules below. 1: the first. 2: the bound follows from what balances the cells, and a gang over
sites bears a toll."""
_SLACK = 1e-6


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
            [
                np.ones(len(job)),
                in_node(book, job, book.node_class[node]),
                in_site(book, job, node),
            ],
            over_sites(book, job, node),
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
    found["bound"] = proven_bound(book, _proving(matches))
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


def _count_distinct(job: Ints, other: Ints, jobs: int) -> Ints:
    """[J] how many different others each job has rows with."""
    pairs = np.unique(np.stack([job, other], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=jobs)


def _agree(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SLACK, abs_tol=_SLACK)
