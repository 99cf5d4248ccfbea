"""A mixed-integer program that no matches of a book can exceed, small enough for HiGHS.

Written by cells rather than by nodes. Variables: whether a job takes so many GPUs on one node of a
cell; whether it takes a place (class on a site) and how many GPUs of each cell there; the same over
all sites of a class; and of each node how many GPUs go out in slots of 8, 4, 2 and 1. It is looser
than the rules in what costs little, always to the jobs' advantage, so its value (and each bound
that HiGHS proves of it) is a bound on any matches:

- sizes of an elastic gang over several nodes go in bands of a seventh, at the risk of the least;
- a gang over several sites counts each by the part of it that it takes, and may take little there;
- a share of 3, 5, 6 or 7 GPUs of one node may be cut over nodes of its cell.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import highspy
import numpy as np

from scheduler.matching.book import Book
from scheduler.matching.cells import POOL, SLOTS, Cells, cells
from scheduler.matching.values import Terms, terms

_BAND = 7


class _Way(NamedTuple):
    """One job against all cells."""

    book: Book
    kinds: Cells
    job: int
    term: Terms


class _Source(NamedTuple):
    """GPUs of one cell: what one of them gains (USD per hour), how many there are, and how many
    one site gives at most; the site's number, or POOL."""

    cell: int
    gain: float
    gpus: float
    on_site: float
    site: int


class Proof(NamedTuple):
    """USD per hour: the bound, the best matches found (of the program), and how it ended."""

    bound: float
    found: float
    status: str


@dataclass
class _Rows:
    """A sparse program, written down column by column, rows numbered by name."""

    gain: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)  # each row is ≤ limit
    equal: list[bool] = field(default_factory=list)
    named: dict[tuple, int] = field(default_factory=dict)

    def rule(self, name: tuple, limit: float = 0.0, equal: bool = False) -> int:
        if name not in self.named:
            self.named[name] = len(self.limit)
            self.limit.append(limit)
            self.equal.append(equal)
        return self.named[name]

    def variable(self, gain: float, most: float, whole: bool, *at: tuple[int, float]) -> int:
        self.gain.append(gain)
        self.most.append(most)
        self.whole.append(whole)
        for row, value in at:
            self.put(row, len(self.gain) - 1, value)
        return len(self.gain) - 1

    def put(self, row: int, column: int, value: float) -> None:
        self.row.append(row)
        self.column.append(column)
        self.value.append(value)


def prove(book: Book, seconds: float, relaxed: bool = False) -> Proof:
    """Runs HiGHS for so long; `relaxed` drops wholeness, which is the linear relaxation."""
    rows, kinds = _Rows(), cells(book)
    for node in range(book.nodes):
        _add_node(rows, book, kinds, node)
    for job in range(book.jobs):
        _add_job(rows, book, kinds, job)
    model = highspy.Highs()
    model.silent()
    model.setOptionValue("time_limit", seconds)
    model.setOptionValue("threads", 1)
    model.setOptionValue("mip_rel_gap", 1e-5)
    model.passModel(_as_lp(rows, relaxed))
    model.run()
    info, status = model.getInfo(), model.modelStatusToString(model.getModelStatus())
    if relaxed:
        if model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return Proof(np.inf, 0.0, status)
        return Proof(info.objective_function_value, 0.0, status)
    return Proof(info.mip_dual_bound, info.objective_function_value, status)


def _as_lp(rows: _Rows, relaxed: bool) -> highspy.HighsLp:
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(rows.gain), len(rows.limit)
    lp.col_cost_, lp.col_upper_ = np.array(rows.gain), np.array(rows.most)
    lp.col_lower_ = np.zeros(lp.num_col_)
    limit = np.array(rows.limit)
    lp.row_upper_, lp.row_lower_ = limit, np.where(rows.equal, limit, -highspy.kHighsInf)
    order = np.argsort(np.array(rows.column), kind="stable")
    starts = np.searchsorted(np.array(rows.column)[order], np.arange(lp.num_col_ + 1))
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = starts.astype(np.int32)
    lp.a_matrix_.index_ = np.array(rows.row, np.int32)[order]
    lp.a_matrix_.value_ = np.array(rows.value)[order]
    lp.sense_ = highspy.ObjSense.kMaximize
    if not relaxed:
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[whole] for whole in rows.whole]
    return lp


