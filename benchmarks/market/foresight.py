"""The best each job could do for itself, all of time before it, at given prices of each node and hour.

What `ceiling` bounds with. A gang over several nodes takes the best GPUs of a place, or of its class
anywhere: more than the rules allow, so that it bounds what they do.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numba import njit

from scheduler.matching.book import Book
from scheduler.matching.cells import Cells, cells
from scheduler.matching.values import Parts, eligible, of_rows


class Ways(NamedTuple):
    """How jobs may run: a way is a node, or several of which the best GPUs are taken. Of job j they are
    `way[j]:way[j + 1]`, best first; the nodes of way w are `row[w]:row[w + 1]`."""

    way: np.ndarray
    row: np.ndarray
    node: np.ndarray
    gain: np.ndarray  # of a GPU, USD per hour
    most: np.ndarray  # [ways] of the whole gang on an empty fleet


class Wanted(NamedTuple):
    """Of each job its GPUs, the hour of its first round and the hours it runs; of each node its GPUs;
    the hour at which all ends."""

    size: np.ndarray
    begin: np.ndarray
    hours: np.ndarray
    free: np.ndarray
    until: float


def ways(book: Book) -> Ways:
    """Of all jobs, none of which is elastic."""
    kinds, way, row = cells(book), [0], [0]
    node: list[np.ndarray] = []
    gain: list[np.ndarray] = []
    most: list[float] = []
    for job in range(book.jobs):
        found = sorted(_ways(book, kinds, job), key=lambda one: -one[2])
        for nodes, gains, total in found:
            node.append(nodes)
            gain.append(gains)
            most.append(total)
            row.append(row[-1] + len(nodes))
        way.append(len(most))
    none = np.empty(0, np.int64)
    return Ways(np.array(way), np.array(row), np.concatenate([none, *node]),
                np.concatenate([none.astype(float), *gain]), np.array(most, float))  # fmt: skip


def _ways(book: Book, kinds: Cells, job: int) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Nodes, what a GPU gains on each, and what the best of them do for all of the gang, if anything."""
    size, level = int(book.job_gpus_min[job]), int(book.job_level[job])
    may = eligible(book, kinds, job)[kinds.of_node] & (book.node_gpus > 0)
    gains = _gains(book, job, 0)
    for node in np.flatnonzero(may & (book.node_gpus >= size) & (gains > 0)):
        yield np.array([node]), gains[node : node + 1], size * float(gains[node])
    if size == 1:
        return
    for reached, group in ((1, kinds.place), (2, book.node_class)):
        if reached > level:
            continue
        gains = _gains(book, job, reached)
        for one in np.unique(group[may]):
            here = np.flatnonzero(may & (group == one))
            here = here[np.argsort(-gains[here])]
            gpus = book.node_gpus[here].astype(int)
            taken = np.clip(size - (np.cumsum(gpus) - gpus), 0, gpus)
            total = float(taken @ gains[here])
            if taken.sum() == size and total > 0:
                yield here, gains[here], total


def _gains(book: Book, job: int, level: int) -> np.ndarray:
    """[N] of each GPU, were the job there at this level: limit · η − risk − ask."""
    node = np.arange(book.nodes)
    columns = (book.job_kappa, book.job_hours_lost, book.job_sync_mb, book.job_sync_s)
    worth, risk = of_rows(book, Parts(
        node, np.full(book.nodes, book.job_gpus_min[job]), np.full(book.nodes, level),
        book.job_limit[job, book.node_class],
        *(np.full(book.nodes, float(column[job])) for column in columns),
    ))  # fmt: skip
    return worth - risk - book.node_ask


@njit(cache=True)
def best(ways, wanted, price, used):
    """The bound that prices [N, parts of the time] prove: what each job has at best, and what the
    prices bring for all GPUs and hours. Fills `used` with the GPU-hours that jobs would take."""
    nodes, parts = price.shape
    width = wanted.until / parts
    bill = np.zeros((nodes, parts + 1))
    total = 0.0
    for node in range(nodes):
        for part in range(parts):
            bill[node, part + 1] = bill[node, part] + price[node, part] * width
        total += wanted.free[node] * bill[node, parts]
    used[:] = 0
    left = np.empty(nodes)
    for job in range(len(wanted.size)):
        gain, way, start = _best_of(ways, wanted, bill, width, job, left)
        if way >= 0:
            total += gain
            _take(ways, wanted, bill, width, (job, way), start, left, used)
    return total


@njit(cache=True)
def _best_of(ways, wanted, bill, width, job, left):
    """What one job has at best, by which way and from when; way −1 if nothing leaves it anything."""
    begin, hours, until = wanted.begin[job], wanted.hours[job], wanted.until
    parts = bill.shape[1] - 1
    best, best_way, best_start = 0.0, -1, 0.0
    for way in range(ways.way[job], ways.way[job + 1]):
        if ways.most[way] * min(hours, until - begin) <= best:
            break
        # Prices change where a part begins: one of these starts is as good as any other.
        for turn in range(2 * parts + 1):
            start = begin
            if turn > 0:
                start = (turn + 1) // 2 * width - (hours if turn % 2 else 0.0)
                if start <= begin:
                    continue
            runs = min(hours, until - start)
            if runs <= 0 or ways.most[way] * runs <= best:
                continue
            gain = _gain(ways, wanted, bill, width, (job, way), start, left)
            if gain > best:
                best, best_way, best_start = gain, way, start
    return best, best_way, best_start


@njit(cache=True)
def _gain(ways, wanted, bill, width, what, start, left):
    """What a way leaves from this start on; `left` has it for a GPU of each of its nodes."""
    job, way = what
    first, count = ways.row[way], ways.row[way + 1] - ways.row[way]
    end = min(start + wanted.hours[job], wanted.until)
    for at in range(count):
        node = ways.node[first + at]
        toll = _billed(bill, node, end, width) - _billed(bill, node, start, width)
        left[at] = ways.gain[first + at] * (end - start) - toll
    if count == 1:
        return wanted.size[job] * left[0]
    total, wants = 0.0, wanted.size[job]
    for at in np.argsort(-left[:count]):
        gpus = min(wants, wanted.free[ways.node[first + at]])
        total += gpus * left[at]
        wants -= gpus
    return total


@njit(cache=True)
def _billed(bill, node, hour, width):
    """What a GPU of the node costs until that hour."""
    part = min(int(hour / width), bill.shape[1] - 2)
    return bill[node, part] + (bill[node, part + 1] - bill[node, part]) * (hour / width - part)


@njit(cache=True)
def _take(ways, wanted, bill, width, what, start, left, used):
    """Notes the GPU-hours of what was chosen."""
    _gain(ways, wanted, bill, width, what, start, left)
    job, way = what
    first, count = ways.row[way], ways.row[way + 1] - ways.row[way]
    end, wants = min(start + wanted.hours[job], wanted.until), wanted.size[job]
    for at in np.argsort(-left[:count]):
        node = ways.node[first + at]
        gpus = min(wants, wanted.free[node])
        wants -= gpus
        for part in range(int(start / width), used.shape[1]):
            begins, ends = max(start, part * width), min(end, (part + 1) * width)
            if gpus == 0 or ends <= begins:
                break
            used[node, part] += gpus * (ends - begins)