def _add_node(rows: _Rows, book: Book, kinds: Cells, node: int) -> None:
    """What it lets in each slot: slots of `size` and larger hold no more than fits in whole ones."""
    free, ask, cell = (
        int(book.node_gpus[node]),
        float(book.node_ask[node]),
        int(kinds.of_node[node]),
    )
    held = {size: rows.rule(("node", node, size), free // size * size) for size in SLOTS}
    for size in SLOTS:
        if size <= free:
            at = [(held[other], float(size)) for other in SLOTS if other <= size]
            at.append((rows.rule(("cell", cell, size)), -float(size)))
            rows.variable(-size * ask, free // size, True, *at)


def _add_job(rows: _Rows, book: Book, kinds: Cells, job: int) -> None:
    term = terms(book, kinds, job)
    once = rows.rule(("job", job), 1.0)
    least, most = int(book.job_gpus_min[job]), int(book.job_gpus_max[job])
    largest = np.zeros(len(kinds), np.int64)
    np.maximum.at(largest, kinds.of_node, book.node_gpus.astype(np.int64))
    for size in range(least, min(most, 16) + 1):
        keeps = term.in_node if size > 1 else 1.0
        gain = size * (term.limit * keeps - size * term.risk)
        cut = [(slot, n) for slot, n in _cut(size)]
        for cell in np.flatnonzero((gain > 0) & (term.limit > 0) & (largest >= size)):
            at = [(rows.rule(("cell", int(cell), slot)), float(slot * n)) for slot, n in cut]
            rows.variable(float(gain[cell]), 1.0, True, (once, 1.0), *at)
    if most > 1 and book.job_level[job] >= 1:
        start = max(least, 2)
        while start <= most:
            end = min(start + start // _BAND, most)
            _add_gang(rows, _Way(book, kinds, job, term), (start, end))
            start = end + 1


def _cut(size: int) -> list[tuple[int, int]]:
    """(slot, how many) that make so many GPUs of one node."""
    return [(8, size // 8)] * (size >= 8) + [(slot, 1) for slot in (4, 2, 1) if size & slot]


def _add_gang(rows: _Rows, way: _Way, band: tuple[int, int]) -> None:
    """Over several nodes of a site; and, if it may, over sites."""
    book, kinds, job, term = way
    there = np.bincount(kinds.of_node, book.node_gpus, len(kinds))
    in_site = term.limit * term.in_site - band[0] * term.risk
    fits = (term.limit > 0) & (there > 0)
    place = kinds.site * len(book.class_nvlink) + kinds.gpu_class
    for one in np.unique(place[fits & (kinds.site != POOL)]):
        here = np.flatnonzero(fits & (kinds.site != POOL) & (place == one))
        shares = [_Source(int(k), in_site[k], there[k], there[k], int(kinds.site[k])) for k in here]
        _add_shares(rows, job, band, shares)
    if book.job_level[job] >= 2 and book.job_sites_max[job] > 1:
        sources = _sources(way, band)
        for gpu_class in np.unique(kinds.gpu_class[fits]):
            shares = [one for one in sources if kinds.gpu_class[one.cell] == gpu_class]
            _add_shares(rows, job, band, shares, int(book.job_sites_max[job]))


def _add_shares(
    rows: _Rows, job: int, band: tuple[int, int], shares: list[_Source], sites: int = 0
) -> None:
    """One choice, and GPUs of each source; all or nothing. `sites`: at most so many of them."""
    least, most = band
    if sum(one.gpus for one in shares) < least:
        return
    name = (job, band, len(rows.gain))
    choice = rows.variable(0.0, 1.0, True, (rows.rule(("job", job), 1.0), 1.0))
    above, below = rows.rule(("above", *name)), rows.rule(("below", *name))
    rows.put(above, choice, -float(most))
    rows.put(below, choice, float(least))
    few = []
    if sites:  # each site that is used counts by the part of it that is, which is at most once
        few = [rows.rule(("sites", *name))]
        rows.put(few[0], choice, -float(sites))
    for number, one in enumerate(shares):
        most_here = min(most, one.gpus)
        tied = rows.rule(("tied", *name, number))
        rows.put(tied, choice, -float(most_here))
        at = [(row, 1 / one.on_site) for row in few]
        if few and one.site != POOL:  # its cells together give no more than one site may
            shared = ("site", *name, one.site)
            if shared not in rows.named:
                rows.put(rows.rule(shared), choice, -one.on_site)
            at.append((rows.rule(shared), 1.0))
        rows.variable(
            float(one.gain), float(most_here), False, (above, 1.0), (below, -1.0), (tied, 1.0),
            (rows.rule(("cell", one.cell, 1)), 1.0), *at,
        )  # fmt: skip


def _sources(way: _Way, band: tuple[int, int]) -> list[_Source]:
    """Nodes of one cell with equal uplinks, where the job may run as one of a gang over sites."""
    book, kinds, job, term = way
    keeps = term.over_sites[book.node_site]
    may = (term.limit[kinds.of_node] > 0) & (keeps > 0) & (book.node_gpus > 0)
    on_site = np.bincount(kinds.place[may], book.node_gpus[may], kinds.place.max() + 1)[kinds.place]
    # Each site gives so many at least, so none gives all the others.
    least = int(book.job_site_gpus_min[job])
    may &= on_site >= least
    free, cell = book.node_gpus[may].astype(float), kinds.of_node[may]
    keys = np.stack([cell.astype(float), keeps[may]], axis=1)
    each, of_node = np.unique(keys, axis=0, return_inverse=True)
    gpus, largest = np.bincount(of_node.reshape(-1), free, len(each)), np.zeros(len(each))
    np.maximum.at(largest, of_node.reshape(-1), np.minimum(on_site[may], band[1] - least))
    pooled = kinds.site[each[:, 0].astype(int)] == POOL
    gpus = np.where(pooled, gpus, np.minimum(gpus, largest))
    gain = [term.limit[int(k)] * eta - band[0] * term.risk[int(k)] for k, eta in each]
    return [
        _Source(int(k), float(one), float(n), float(m), int(kinds.site[int(k)]))
        for (k, _), one, n, m in zip(each, gain, gpus, largest, strict=True)
        if m > 0
    ]
